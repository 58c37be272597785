"""Methods under test: a step's context of random images, and whole KD models of small networks."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm, StepContext
from basicsr.models.kd_model import KDModel
from basicsr.utils.precision import Precision

STUDENT = {
    "type": "EDSR",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 2,
    "upscale": 2,
    "img_range": 1.0,
}
TEACHER = {**STUDENT, "num_feat": 12, "num_block": 3}


def kd_model(
    terms: dict[str, LossTerm],
    *,
    student: dict[str, Any] = STUDENT,
    teacher: dict[str, Any] = TEACHER,
    amp: str = "none",
    amp_teacher: str = "",
    dtype: torch.dtype = torch.float32,
) -> KDModel:
    """A model of small networks with weights from a fixed seed, in training mode; the terms are attached to it."""
    torch.manual_seed(0)
    networks = [build_network(block) for block in (student, teacher)]
    for network in networks:
        network.to(dtype)
    precisions = (Precision("cpu", name) for name in (amp, amp_teacher or amp))
    model = KDModel(*networks, terms, *precisions, student.get("upscale", 1), seed=5)
    return model.to(dtype).train()


def batch(
    count: int = 2, size: int = 28, scale: int = 2, dtype: torch.dtype = torch.float32, seeds: tuple[int, ...] = ()
) -> Batch:
    """`count` LR images of `size` x `size`, noise on a ramp of grey, and HR images of `scale` times their size."""
    generator = torch.Generator().manual_seed(1)
    ramp = torch.linspace(0, 1, size * scale, dtype=dtype)
    gt = 0.5 * ramp + 0.5 * torch.rand(count, 3, size * scale, size * scale, generator=generator, dtype=dtype)
    lq = nn.functional.avg_pool2d(gt, scale) if scale > 1 else gt.clone()
    names = tuple(f"image {number}" for number in range(count))
    return Batch(lq=lq, gt=gt, lq_paths=names, gt_paths=names, seeds=torch.tensor(seeds or range(10, 10 + count)))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def context(batch: int = 3, size: int = 20, seeds: tuple[int, ...] | None = None, dtype=torch.float32) -> StepContext:
    generator = torch.Generator().manual_seed(1)
    sr = torch.rand(batch, 3, size, size, generator=generator, dtype=dtype).requires_grad_()
    sr_teacher = torch.rand(batch, 3, size, size, generator=generator, dtype=dtype)
    return StepContext(
        lq=sr,
        gt=sr_teacher,
        sr=sr,
        sr_teacher=sr_teacher,
        student_features={},
        teacher_features={},
        seeds=torch.tensor(seeds or range(10, 10 + batch)),
        seed=0,
        iteration=1,
        scale=1,
        student=lambda x: x,
        teacher=lambda x: x,
        autocast=nullcontext,
        teacher_autocast=nullcontext,
    )
