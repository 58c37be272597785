"""LR images alone, whole, where there are no HR images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from basicsr.config.component_blocks import ON_DISK, ImageFolders, ImageLists, StorageBlock
from basicsr.data.base import Color, ImageDataset, TensorConversion, taking_opt
from basicsr.data.image_sets import find_images
from basicsr.data.storage import StoredImages
from basicsr.utils.ranges import Colour, Deviation
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class SingleImageDataset(ImageDataset):
    """LR images from folders, lists, or LMDB databases.

    Args:
        dataroot_lq: a folder, which is read with those below; a pattern such as `photos/**/*.jpg`; an LMDB database; or
            a list of these.
        io_backend: {type: disk}, {type: lmdb} or {type: webdataset}.
        meta_info_file: file that lists the images to use, relative to `dataroot_lq`; None for the whole
            folder. A list has an entry for each folder.
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
        dataroot_lq: ImageFolders,
        io_backend: StorageBlock = ON_DISK,
        meta_info_file: ImageLists | None = None,
        color: Color | None = None,
        mean: Sequence[Colour] | None = None,
        std: Sequence[Deviation] | None = None,
    ) -> None:
        self._images = find_images(io_backend, {"lq": dataroot_lq}, meta_info_file=meta_info_file)
        self._convert = TensorConversion(color, mean, std, self._images.roots["lq"].channels)
        self.paths = [path["lq_path"] for path in self._images.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns {'lq': float32 (C, h, w) RGB in [0, 1], 'lq_path': str}; DataError where it cannot be read."""
        path = self.paths[index]
        return {"lq": self._convert(self._images.roots["lq"].open(path).read()), "lq_path": path}

    def stored_images(self) -> StoredImages:
        """Where the images lie."""
        return StoredImages({"lq": self.paths}, self._images.roots, chosen=self._images.chosen)
