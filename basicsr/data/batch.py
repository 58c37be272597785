"""What the loader yields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from basicsr.utils.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Some training samples.

    Attributes:
        lq: LR images I_LR, float32 (B, 3, h, w), RGB in [0, 1].
        gt: HR images I_GT, float32 (B, 3, sh, sw); None where the dataset has none.
        lq_paths: file or LMDB key of each LR image.
        gt_paths: likewise of the HR images; empty strings where the dataset names none.
        seeds: int64 (B,), always on the CPU: the seed of each sample, from which its random choices derive.
        skipped: 'path: reason' of each image in whose place another one was taken.
    """

    lq: torch.Tensor
    gt: torch.Tensor | None
    lq_paths: tuple[str, ...]
    gt_paths: tuple[str, ...]
    seeds: torch.Tensor
    skipped: tuple[str, ...] = ()

    def to(self, device: torch.device | str, channels_last: bool = False) -> Batch:
        """The batch on `device`, copied without waiting where it is pinned; `channels_last` is a layout."""
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def moved(images: torch.Tensor) -> torch.Tensor:
            return images.to(device, non_blocking=True).contiguous(memory_format=layout)

        return replace(self, lq=moved(self.lq), gt=None if self.gt is None else moved(self.gt))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by torch's DataLoader."""
        return replace(self, lq=self.lq.pin_memory(), gt=None if self.gt is None else self.gt.pin_memory())


def collate(samples: Sequence[Mapping[str, Any]], seeds: Sequence[int], skipped: Sequence[str] = ()) -> Batch:
    """Stacks samples, dicts with `lq` and optionally `gt`, `lq_path`, `gt_path`, into a batch.

    Raises:
        DataError: a sample has no `lq`, some have `gt` and others not, or sizes differ.
    """
    lq_paths = tuple(str(sample.get("lq_path", "")) for sample in samples)
    gt_paths = tuple(str(sample.get("gt_path", "")) for sample in samples)
    return Batch(
        lq=_stack("lq", samples, lq_paths),
        gt=_stack("gt", samples, gt_paths) if any("gt" in sample for sample in samples) else None,
        lq_paths=lq_paths,
        gt_paths=gt_paths,
        seeds=torch.tensor(seeds, dtype=torch.int64),
        skipped=tuple(skipped),
    )


def _stack(key: str, samples: Sequence[Mapping[str, Any]], paths: Sequence[str]) -> torch.Tensor:
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
    return torch.stack(images).contiguous()
