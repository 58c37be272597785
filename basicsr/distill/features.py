"""What methods that compare feature maps have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from basicsr.distill.base import LossTerm, StepContext
from basicsr.distill.networks import NetworkPair
from basicsr.losses.loss_util import at_least_float32
from basicsr.utils.errors import OptionsError
from basicsr.utils.ranges import Few
from basicsr.utils.signatures import Conflict, check_arguments


class FeatureTerm(LossTerm):
    """Compares feature maps of the student with feature maps of the teacher, position by position.

    Args:
        student_taps: modules of the student, such as `body.15`; where left out, `positions` stages, evenly spaced.
        teacher_taps: likewise of the teacher, as many.
        positions: how many stages to take where taps are left out.

    Raises:
        OptionsError: `positions` is below 1, or the two lists are not of one length.
    """

    teacher_needs = "the teacher's features"

    def __init__(
        self,
        student_taps: Sequence[str] | None = None,
        teacher_taps: Sequence[str] | None = None,
        positions: Few = 1,
    ) -> None:
        check_arguments(FeatureTerm, locals(), type(self).__name__)
        super().__init__()
        given = [taps for taps in (student_taps, teacher_taps) if taps is not None]
        self._positions = len(given[0]) if given else positions
        self.student_taps = tuple(student_taps or ())
        self.teacher_taps = tuple(teacher_taps or ())

    @staticmethod
    def conflicts(student_taps: Sequence[str] | None, teacher_taps: Sequence[str] | None) -> Iterator[Conflict]:
        """See `basicsr.utils.signatures.find_problems`."""
        given = [taps for taps in (student_taps, teacher_taps) if taps is not None]
        if any(len(taps) != len(given[0]) or not taps for taps in given):
            counts = " and ".join(str(len(taps)) for taps in given)
            yield "student_taps", f"must name as many modules as teacher_taps, at least one, got {counts}"

    def attach(self, networks: NetworkPair) -> None:
        """Chooses the taps that the options left open, then lets the method make its heads.

        Raises:
            OptionsError: a tap is no module with a feature map, or was left out and the network has no stages.
        """
        self.student_taps = self.student_taps or networks.student.positions(self._positions)
        self.teacher_taps = self.teacher_taps or networks.teacher.positions(self._positions)
        for own, other in zip(self.student_taps, self.teacher_taps, strict=True):
            resolutions = networks.student.resolution(own), networks.teacher.resolution(other)
            if resolutions[0] != resolutions[1]:
                raise OptionsError(
                    f"{type(self).__name__}: '{own}' of the student has features of {resolutions[0]:g} times the"
                    f" input's resolution, '{other}' of the teacher {resolutions[1]:g} times; tap modules of one"
                )
        student, teacher = networks.student, networks.teacher
        self.make_heads(
            [student.channels(path) for path in self.student_taps],
            [teacher.channels(path) for path in self.teacher_taps],
        )

    def make_heads(self, student_channels: Sequence[int], teacher_channels: Sequence[int]) -> None:
        """Makes what the method trains beside the student, from the channels at each position."""

    def pairs(self, context: StepContext) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """F_S and F_T at each position, float32, (B, C_S, H, W) and (B, C_T, H, W).

        Where networks extend their input to multiples of a window, what lies beyond it is cut off.
        """
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
    """The side that two feature maps share: the input's, where they have its resolution and extend it."""
    smaller = min(own, other)
    return image if image < smaller < 2 * image else smaller
