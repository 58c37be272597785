"""What methods that compare feature maps have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from basicsr.distill.base import StepContext, Term
from basicsr.distill.networks import PROBE_SIZE, NetworkPair
from basicsr.losses.loss_util import at_least_float32
from basicsr.utils.errors import OptionsError


class FeatureTerm(Term):
    """Compares feature maps of the student with feature maps of the teacher, position by position.

    Args:
        student_taps: modules of the student, such as `body.15`; where left out, `positions` stages, evenly spaced.
        teacher_taps: likewise of the teacher, as many.
        positions: how many stages to take where taps are left out.

    Raises:
        OptionsError: `positions` is below 1, or the two lists are not of one length.
    """

    def __init__(
        self,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        positions: int = 1,
    ) -> None:
        super().__init__()
        if positions < 1:
            raise OptionsError(f"{type(self).__name__}: positions is {positions}, allowed: 1 and more")
        given = [taps for taps in (student_taps, teacher_taps) if taps is not None]
        if any(len(taps) != len(given[0]) or not taps for taps in given):
            counts = " and ".join(str(len(taps)) for taps in given)
            raise OptionsError(
                f"{type(self).__name__}: student_taps and teacher_taps must name equally many modules, at least one,"
                f" got {counts}"
            )
        self._positions = len(given[0]) if given else positions
        self.student_taps = tuple(student_taps or ())
        self.teacher_taps = tuple(teacher_taps or ())

    def attach(self, networks: NetworkPair) -> None:
        """Chooses the taps that the options left open, then lets the method make its heads.

        Raises:
            OptionsError: a tap is no module with a feature map, or was left out and the network has no stages.
        """
        self.student_taps = self.student_taps or networks.student.positions(self._positions)
        self.teacher_taps = self.teacher_taps or networks.teacher.positions(self._positions)
        student = networks.student.shapes(self.student_taps)
        teacher = networks.teacher.shapes(self.teacher_taps)
        for own, other, (_, *size), (_, *other_size) in zip(
            self.student_taps, self.teacher_taps, student, teacher, strict=True
        ):
            if not _same_resolution(size, other_size):
                raise OptionsError(
                    f"{type(self).__name__}: '{own}' of the student gives {size[0]}x{size[1]} features of a"
                    f" {PROBE_SIZE}x{PROBE_SIZE} image,"
                    f" '{other}' of the teacher {other_size[0]}x{other_size[1]}; tap modules of one resolution"
                )
        self.make_heads([shape[0] for shape in student], [shape[0] for shape in teacher])

    def make_heads(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Makes what the method trains beside the student, from the channels at each position."""

    def pairs(self, context: StepContext) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """F_S and F_T at each position, float32, (B, C_S, H, W) and (B, C_T, H, W).

        Where one of the networks extends its input to multiples of a window, what lies beyond is cut off.
        """
        for own, other in zip(self.student_taps, self.teacher_taps, strict=True):
            student = at_least_float32(context.student_features[own])
            teacher = at_least_float32(context.teacher_features[other])
            height = min(student.shape[-2], teacher.shape[-2])
            width = min(student.shape[-1], teacher.shape[-1])
            yield student[..., :height, :width], teacher[..., :height, :width]


def _same_resolution(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether sizes of two networks' features for one input differ by an extension to multiples of a window at most."""

    def factor(side: int) -> int:
        return side // PROBE_SIZE or -(PROBE_SIZE // side)

    return list(map(factor, size)) == list(map(factor, other))
