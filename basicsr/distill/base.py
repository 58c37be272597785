"""The contract between the training step and what a student learns from.

A term sees one frozen `StepContext` and returns its named parts, unweighted; the model multiplies each part by the
weight that the term declares, once, and sums. A term is a module: its heads are its parameters and are trained with
the student, saved in the training state and left out of the exported student. It never steps, logs, saves or asks
for a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from basicsr.losses import build_loss
from basicsr.utils import randomness
from basicsr.utils.errors import OptionsError


@dataclass(frozen=True)
class StepContext:
    """Everything that a term may look at in one training step.

    Attributes:
        lq: LR input I_LR, (B, C, H, W) in [0, 1].
        gt: HR image I_GT, (B, C, sH, sW) in [0, 1].
        sr: the student's output I_S, float32, shape of `gt`.
        sr_teacher: the teacher's output I_T, float32, shape of `gt`; None where no term needs the teacher.
        student_features: outputs of the student's modules named in the term's `student_taps`, (B, C, H, W).
        teacher_features: likewise of the teacher, without gradients.
        seeds: int64 (B,), on the CPU: the seed of each sample, from which its random choices derive.
        iteration: the current iteration, from 1.
        scale: upscaling factor s.
        student: runs the student on another input, with gradients.
        teacher: runs the teacher on another input, without; None where no term needs it.
        autocast: context manager for the run's precision. Terms run in float32; a heavy head may opt in.
    """

    lq: torch.Tensor
    gt: torch.Tensor
    sr: torch.Tensor
    sr_teacher: torch.Tensor | None
    student_features: Mapping[str, torch.Tensor]
    teacher_features: Mapping[str, torch.Tensor]
    seeds: torch.Tensor
    iteration: int
    scale: int
    student: Callable[[torch.Tensor], torch.Tensor]
    teacher: Callable[[torch.Tensor], torch.Tensor] | None
    autocast: Callable[[], AbstractContextManager[Any]]

    @property
    def teacher_output(self) -> torch.Tensor:
        """`sr_teacher`, for terms that declare `needs_teacher`."""
        assert self.sr_teacher is not None, "a term that reads the teacher must set needs_teacher"
        return self.sr_teacher

    def generators(self, purpose: str) -> list[np.random.Generator]:
        """One random generator per image, (B,), derived from its seed and `purpose`.

        A sample's draws do not depend on the batch, rank or worker that it comes with, so that they repeat after a
        resume and under any number of ranks. Equal purposes give equal draws.
        """
        return [randomness.generator(int(seed), purpose) for seed in self.seeds]


class Term(nn.Module):
    """One contribution to the student's loss.

    Attributes:
        needs_teacher: whether the teacher's output or features are read.
        student_taps: module paths in the student whose outputs are wanted, such as `body.31`.
        teacher_taps: likewise in the teacher.
        weights: weight of each part that `forward` returns, by its name.
    """

    needs_teacher: ClassVar[bool] = True
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    weights: Mapping[str, float]

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns the unweighted parts, scalars by name (`l_...`)."""
        raise NotImplementedError


class CriterionTerm(Term):
    """A registered loss between the student's output and a target image.

    Args:
        name: the part's name in logs.
        criterion: options of the loss; its `loss_weight` becomes the part's weight and is not applied twice.
    """

    def __init__(self, name: str, criterion: Mapping[str, Any]) -> None:
        super().__init__()
        if "type" not in criterion:
            raise OptionsError(f"the loss of {name} needs a 'type'")
        self._name = name
        weight = float(criterion.get("loss_weight", 1.0))
        self.weights = {name: weight, "l_style": weight}
        self.criterion = build_loss({key: value for key, value in criterion.items() if key != "loss_weight"})

    def target(self, context: StepContext) -> torch.Tensor:
        """The image that the student's output is compared with."""
        raise NotImplementedError

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns {name: loss}; a perceptual loss with a style weight adds `l_style`."""
        loss = self.criterion(context.sr, self.target(context))
        if not isinstance(loss, tuple):
            return {self._name: loss}
        named = zip((self._name, "l_style"), loss, strict=True)
        return {name: part for name, part in named if part is not None}


class Reconstruction(CriterionTerm):
    """A loss against the HR image, such as L_rec = L1(I_S, I_GT)."""

    needs_teacher = False

    def target(self, context: StepContext) -> torch.Tensor:
        """I_GT."""
        return context.gt
