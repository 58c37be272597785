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
    """Images of one scale, uint8 (H, W, 3) BGR; HR and LR images are decoded once and kept within 128 MiB."""

    datasets: Mapping[str, EvaluationDataset]
    image_names: Mapping[str, Sequence[str]]  # by dataset, in its order
    folder: Path  # of the saved outputs
    by_network: bool  # whether each network has a folder of its own there
    suffix: str  # of the saved files' names
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
        found = self._samples.pop((dataset, image), None)
        if found is None:
            images = self.datasets[dataset]
            restored = getattr(images, "restored", lambda given: given)
            sample = images[self.image_names[dataset].index(image)]
            hr = _bgr(restored(sample["gt"])) if "gt" in sample else None
            found = hr, _bgr(restored(sample["lq"]))
        self._samples[dataset, image] = found  # the last used come last
        while len(self._samples) > 1 and self._size() > _MOST_BYTES:
            del self._samples[next(iter(self._samples))]
        return found

    def _size(self) -> int:
        kept = (image for sample in self._samples.values() for image in sample)
        return sum(image.nbytes for image in kept if image is not None)


def _bgr(image: Tensor) -> np.ndarray:
    """An image of one or three channels as uint8 (H, W, 3) BGR."""
    return np.atleast_3d(tensor2img(image)).repeat(3 // image.shape[0], axis=2)
