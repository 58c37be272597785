"""Hints of FitNets: the student's features, lifted to the teacher's width, match the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from basicsr.distill.base import NetworkPair, StepContext
from basicsr.distill.features import FeatureTerm
from basicsr.utils.ranges import Few, Weight
from basicsr.utils.registry import METHOD_REGISTRY


@METHOD_REGISTRY.register()
class FitNet(FeatureTerm):
    """L_hint = mean over positions k of mean((r_k(F_S^k) - F_T^k)^2).

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3 (which halves a sum). r_k is a 1x1 convolution
    with bias from the student's to the teacher's channels, trained with the student. The paper takes the hint from the
    middle of the body, and first trains the lower half of the student by it alone; here several positions lie evenly
    inside the body, not at its end, and all is trained at once.

    The loss grows with the square of the features: `img_range: 255.` makes it tens of thousands of times as large as
    with 1. No SR paper gives its weight; in the short trainings of docs/study.md a weight of 1 did well.

    Args:
        loss_weight: weight of L_hint.
    """

    batch_scope = "image"

    def __init__(
        self,
        *,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        positions: Few = 1,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__(student_taps, teacher_taps, positions)
        self.weights = {"l_fitnet": loss_weight}
        self.regressors = nn.ModuleList()

    def attach(self, networks: NetworkPair) -> None:
        """As every method on features, with positions inside the body."""
        inside = self._positions + 1
        self.student_taps = self.student_taps or networks.student.positions(inside)[:-1]
        self.teacher_taps = self.teacher_taps or networks.teacher.positions(inside)[:-1]
        super().attach(networks)

    def make_heads(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """One regressor for each position."""
        for own, other in zip(student_channels, teacher_channels, strict=True):
            self.regressors.append(nn.Conv2d(own, other, 1))

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_fitnet`."""
        # In float32: the convolution costs little, and its result is squared.
        pairs = zip(self.regressors, self.pairs(context), strict=True)
        losses = [F.mse_loss(regressor(student), teacher) for regressor, (student, teacher) in pairs]
        return {"l_fitnet": torch.stack(losses).mean()}
