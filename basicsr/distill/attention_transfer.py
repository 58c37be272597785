"""Attention transfer: student and teacher put their energy at the same places of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from basicsr.distill.base import StepContext
from basicsr.distill.features import FeatureTerm
from basicsr.utils.ranges import Few, Weight
from basicsr.utils.registry import METHOD_REGISTRY


@METHOD_REGISTRY.register()
class AttentionTransfer(FeatureTerm):
    """L_AT = mean over positions k and images of |A(F_S^k) - A(F_T^k)|^2, A(F) = Q / |Q|, Q = sum over channels of F^2.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2: Q is a map (H, W), |.| its
    Euclidean norm. The squared distance lies in [0, 2] and does not depend on the size of the patch. The authors' code
    takes the mean over places and a weight of 1000, on 48x48 maps 0.43 of ours at each position and 1.3 at three,
    hence our default of 1. No SR paper gives its weight. Nothing is trained beside the student; channels may differ.

    Args:
        loss_weight: weight of L_AT.
    """

    batch_scope = "image"

    def __init__(
        self,
        *,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        positions: Few = 3,
        loss_weight: Weight = 1.0,
    ) -> None:
        super().__init__(student_taps, teacher_taps, positions)
        self.weights = {"l_at": loss_weight}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_at`."""
        distances = [
            (attention(student) - attention(teacher)).square().sum(1).mean() for student, teacher in self.pairs(context)
        ]
        return {"l_at": torch.stack(distances).mean()}


def attention(features: torch.Tensor) -> torch.Tensor:
    """A(F), (B, H W), each row of length 1, for features F (B, C, H, W); zeros where there are nothing but zeros."""
    return F.normalize(features.square().sum(1).flatten(1), dim=1)
