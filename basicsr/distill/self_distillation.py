"""Distillation of a student from itself, as it was when the run began: the float network behind a quantised one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.config.component_blocks import LossBlock
from basicsr.distill.base import CriterionTerm, NetworkPair, NetworkView, StepContext, criterion_scope
from basicsr.losses.basic_loss import BatchScope
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Few, Weight
from basicsr.utils.registry import METHOD_REGISTRY, check_arguments

_DEFAULT = {"type": "L1Loss"}
_SMALLEST = 1e-8  # of a feature's mean absolute value, by which its differences are divided


@METHOD_REGISTRY.register()
class SelfDistillation(CriterionTerm):
    """The student imitates itself as the run began; under `train: quantize` its float self is a second teacher.

        l_self = L1(I_S, I_0),  l_self_feat = mean over positions k and images of ||F_S^k - F_0^k||_1 / ||F_0^k||_1

    I_0 and F_0^k are the output and the features of the first self, a frozen copy of the network that `path:
    pretrain_network_g` loads, made before it is quantised. It is saved in the training state, so that a run goes on
    without that file. Without `train: quantize` the term keeps a network that is trained further near to its beginning.
    No teacher is needed, and the term stands in runs of `model_type: SRModel`, too. After Polino et al., "Model
    compression via distillation and quantization", ICLR 2018, with the image in the place of the class probabilities.

    Args:
        criterion: options of a registered loss; `{type: L1Loss}` where left out. Its `loss_weight` is that of `l_self`.
        feature_weight: weight of `l_self_feat`; with 0 features are not looked at.
        student_taps: modules whose features are compared, such as `body.15`; by default `positions` stages.
        positions: how many evenly spaced stages to take by default.
    """

    needs_teacher = False
    teacher_needs = ""
    gt_needs = ""
    needs_start = True
    without_effect = (({"feature_weight": 0}, ("student_taps", "positions")),)
    float_self: nn.Module

    @staticmethod
    def batch_scope(options: Mapping[str, Any]) -> BatchScope:
        """That of the criterion; features are compared image by image."""
        return criterion_scope(options.get("criterion") or _DEFAULT)

    def __init__(
        self,
        *,
        criterion: LossBlock | None = None,
        feature_weight: Weight = 0.0,
        student_taps: Sequence[str] | None = None,
        positions: Few = 4,
    ) -> None:
        check_arguments(SelfDistillation, locals())
        super().__init__("l_self", criterion or _DEFAULT)
        self._looks_inside = feature_weight > 0
        if self._looks_inside:
            self.weights = {**self.weights, "l_self_feat": feature_weight}
        self._taps, self._positions = tuple(student_taps or ()), positions

    def attach(self, networks: NetworkPair) -> None:
        """Copies the student as it is."""
        student = networks.student
        if self._looks_inside:
            self.student_taps = self._taps or tuple(dict.fromkeys(student.positions(self._positions)))
        self.float_self = copy.deepcopy(student.network).requires_grad_(False).eval()
        self._hooks: FeatureHooks = NetworkView(student.label, self.float_self).feature_hooks(self.student_taps)

    def train(self, mode: bool = True) -> SelfDistillation:
        """The first self stays in eval mode."""
        super().train(mode)
        if hasattr(self, "float_self"):
            self.float_self.eval()
        return self

    def forward(self, context: StepContext) -> dict[str, torch.Tensor]:
        """Returns `l_self` and, where `feature_weight` is above 0, `l_self_feat`."""
        with torch.no_grad(), context.teacher_autocast(), self._hooks as features:
            target = at_least_float32(self.float_self(context.lq))
        parts = self.compared(context.sr, target)
        if self._looks_inside:
            found = [_apart(context.student_features[path], features[path]) for path in self.student_taps]
            parts["l_self_feat"] = torch.stack(found).mean()
        return parts


def _apart(student: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """How far features (B, C, H, W) are from the first ones, in parts of these, on average over the images."""
    first = at_least_float32(first)
    difference = (at_least_float32(student) - first).abs().flatten(1).mean(1)
    return (difference / first.abs().flatten(1).mean(1).clamp_min(_SMALLEST)).mean()
