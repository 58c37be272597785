"""A dataset that goes wrong when a test wants it, as a user's own file would register it."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class FailsLate(PairedImageDataset):
    """Pairs of images of which one, counted as they are loaded on one rank, raises an error that is a bug."""

    def __init__(self, *, call: int, scale: int, phase: str, rank: int = 0, **options: Any) -> None:
        super().__init__(scale=scale, phase=phase, **options)
        self._left, self._rank = call, rank

    def load(self, *arguments: Any) -> dict[str, Any]:
        self._left -= (dist.get_rank() if dist.is_initialized() else 0) == self._rank
        return super().load(*arguments) | {"lq_path": str(1 // self._left if self._left <= 0 else "")}
