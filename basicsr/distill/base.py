"""The contract between the training step and what a student learns from.

A term is built from its options, sees the two networks once (`attach`), returns its unweighted parts in every step
(`forward`) and is called after every update (`after_update`). The model multiplies each part by its weight, once, and
sums. A term is a module: its heads are its parameters, trained with the student, saved in the training state and left
out of the exported student. It never steps, logs or saves, and never asks for a rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from basicsr.archs.arch_util import StagedNetwork
from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.data.degradations.operations import sharpened
from basicsr.losses import build_loss
from basicsr.losses.basic_loss import BatchScope, batch_scope_of
from basicsr.utils import randomness
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY


@dataclass(frozen=True)
class StepContext:
    """Everything that a term may look at in one training step.

    Attributes:
        lq: LR input I_LR, (B, C, H, W) in [0, 1].
        gt: HR image I_GT, (B, C, sH, sW) in [0, 1]; None in an iteration without HR images.
        sr: the student's output I_S, float32, (B, C, sH, sW).
        sr_teacher: the teacher's output I_T, float32, shape of `sr`; None where no term needs the teacher.
        student_features: outputs of the student's modules named in `student_taps`, (B, C, H, W).
        teacher_features: likewise of the teacher, without gradients.
        seeds: int64 (B,), on the CPU: one seed per sample, for its random choices.
        seed: the run's seed, for choices that are one for the whole step.
        iteration: the current iteration, from 1.
        scale: upscaling factor s.
        student: runs the student on another input, with gradients.
        teacher: runs the teacher on another input, without; None where no term needs it or only its outputs exist.
        autocast: context manager for the run's precision. Terms run in float32; a heavy head may opt in.
        teacher_autocast: likewise for the teacher's precision.
    """

    lq: torch.Tensor
    gt: torch.Tensor | None
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

    @property
    def hr(self) -> torch.Tensor:
        """`gt`, for terms that declare what they need it for; raises OptionsError for others where there is none."""
        if self.gt is None:
            raise OptionsError("a loss reads HR images, and there are none: its class must declare that (gt_needs)")
        return self.gt

    @cached_property
    def sharpened_hr(self) -> torch.Tensor:
        """`hr` after unsharp masking, as Real-ESRGAN's targets are."""
        return sharpened(self.hr)

    def generators(self, purpose: str) -> list[np.random.Generator]:
        """One random generator per image from its seed and `purpose`, whatever the batch, rank or worker."""
        return [randomness.generator(int(seed), purpose) for seed in self.seeds]

    def step_generator(self, purpose: str) -> np.random.Generator:
        """A random generator derived from the run's seed, the iteration and `purpose`: the same on every rank."""
        return randomness.generator(randomness.sample_seed(self.seed, self.iteration), purpose)

    def uniform(self, purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Uniform in [0, 1), float32 (B, *shape) on the images' device, each image's from its own seed; fast."""
        device = self.lq.device
        drawn = []
        for seed in self.seeds:
            own = torch.Generator(device).manual_seed(randomness.derived_seed(int(seed), purpose))
            drawn.append(torch.rand(shape, generator=own, device=device))
        return torch.stack(drawn)


@dataclass(frozen=True)
class NetworkView:
    """A network as a term sees it before training: its stages, and the shapes of its features.

    A path that names no module, a module that is not run, and one without a feature map raise OptionsError.

    Attributes:
        label: what the options call it, `network_g` or `network_t`.
        network: itself, on its device.
    """

    label: str
    network: nn.Module
    _shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict, repr=False)

    @property
    def staged(self) -> StagedNetwork:
        """The network as a stem, stages and a reconstruction; raises OptionsError if it is not built so."""
        if isinstance(self.network, StagedNetwork):
            return self.network
        staged = [name for name, kind in ARCH_REGISTRY if isinstance(kind, type) and issubclass(kind, StagedNetwork)]
        raise OptionsError(
            f"{self.label}, {type(self.network).__name__}, is not built of a stem, stages and a reconstruction;"
            f" {', '.join(staged)} are; a method that compares features takes modules of others by student_taps and"
            " teacher_taps"
        )

    def positions(self, count: int) -> tuple[str, ...]:
        """Module paths of `count` stages, evenly spaced, the last at the body's end; in short bodies some repeat."""
        names = self.staged.stage_names
        return tuple(names[number - 1] for number in boundaries(len(names), count))

    def shape(self, path: str) -> tuple[int, int, int]:
        """(C, H, W) of a module's feature map, for the image of `probe_image`."""
        if path not in self._shapes:
            self.feature_hooks([path])
        return self._shapes[path]

    def resolution(self, path: str) -> float:
        """How many times as high as the input a module's feature map is, window padding aside."""
        height, image = self.shape(path)[1], self._shapes[""][1]
        return float(height // image) if height >= image else 1 / (image // height)

    def feature_hooks(self, paths: Iterable[str]) -> FeatureHooks:
        """Hooks on modules, with the layout of each output known."""
        paths = sorted(set(paths))
        try:
            hooks = FeatureHooks(self.network, paths)
            if paths:
                self._shapes.update(hooks.probe())
        except OptionsError as error:
            raise OptionsError(f"{self.label}: {error}") from error
        return hooks


@dataclass(frozen=True)
class NetworkPair:
    """The student, which will be trained, and its teacher, which will not."""

    student: NetworkView
    teacher: NetworkView


def boundaries(stages: int, count: int) -> list[int]:
    """Cuts a body of `stages` stages into `count` even parts: after how many stages each part ends, rounded up."""
    return [-(-stages * part // count) for part in range(1, count + 1)]


class LossTerm(nn.Module):
    """One contribution to the student's loss.

    Attributes:
        needs_teacher: whether the teacher's output or features are read.
        teacher_needs: what is used of the teacher beside its output, in words such as "the teacher's features". Only
            where this is empty may the output come from a cache.
        gt_needs: what HR images are needed for, in words such as "tiles of HR images", or a static method that derives
            it from the options; `build_model` sets what it says on the term. Only where it is empty does the term take
            part in iterations without HR images.
        replaces_student: whether the student runs with weights that the term trains in its place (`student_weights`).
            Such a term is attached and updated before the others.
        runs_student_parts: whether parts of the student are run by themselves, with their own weights.
        batch_scope: which images the term compares, a `BatchScope`, or a static method that derives it from the
            options. Under the strict default a resumed run must keep its number of ranks.
        needs_average: whether the term follows the moving average of the student's weights (`after_average`).
        needs_start: whether the term learns from the weights that the student begins with, so that they must be loaded.
        student_taps: paths of the student's modules whose outputs are read, such as `body.31`.
        teacher_taps: likewise in the teacher.
        weights: weight of each part that `forward` returns, by its name.
        remarks: lines for the log at the start, such as what was loaded.
    """

    needs_teacher: ClassVar[bool] = True
    teacher_needs: ClassVar[str] = "the teacher itself, as its class does not say otherwise (teacher_needs)"
    gt_needs: Any = "HR images, as its class does not say otherwise (gt_needs)"
    replaces_student: ClassVar[bool] = False
    runs_student_parts: ClassVar[bool] = False
    batch_scope: ClassVar[Any] = "one rank"
    needs_average: bool = False
    needs_start: ClassVar[bool] = False
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    weights: Mapping[str, float] = {}
    remarks: Sequence[str] = ()

    def attach(self, networks: NetworkPair) -> None:
        """Called once before training: chooses modules and makes heads; raises OptionsError if networks do not fit."""

    def check_output(self, shape: Sequence[int]) -> None:
        """Called before training with the smallest output shape (C, sH, sW); raises OptionsError if it does not fit."""

    def further_networks(self) -> Mapping[str, nn.Module]:
        """Networks beside student and teacher that see the LR images, by their key in the term's options."""
        return {}

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns the unweighted parts, scalars by name (`l_...`).

        Every trained parameter must be in the graph of some part in every step, if need be by `nothing_of`.
        """
        raise NotImplementedError

    def student_weights(self) -> dict[str, torch.Tensor]:
        """Of a term that `replaces_student`: the weights to run it with, by its parameters' names, with gradients."""
        raise NotImplementedError

    def trained_network(self) -> nn.Module:
        """Of a term that `replaces_student`: what it trains, with modules and parameters named as the student's."""
        return self

    def after_update(self, student: nn.Module, iteration: int) -> None:
        """Called without gradients after each iteration (from 1) on every rank, whether it updated `student` or not."""

    def after_average(self, average: nn.Module, iteration: int) -> None:
        """Called likewise after `after_update` with the student's moving average, where the options keep one."""


def nothing_of(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    """Zero with all `parameters` in its graph: added to a part, it gives unused ones a gradient that ranks average."""
    return torch.stack([parameter.sum() for parameter in parameters]).sum() * 0.0


def criterion_scope(block: Mapping[str, Any]) -> BatchScope:
    """The batch scope of the registered loss that a block names by `type`."""
    return batch_scope_of(LOSS_REGISTRY.get(block["type"]), block)


class CriterionTerm(LossTerm):
    """A registered loss between the student's output and a target image; the logs call its part `name`.

    The `loss_weight` of the `criterion` becomes the part's weight and is not applied twice.
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
        """Asks the loss, where it has a method `check_output`."""
        if (check := getattr(self.criterion, "check_output", None)) is not None:
            check(shape)

    def target(self, context: StepContext) -> torch.Tensor:
        """The image that the student's output is compared with."""
        raise NotImplementedError

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns {name: loss}; a perceptual loss with a style weight adds `l_style`."""
        return self.compared(context.sr, self.target(context))

    def compared(self, output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss between two images by the part's name; see `forward`."""
        loss = self.criterion(output, target)
        if not isinstance(loss, tuple):
            return {self._name: loss}
        named = zip((self._name, "l_style"), loss, strict=True)
        return {name: part for name, part in named if part is not None}


class Reconstruction(CriterionTerm):
    """A loss against the HR image, such as L_rec = L1(I_S, I_GT), or against the sharpened one."""

    needs_teacher = False
    teacher_needs = ""
    gt_needs = "HR images as targets"
    batch_scope = staticmethod(criterion_scope)

    def __init__(self, name: str, criterion: Mapping[str, Any], *, sharpened: bool = False) -> None:
        super().__init__(name, criterion)
        self._sharpened = sharpened

    def target(self, context: StepContext) -> torch.Tensor:
        """I_GT."""
        return context.sharpened_hr if self._sharpened else context.hr
