"""The images of an evaluation, read from the datasets and from what test.py saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from basicsr.files.images import imfrombytes, tensor2img
from basicsr.files.regular_files import read_regular
from basicsr.metrics.evaluator import EvaluationDataset
from basicsr.utils.errors import DataError


class SavedPictures:
    """Images of one scale (see `results.Pictures`).

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
        self._datasets = datasets
        self._names = names
        self._folder = folder
        self._by_network = by_network
        self._suffix = suffix

    def path(self, row: str, dataset: str, image: str) -> Path:
        """The file of an output."""
        folder = self._folder / row if self._by_network else self._folder
        return folder / dataset / f"{image}_{self._suffix}.png"

    def names(self, dataset: str) -> Sequence[str]:
        """Names of a dataset's images, in its order."""
        return self._names[dataset]

    def hr(self, dataset: str, image: str) -> np.ndarray | None:
        """The HR image, uint8 (H, W, 3) BGR; None where the dataset has none."""
        return self._shown("gt", dataset, image)

    def lr(self, dataset: str, image: str) -> np.ndarray:
        """The LR image, uint8 (H, W, 3) BGR."""
        shown = self._shown("lq", dataset, image)
        assert shown is not None, "every sample has an LR image"
        return shown

    def _shown(self, key: str, dataset: str, image: str) -> np.ndarray | None:
        images = self._datasets[dataset]
        tensor = images[self._names[dataset].index(image)].get(key)
        return None if tensor is None else _colours(getattr(images, "restored", lambda given: given)(tensor))

    def output(self, row: str, dataset: str, image: str) -> np.ndarray:
        """What the row's network made of the LR image, uint8 (H, W, 3) BGR.

        Raises:
            DataError: the saved file is missing or damaged.
        """
        path = self.path(row, dataset, image)
        try:
            return imfrombytes(read_regular(path), source=str(path))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; run the test again") from error


def _colours(image: Tensor) -> np.ndarray:
    """An image of one or three channels as uint8 (H, W, 3) BGR."""
    return np.atleast_3d(tensor2img(image)).repeat(3 // image.shape[0], axis=2)
