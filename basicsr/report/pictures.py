"""The images of an evaluation: those of the datasets, and the outputs that test.py saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from basicsr.files.images import imfrombytes, tensor2img
from basicsr.files.regular_files import read_regular
from basicsr.metrics.evaluator import EvaluationDataset
from basicsr.utils.errors import DataError

_MOST_BYTES = 128 * 2**20  # of decoded images that are kept


class SavedPictures:
    """Images of one scale: uint8 (H, W, 3) BGR; HR and outputs of one image have one size.

    An image is decoded once, however many parts of a report show it; beyond 128 MiB the least recently used are
    dropped, so that memory stays bounded.

    Args:
        datasets: by name.
        names: each dataset's images, in its order.
        folder: of the saved outputs.
        by_network: whether each network has a folder of its own there.
        suffix: ends the saved files' names.
    """

    def __init__(
        self,
        datasets: Mapping[str, EvaluationDataset],
        names: Mapping[str, Sequence[str]],
        *,
        folder: Path,
        by_network: bool,
        suffix: str,
    ) -> None:
        self._datasets, self._names = datasets, names
        self._folder, self._by_network, self._suffix = folder, by_network, suffix
        self._decoded: dict[tuple[str, ...], tuple[np.ndarray | None, ...]] = {}

    def path(self, row: str, dataset: str, image: str) -> Path:
        """The file of an output."""
        folder = self._folder / row if self._by_network else self._folder
        return folder / dataset / f"{image}_{self._suffix}.png"

    def names(self, dataset: str) -> Sequence[str]:
        """Names of a dataset's images, in its order."""
        return self._names[dataset]

    def hr(self, dataset: str, image: str) -> np.ndarray | None:
        """The HR image; None where the dataset has none."""
        return self._sample(dataset, image)[0]

    def lr(self, dataset: str, image: str) -> np.ndarray:
        """The LR image."""
        lr = self._sample(dataset, image)[1]
        assert lr is not None, "every sample has an LR image"
        return lr

    def output(self, row: str, dataset: str, image: str) -> np.ndarray:
        """The output of the row's network; raises DataError if the saved file is missing or damaged."""
        path = self.path(row, dataset, image)

        def read() -> tuple[np.ndarray]:
            try:
                return (imfrombytes(read_regular(path), source=str(path)),)
            except OSError as error:
                raise DataError(f"cannot read {path}: {error.strerror}; run the test again") from error

        output = self._once((row, dataset, image), read)[0]
        assert output is not None
        return output

    def _sample(self, dataset: str, image: str) -> tuple[np.ndarray | None, ...]:
        def read() -> tuple[np.ndarray | None, ...]:
            images: Any = self._datasets[dataset]
            sample = images[self._names[dataset].index(image)]
            restored = getattr(images, "restored", lambda given: given)
            return tuple(_bgr(restored(sample[key])) if key in sample else None for key in ("gt", "lq"))

        return self._once((dataset, image), read)

    def _once(
        self, key: tuple[str, ...], read: Callable[[], tuple[np.ndarray | None, ...]]
    ) -> tuple[np.ndarray | None, ...]:
        images = self._decoded[key] = self._decoded.pop(key, ()) or read()  # the last used come last
        while len(self._decoded) > 1 and self._size() > _MOST_BYTES:
            del self._decoded[next(iter(self._decoded))]
        return images

    def _size(self) -> int:
        return sum(image.nbytes for images in self._decoded.values() for image in images if image is not None)


def _bgr(image: Tensor) -> np.ndarray:
    """An image of one or three channels as uint8 (H, W, 3) BGR."""
    return np.atleast_3d(tensor2img(image)).repeat(3 // image.shape[0], axis=2)
