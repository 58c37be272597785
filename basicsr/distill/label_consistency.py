"""Label consistency by itself: the student's output against what the teacher makes of a transformed input."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from basicsr.distill.base import LossTerm, StepContext
from basicsr.distill.dukd import OPERATIONS, applied, undone
from basicsr.utils.ranges import Probability, Weight
from basicsr.utils.registry import METHOD_REGISTRY
from basicsr.utils.signatures import check_arguments


@METHOD_REGISTRY.register()
class LabelConsistency(LossTerm):
    """L1(I_S, A^-1(T(A(I_LR)))), as the public code of DCKD has it beside its paper's losses.

    A is DUKD's label consistency: colour inversion, flips and transposition, each with the same probability, drawn for
    each image from its seed. DUKD transforms the student's input (`consistency_probability`), this the teacher's.
    Transpositions are left out where LR patches are not square.

    Args:
        probability: of each operation, in [0, 1].
        loss_weight: weight of `l_consistency`.

    Raises:
        OptionsError: an option is out of its range.
    """

    batch_scope = "image"
    teacher_needs = "the teacher on other images"

    def __init__(self, *, probability: Probability = 0.5, loss_weight: Weight = 1.0) -> None:
        check_arguments(LabelConsistency, locals())
        super().__init__()
        self.probability = probability
        self.weights = {"l_consistency": loss_weight}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_consistency`."""
        assert context.teacher is not None
        drawn = np.stack([rng.random(len(OPERATIONS)) for rng in context.generators("label consistency")])
        which = torch.from_numpy(drawn < self.probability)
        if context.lq.shape[-2] != context.lq.shape[-1]:
            which[:, -1] = False
        target = undone(context.teacher(applied(context.lq, which)), which)
        return {"l_consistency": F.l1_loss(context.sr, target)}
