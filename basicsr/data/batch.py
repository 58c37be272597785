"""What the loader yields.

Images of 8 bits travel as uint8, a quarter of float32's bytes, and become float32 where they are used: `Batch.to`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from basicsr.data.teacher_outputs import decode
from basicsr.utils.errors import DataError

_FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}


class Skipped(NamedTuple):
    """A sample that cannot be used.

    Attributes:
        sample: its index in the dataset.
        note: 'path: reason' of one of its images.
    """

    sample: int
    note: str


@dataclass(frozen=True)
class Batch:
    """Some training samples.

    As the loader yields it, images may still be of whole numbers in any layout: uint8 in [0, 255]; `sr_teacher` uint16.
    After `to` all are as said here.

    Attributes:
        lq: LR images I_LR, float32 (B, 3, h, w), RGB in [0, 1].
        gt: HR images I_GT, float32 (B, 3, sh, sw); None where the dataset has none.
        lq_paths: file or LMDB key of each LR image.
        gt_paths: likewise of the HR images; empty strings where the dataset names none.
        seeds: int64 (B,), always on the CPU: the seed of each sample, from which its random choices derive.
        skipped: each sample in whose place another one was taken, and why.
        sr_teacher: the teacher's outputs I_T for these images from a cache, float32, shape of `gt`; None without one.
    """

    lq: torch.Tensor
    gt: torch.Tensor | None
    lq_paths: tuple[str, ...]
    gt_paths: tuple[str, ...]
    seeds: torch.Tensor
    skipped: tuple[Skipped, ...] = ()
    sr_teacher: torch.Tensor | None = None

    def to(self, device: torch.device | str, channels_last: bool = False) -> Batch:
        """The batch on `device` in float32, copied without waiting where it is pinned; `channels_last` is a layout."""
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def moved(images: torch.Tensor) -> torch.Tensor:
            return images.to(device, non_blocking=True)

        return replace(
            self,
            lq=in_unit_range(moved(self.lq), layout),
            gt=None if self.gt is None else in_unit_range(moved(self.gt), layout),
            sr_teacher=None if self.sr_teacher is None else _decoded(moved(self.sr_teacher), layout),
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by torch's DataLoader."""
        gt, sr_teacher = (None if images is None else images.pin_memory() for images in (self.gt, self.sr_teacher))
        return replace(self, lq=self.lq.pin_memory(), gt=gt, sr_teacher=sr_teacher)


def collate(
    samples: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    skipped: Sequence[Skipped] = (),
    empty: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray] = np.empty,
) -> Batch:
    """Stacks samples, dicts with `lq` and optionally `gt`, `sr_teacher`, `lq_path`, `gt_path`, into a batch.

    Args:
        samples: at least one.
        seeds: of each.
        skipped: for `Batch`.
        empty: where memory for images of whole numbers comes from.

    Raises:
        DataError: a sample has no `lq`, some have `gt` or `sr_teacher` and others not, or sizes differ.
    """
    lq_paths = tuple(str(sample.get("lq_path", "")) for sample in samples)
    gt_paths = tuple(str(sample.get("gt_path", "")) for sample in samples)

    def has(key: str) -> bool:
        return any(key in sample for sample in samples)

    return Batch(
        lq=_stack("lq", samples, lq_paths, empty),
        gt=_stack("gt", samples, gt_paths, empty) if has("gt") else None,
        lq_paths=lq_paths,
        gt_paths=gt_paths,
        seeds=torch.tensor(seeds, dtype=torch.int64),
        skipped=tuple(skipped),
        sr_teacher=_stack("sr_teacher", samples, gt_paths, empty) if has("sr_teacher") else None,
    )


def _stack(
    key: str,
    samples: Sequence[Mapping[str, Any]],
    paths: Sequence[str],
    empty: Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray],
) -> torch.Tensor:
    images: list[torch.Tensor] = []
    for sample, path in zip(samples, paths, strict=True):
        image = sample.get(key)
        if not isinstance(image, torch.Tensor) or image.dim() != 3:
            found = f"{image.dim()} dimensions" if isinstance(image, torch.Tensor) else type(image).__name__
            raise DataError(f"'{key}' of sample {path} must be a tensor (C, H, W), got {found}; mend the dataset")
        images.append(image)
        if image.shape != images[0].shape:
            first, other = (" x ".join(map(str, entry.shape)) for entry in (images[0], image))
            raise DataError(
                f"the images of a batch must have one size, got '{key}' {first} ({paths[0]}) and {other} "
                f"({path}); crop them to patches (gt_size) or set batch_size_per_gpu to 1"
            )
    if images[0].is_floating_point() or any(image.dtype != images[0].dtype for image in images):
        return torch.stack([in_unit_range(image) for image in images]).contiguous()
    # The pixels of whole numbers lie side by side, (H, W, C): so each image is copied in one piece, and by numpy, since
    # PyTorch would share so little among threads.
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    stacked = np.stack(arrays, out=empty((len(arrays), *arrays[0].shape), arrays[0].dtype))
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def in_unit_range(images: torch.Tensor, layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """uint8 or uint16 as float32 in [0, 1], to the bit as `img_util.to_float32`; floating-point ones keep their values.

    Args:
        images: (C, H, W), or (B, C, H, W) where `layout` is that of channels last.
        layout: of the result.
    """
    full = _FULL_SCALE.get(images.dtype)
    if full is None:
        return images.contiguous(memory_format=layout)
    # By a tensor on the device: PyTorch multiplies by the reciprocal of a plain number on CUDA, which rounds otherwise.
    return images.to(torch.float32, memory_format=layout).div_(torch.full((), full, device=images.device))


def _decoded(outputs: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    values = decode(outputs) if outputs.dtype == torch.uint16 else outputs
    return values.contiguous(memory_format=layout)
