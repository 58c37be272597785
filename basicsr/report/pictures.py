"""The images of an evaluation: those of the datasets, and the outputs that test.py saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from basicsr.files.images import imfrombytes, tensor2img
from basicsr.files.regular_files import read_regular
from basicsr.metrics.evaluator import EvaluationDataset
from basicsr.utils.errors import DataError

_MOST_BYTES = 128 * 2**20  # of decoded images that are kept
_Sample = tuple[np.ndarray | None, np.ndarray]  # HR and LR image


@dataclass
class SavedPictures:
    """Images of one scale: uint8 (H, W, 3) BGR; HR and outputs of one image have one size.

    HR and LR images are decoded once, however many parts of a report show them; beyond 128 MiB the least recently used
    are dropped.

    Attributes:
        datasets: by name.
        image_names: each dataset's images, in its order.
        folder: of the saved outputs.
        by_network: whether each network has a folder of its own there.
        suffix: ends the saved files' names.
    """

    datasets: Mapping[str, EvaluationDataset]
    image_names: Mapping[str, Sequence[str]]
    folder: Path
    by_network: bool
    suffix: str
    _samples: dict[tuple[str, str], _Sample] = field(default_factory=dict)

    def path(self, row: str, dataset: str, image: str) -> Path:
        """The file of an output."""
        folder = self.folder / row if self.by_network else self.folder
        return folder / dataset / f"{image}_{self.suffix}.png"

    def names(self, dataset: str) -> Sequence[str]:
        """Names of a dataset's images, in its order."""
        return self.image_names[dataset]

    def hr(self, dataset: str, image: str) -> np.ndarray | None:
        """The HR image; None where the dataset has none."""
        return self._sample(dataset, image)[0]

    def lr(self, dataset: str, image: str) -> np.ndarray:
        """The LR image."""
        return self._sample(dataset, image)[1]

    def output(self, row: str, dataset: str, image: str) -> np.ndarray:
        """The output of the row's network; raises DataError if the saved file is missing or damaged."""
        path = self.path(row, dataset, image)
        try:
            return imfrombytes(read_regular(path), source=str(path))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; run the test again") from error

    def _sample(self, dataset: str, image: str) -> _Sample:
        sample = self._samples.pop((dataset, image), None) or self._read(dataset, image)
        self._samples[dataset, image] = sample  # the last used come last
        while len(self._samples) > 1 and sum(map(_size, self._samples.values())) > _MOST_BYTES:
            del self._samples[next(iter(self._samples))]
        return sample

    def _read(self, dataset: str, image: str) -> _Sample:
        images = self.datasets[dataset]
        restored = getattr(images, "restored", lambda given: given)
        sample = images[self.image_names[dataset].index(image)]
        return _bgr(restored(sample["gt"])) if "gt" in sample else None, _bgr(restored(sample["lq"]))


def _size(sample: _Sample) -> int:
    return sum(image.nbytes for image in sample if image is not None)


def _bgr(image: Tensor) -> np.ndarray:
    """An image of one or three channels as uint8 (H, W, 3) BGR."""
    return np.atleast_3d(tensor2img(image)).repeat(3 // image.shape[0], axis=2)
