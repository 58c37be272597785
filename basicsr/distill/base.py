"""The contract between the training step and what a student learns from.

A term sees one frozen `StepContext` and returns its named parts, unweighted; the model multiplies each part by the
weight that the term declares, once, and sums. A term is a module: its heads are its parameters and are trained with
the student, saved in the training state and left out of the exported student. It never steps, logs, saves or asks
for a rank.

Its life: built from its options, then shown the two networks once (`attach`), then asked for its parts in every step
(`forward`) and told of every update (`after_update`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from basicsr.distill.networks import NetworkPair
from basicsr.losses import build_loss
from basicsr.losses.loss_util import BatchScope, batch_scope_of
from basicsr.utils import randomness
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import LOSS_REGISTRY


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
        seed: the run's seed, from which choices derive that are one for the whole step.
        iteration: the current iteration, from 1.
        scale: upscaling factor s.
        student: runs the student on another input, with gradients.
        teacher: runs the teacher on another input, without; None where no term needs it, or it is not there.
        autocast: context manager for the run's precision. Terms run in float32; a heavy head may opt in.
        teacher_autocast: likewise for the teacher's precision, for what a term runs as it would a teacher.
    """

    lq: torch.Tensor
    gt: torch.Tensor
    sr: torch.Tensor
    sr_teacher: torch.Tensor | None
    student_features: Mapping[str, torch.Tensor]
    teacher_features: Mapping[str, torch.Tensor]
    seeds: torch.Tensor
    seed: int
    iteration: int
    scale: int
    student: Callable[[torch.Tensor], torch.Tensor]
    teacher: Callable[[torch.Tensor], torch.Tensor] | None
    autocast: Callable[[], AbstractContextManager[Any]]
    teacher_autocast: Callable[[], AbstractContextManager[Any]]

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

    def step_generator(self, purpose: str) -> np.random.Generator:
        """A random generator derived from the run's seed, the iteration and `purpose`: the same on every rank."""
        return randomness.generator(randomness.sample_seed(self.seed, self.iteration), purpose)

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Numbers uniform in [0, 1), float32 (B, *shape) on the images' device, each image's from its own seed.

        As `generators`, but fast enough for as many numbers as features have.
        """
        device = self.lq.device
        drawn = []
        for seed in self.seeds:
            own = torch.Generator(device).manual_seed(randomness.derived_seed(int(seed), purpose))
            drawn.append(torch.rand(shape, generator=own, device=device))
        return torch.stack(drawn)


class LossTerm(nn.Module):
    """One contribution to the student's loss.

    Attributes:
        needs_teacher: whether the teacher's output or features are read.
        teacher_needs: what of the teacher is used beside its output, in words such as "the teacher's features". Empty
            where the output alone is enough; only then may it come from a cache, without the teacher.
        replaces_student: whether the student is run with weights that the term trains in its place, see
            `student_weights`; such a term is shown the networks, and told of updates, before the others.
        batch_scope: which images the term compares, as `losses.loss_util.BatchScope` says, or a static method that
            tells it from the term's options. The default is the strictest: a run goes on with another number of ranks
            only where no term minds.
        needs_average: whether the moving average of the student's weights is followed (`after_average`), so that the
            options must keep one.
        runs_student_parts: whether parts of the student are run by themselves, with the weights that they hold.
        student_taps: module paths in the student whose outputs are wanted, such as `body.31`.
        teacher_taps: likewise in the teacher.
        weights: weight of each part that `forward` returns, by its name.
        remarks: what the log should say at the start, a line each, such as what was loaded.
    """

    needs_teacher: ClassVar[bool] = True
    teacher_needs: ClassVar[str] = "the teacher itself, as its class does not say otherwise (teacher_needs)"
    replaces_student: ClassVar[bool] = False
    runs_student_parts: ClassVar[bool] = False
    batch_scope: ClassVar[Any] = "one rank"
    needs_average: bool = False
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    weights: Mapping[str, float] = {}
    remarks: Sequence[str] = ()

    def attach(self, networks: NetworkPair) -> None:
        """Shows the term the two networks, once, before training: here it chooses its taps and makes heads that fit.

        Raises:
            OptionsError: the term cannot work with these networks.
        """

    def check_output(self, shape: Sequence[int]) -> None:
        """Shows the term, before training, the shape (C, sH, sW) of the student's outputs, the smallest there will be.

        Raises:
            OptionsError: the term cannot work with such images.
        """

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns the unweighted parts, scalars by name (`l_...`).

        Every trained parameter must be in the graph of some part in every step, if need be by `nothing_of`.
        """
        raise NotImplementedError

    def student_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the student is to be run with, of a term that `replaces_student`.

        They have the names of the student's parameters and carry gradients.
        """
        raise NotImplementedError

    def after_update(self, student: nn.Module, iteration: int) -> None:
        """Called without gradients after each iteration, on every rank.

        Args:
            student: as the iteration left it; not updated where the options let the discriminator learn alone.
            iteration: the one that has just been done, from 1.
        """

    def after_average(self, average: nn.Module, iteration: int) -> None:
        """Called without gradients after `after_update`, where the options keep a moving average of the student.

        Args:
            average: the student with the averaged weights, after this iteration.
            iteration: the one that has just been done, from 1.
        """


def nothing_of(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Zero, with all `parameters` in its graph.

    Added to a part, it lets parameters that a step did not need have a gradient of zero all the same, which ranks can
    average.
    """
    return torch.stack([parameter.sum() for parameter in parameters]).sum() * 0.0


def criterion_scope(block: Mapping[str, Any]) -> BatchScope:
    """The batch scope of the registered loss that a block names by `type`."""
    return batch_scope_of(LOSS_REGISTRY.get(block["type"]), block)


class CriterionTerm(LossTerm):
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

    def check_output(self, shape: Sequence[int]) -> None:
        """As the loss says of itself, where it has a method `check_output`."""
        check = getattr(self.criterion, "check_output", None)
        if check is not None:
            check(shape)

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
    teacher_needs = ""
    batch_scope = staticmethod(criterion_scope)

    def target(self, context: StepContext) -> torch.Tensor:
        """I_GT."""
        return context.gt
