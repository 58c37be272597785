"""LR images alone, whole, where there are no HR images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from basicsr.config.component_blocks import ON_DISK, StorageBlock
from basicsr.data.base import Color, ImageDataset, TensorConversion, taking_opt
from basicsr.data.storage import StoredImages, roots_of
from basicsr.utils.ranges import Colour, Deviation
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class SingleImageDataset(ImageDataset):
    """LR images from a folder, a list, or an LMDB database.

    Args:
        dataroot_lq: folder or LMDB database.
        io_backend: {type: disk} or {type: lmdb}.
        meta_info_file: file that lists the images to use, relative to `dataroot_lq`; None for the whole
            folder.
        color: 'gray' or 'y' for one channel (`TensorConversion`), None for RGB.
        mean: subtracted from each channel.
        std: divides each channel then.

    Raises:
        DataError: the folder is missing or empty, or a listed image does not exist.
        OptionsError: options contradict each other.
    """

    without_gt = True

    @taking_opt
    def __init__(
        self,
        *,
        dataroot_lq: str,
        io_backend: StorageBlock = ON_DISK,
        meta_info_file: str | None = None,
        color: Color | None = None,
        mean: Sequence[Colour] | None = None,
        std: Sequence[Deviation] | None = None,
    ) -> None:
        self._convert = TensorConversion(color, mean, std)
        self._roots = roots_of(io_backend, {"lq": dataroot_lq})
        self._chosen = meta_info_file is not None and self._roots["lq"].takes_list
        self.paths = self._roots["lq"].names(meta_info_file)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns {'lq': float32 (C, h, w) RGB in [0, 1], 'lq_path': str}; DataError where it cannot be read."""
        path = self.paths[index]
        return {"lq": self._convert(self._roots["lq"].open(path).read()), "lq_path": path}

    def stored_images(self) -> StoredImages:
        """Where the images lie."""
        return StoredImages({"lq": self.paths}, self._roots, chosen=self._chosen)
