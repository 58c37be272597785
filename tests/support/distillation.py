"""A step's context with random images and features, for methods under test."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext

import torch

from basicsr.distill.base import StepContext


def context(batch: int = 3, size: int = 20, seeds: tuple[int, ...] | None = None, dtype=torch.float32) -> StepContext:
    generator = torch.Generator().manual_seed(1)
    sr = torch.rand(batch, 3, size, size, generator=generator, dtype=dtype).requires_grad_()
    sr_teacher = torch.rand(batch, 3, size, size, generator=generator, dtype=dtype)

    def features(trained: bool) -> defaultdict[str, torch.Tensor]:
        shape = (batch, 8, size // 2, size // 2)
        return defaultdict(lambda: torch.rand(shape, generator=generator, dtype=dtype).requires_grad_(trained))

    return StepContext(
        lq=sr,
        gt=sr_teacher,
        sr=sr,
        sr_teacher=sr_teacher,
        student_features=features(True),
        teacher_features=features(False),
        seeds=torch.tensor(seeds or range(10, 10 + batch)),
        iteration=1,
        scale=1,
        student=lambda x: x,
        teacher=lambda x: x,
        autocast=nullcontext,
    )
