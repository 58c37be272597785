"""LR images of training sets, as their network sees them, to calibrate a quantised network with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from basicsr.config.schema import DatasetOptions, FrozenMapping
from basicsr.data.batch import in_unit_range
from basicsr.data.loading import build_eval_dataset
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.errors import UserError
from basicsr.utils.registry import DATASET_REGISTRY

LARGEST_SIDE = 256


def calibration_images(
    sets: Sequence[DatasetOptions], count: int, *, all_readable: bool = False
) -> list[tuple[str, torch.Tensor]]:
    """Names and LR images (C, h, w), float32, of training sets: `count` or a few more, the same at every call.

    They are spread evenly over the sets and over the images of each. Images are whole, or cut to 256x256 in their
    middle; of datasets that give training patches only, patches. Images that cannot be read are passed over, for the
    check of all images names them; with `all_readable` they raise DataError. So does a set that cannot be built, or
    OptionsError.
    """
    found = []
    share = -(-count // len(sets))
    for block in sets:
        kind = DATASET_REGISTRY.get(block.type)
        if isinstance(kind, type) and issubclass(kind, PairedImageDataset):
            arguments = {key: value for key, value in block.arguments.items() if key != "teacher_cache"}
            block = block.model_copy(update={"phase": "val", "arguments": FrozenMapping(arguments)})
        dataset = build_eval_dataset(block)
        taken = min(share, len(dataset))
        for index in (place * len(dataset) // taken for place in range(taken)):
            try:
                sample = dataset[index]
            except UserError:
                if all_readable:
                    raise
                continue
            found.append((str(sample.get("lq_path", index)), _middle(in_unit_range(sample["lq"]))))
    return found


def _middle(image: torch.Tensor) -> torch.Tensor:
    """An image (C, h, w) of which no side is longer than `LARGEST_SIDE`."""
    for axis in (1, 2):
        length = image.shape[axis]
        kept = min(length, LARGEST_SIDE)
        image = image.narrow(axis, (length - kept) // 2, kept)
    return image
