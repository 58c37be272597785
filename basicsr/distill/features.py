"""What methods that compare features have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch.autograd.function import once_differentiable

from basicsr.distill.base import LossTerm, NetworkPair, StepContext
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Few
from basicsr.utils.registry import Conflict, check_arguments

MOST_OTHERS = 127  # an int8 counts so far
Others = Annotated[int, Ge(1), Le(MOST_OTHERS)]


class FeatureTerm(LossTerm):
    """Compares feature maps of the student with feature maps of the teacher, position by position.

    Args:
        student_taps: modules of the student, such as `body.15`; by default `positions` stages, evenly spaced.
        teacher_taps: likewise of the teacher, as many.
        positions: how many stages to take by default.

    Raises:
        OptionsError: `positions` is below 1, or the two lists differ in length.
    """

    teacher_needs = "the teacher's features"
    gt_needs = ""

    def __init__(
        self,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        positions: Few = 1,
    ) -> None:
        check_arguments(FeatureTerm, locals(), type(self).__name__)
        super().__init__()
        given = student_taps or teacher_taps
        self._positions = len(given) if given else positions
        self.student_taps = tuple(student_taps or ())
        self.teacher_taps = tuple(teacher_taps or ())

    @staticmethod
    def conflicts(student_taps: Sequence[str] | None, teacher_taps: Sequence[str] | None) -> Iterator[Conflict]:
        given = [taps for taps in (student_taps, teacher_taps) if taps is not None]
        if any(len(taps) != len(given[0]) or not taps for taps in given):
            counts = " and ".join(str(len(taps)) for taps in given)
            yield "student_taps", f"must name as many modules as teacher_taps, at least one, got {counts}"

    def attach(self, networks: NetworkPair) -> None:
        """Chooses the modules left open, makes the heads; OptionsError unless resolutions agree at each position."""
        student, teacher = networks.student, networks.teacher
        self.student_taps = self.student_taps or student.positions(self._positions)
        self.teacher_taps = self.teacher_taps or teacher.positions(self._positions)
        for own, other in zip(self.student_taps, self.teacher_taps, strict=True):
            resolutions = student.resolution(own), teacher.resolution(other)
            if resolutions[0] != resolutions[1]:
                raise OptionsError(
                    f"{type(self).__name__}: '{own}' of the student has features of {resolutions[0]:g} times the"
                    f" input's resolution, '{other}' of the teacher {resolutions[1]:g} times; tap modules of one"
                )
        self.make_heads(
            [student.shape(path)[0] for path in self.student_taps],
            [teacher.shape(path)[0] for path in self.teacher_taps],
        )

    def make_heads(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Makes what the method trains beside the student, from the channels at each position."""

    def pairs(self, context: StepContext) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """F_S and F_T at each position, float32 (B, C_S, H, W) and (B, C_T, H, W), cut to the input's size."""
        limits = context.lq.shape[-2:]
        for own, other in zip(self.student_taps, self.teacher_taps, strict=True):
            student = at_least_float32(context.student_features[own])
            teacher = at_least_float32(context.teacher_features[other])
            height, width = (
                _common(student.shape[axis], teacher.shape[axis], limit)
                for axis, limit in zip((-2, -1), limits, strict=True)
            )
            yield student[..., :height, :width], teacher[..., :height, :width]


def _common(own: int, other: int, image: int) -> int:
    """The side that two feature maps share: the input's, where networks only pad it."""
    smaller = min(own, other)
    return image if image < smaller < 2 * image else smaller


def summed_distances(features: Sequence[torch.Tensor], others: Iterable[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """At each layer i, (B,): sum over j of mean |f_i - o_ij|, the mean over one image's channels and positions.

    `others` are up to `MOST_OTHERS`, each of every layer, (B, C, H, W), or (C, H, W) to compare all images with. They
    get no gradients and may come from a generator: the gradient of f_i needs only the sum of the differences' signs.
    """
    totals = [at_least_float32(feature.new_zeros(len(feature))) for feature in features]
    signs = [torch.zeros_like(feature, dtype=torch.int8) for feature in features]
    with torch.no_grad():
        for other in others:
            for feature, far, total, sign in zip(features, other, totals, signs, strict=True):
                difference = at_least_float32(feature) - at_least_float32(far)
                sign += difference.sign().to(torch.int8)
                total += difference.abs_().flatten(1).mean(1)
                del difference, far
            del other  # before the next is made
    return [_Summed.apply(*layer) for layer in zip(features, totals, signs, strict=True)]


class _Summed(torch.autograd.Function):
    """The total as it is; its gradient is that of the mean absolute differences whose signs were summed."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, total: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(signs)
        ctx.dtype = features.dtype
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (signs,) = ctx.saved_tensors
        each = gradient / signs[0].numel()
        return (signs * each.view(-1, 1, 1, 1)).to(ctx.dtype), None, None
