"""Feature affinity: places of the image resemble each other in the student's features as in the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from basicsr.distill.base import StepContext
from basicsr.distill.features import FeatureTerm
from basicsr.utils.ranges import Few, Weight
from basicsr.utils.registry import METHOD_REGISTRY, check_arguments

_ENTRIES_AT_ONCE = 2**24  # 64 MiB in float32, but at least one image's matrix


@METHOD_REGISTRY.register()
class FAKD(FeatureTerm):
    """L_AD = mean over positions k of mean(|A(F_S^k) - A(F_T^k)|), A(F) = F~^T F~.

    He et al., "FAKD: Feature-Affinity Based Knowledge Distillation for Efficient Image Super-Resolution", ICIP 2020.
    F~ is F, (C, H W), with each place's features divided by their Euclidean norm over channels; A, (H W, H W), holds
    the cosines of all pairs of places. Places where all channels are 0 give 0 and no gradient.

    As published: three positions, whose parts are summed (`reduction: sum`), and 10 L_AD beside pixel losses of images
    in [0, 255]; beside images in [0, 1], as here, its authors' balance is a weight of 10 / 255. Only a few images'
    matrices (2304 x 2304 for 48x48 features) are in memory at a time, in float32, and none is kept for the backward
    pass. There are no second derivatives. Nothing is trained beside the student; channels may differ.

    Args:
        reduction: 'mean' or 'sum' over positions.
        loss_weight: weight of L_AD.
    """

    batch_scope = "image"

    def __init__(
        self,
        *,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        positions: Few = 3,
        reduction: Literal["mean", "sum"] = "mean",
        loss_weight: Weight = 10.0,
    ) -> None:
        check_arguments(FAKD, locals())
        super().__init__(student_taps, teacher_taps, positions)
        self._reduction = reduction
        self.weights = {"l_fakd": loss_weight}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_fakd`."""
        losses = torch.stack([affinity_distance(student, teacher) for student, teacher in self.pairs(context)])
        return {"l_fakd": losses.mean() if self._reduction == "mean" else losses.sum()}


def affinity_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of the affinities of F_S (B, C_S, H, W) and F_T (B, C_T, H, W); F_T is a constant."""
    distance: torch.Tensor = _AffinityDistance.apply(_unit(student), _unit(teacher))
    return distance


def _unit(features: torch.Tensor) -> torch.Tensor:
    """F~, (B, C, H W): length 1 over the channels at each place, or 0."""
    flat = features.flatten(2)
    length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    # By infinity, not by a small number: that would multiply the gradient by its inverse.
    return flat / length.masked_fill(length == 0, torch.inf)


class _AffinityDistance(torch.autograd.Function):
    """mean(|S^T S - T^T T|) for S (B, C_S, N), T (B, C_T, N); gradient 2 S sign(S^T S - T^T T) / (B N^2).

    The gradient is made in the forward pass, while a matrix is there, and is all that is kept.
    """

    @staticmethod
    def forward(ctx: Any, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        count, _, places = student.shape
        entries = count * places**2
        wanted = ctx.needs_input_grad[0]
        step = max(1, _ENTRIES_AT_ONCE // places**2)
        sums, gradients = [], []
        for own, other in zip(student.split(step), teacher.split(step), strict=True):
            difference = own.mT @ own
            difference.baddbmm_(other.mT, other, alpha=-1)
            # Row by row: over millions of entries at once, a norm in float32 is off in the second digit.
            sums.append(torch.linalg.vector_norm(difference, ord=1, dim=2).sum())
            if wanted:
                gradients.append((own @ difference.sign_()).mul_(2 / entries))
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(sums).sum() / entries

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        return (gradient * ctx.saved_tensors[0], None) if ctx.needs_input_grad[0] else (None, None)
