"""Response distillation: the student imitates the output of its teacher, or the mean of several teachers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.arch_util import Frozen
from basicsr.archs.luma import ON_LUMA, LumaNetwork
from basicsr.config.component_blocks import UNCHECKED, LossBlock, is_auto
from basicsr.config.schema import FurtherTeacher
from basicsr.distill.base import CriterionTerm, NetworkPair, StepContext, criterion_scope
from basicsr.inference.trials import on_images_of
from basicsr.losses.basic_loss import BatchScope
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.precision import at_least_float32, keep_output_precise
from basicsr.utils.ranges import PositiveWeight
from basicsr.utils.registry import METHOD_REGISTRY, check_arguments
from basicsr.weights.recognise import network_for

_DEFAULT = {"type": "L1Loss"}


@METHOD_REGISTRY.register()
class ResponseDistillation(CriterionTerm):
    """L_resp = L1(I_S, I_T), eq. 7c of MCAD-KD; "KD" or "logits" in the papers' tables.

    Args:
        criterion: options of a registered loss; `{type: L1Loss}` where left out. Its `loss_weight` is the part's.
    """

    teacher_needs = ""
    gt_needs = ""
    _part: ClassVar[str] = "l_resp"

    @staticmethod
    def batch_scope(options: Mapping[str, Any]) -> BatchScope:
        """That of the criterion."""
        return criterion_scope(options.get("criterion") or _DEFAULT)

    def __init__(self, *, criterion: LossBlock | None = None) -> None:
        super().__init__(self._part, criterion or _DEFAULT)

    def target(self, context: StepContext) -> torch.Tensor:
        """I_T."""
        return context.teacher_output


@METHOD_REGISTRY.register()
class SeveralTeachers(ResponseDistillation):
    """L_resp = L1(I_S, sum over m of w_m I_T^m / sum over m of w_m), over `network_t` and further teachers.

    After Jiang et al., "MTKD: Multi-Teacher Knowledge Distillation for Image Super-Resolution", ECCV 2024, whose target
    is a trained combination of the teachers and whose loss also compares wavelet bands. In the options:

        teachers:
          - {network: {type: SwinIR, ...}, path: swinir_x4.pth, param_key: params_ema, weight: 2.0}
          - {path: rcan_x4.pth}     # recognised from the file

    Further teachers are frozen, run in the precision of `network_t`, and are in no checkpoint. They run even where
    `network_t`'s output comes from a cache. `criterion`: see `ResponseDistillation`.

    Args:
        teachers: further teachers, with the keys of `FurtherTeacher`.
        weight: weight of `network_t` in the mean, positive.

    Raises:
        OptionsError: a weight is not positive, a teacher has a wrong key or value, or neither `path` nor
            `allow_random`.
        CheckpointError: a teacher's file cannot be read or does not fit.
    """

    _part = "l_teachers"

    def __init__(
        self,
        *,
        teachers: Sequence[FurtherTeacher] = (),
        weight: PositiveWeight = 1.0,
        criterion: LossBlock | None = None,
    ) -> None:
        check_arguments(SeveralTeachers, locals())
        super().__init__(criterion=criterion)
        entries = [FurtherTeacher.model_validate(options, context=UNCHECKED) for options in teachers]
        weights = [weight, *(entry.weight for entry in entries)]
        self._shares = [each / sum(weights) for each in weights]
        self.teachers = nn.ModuleList()
        self.remarks = []
        for number, entry in enumerate(entries):
            label = f"SeveralTeachers: teachers[{number}]"
            try:
                network, remark = _built(entry)
            except (OptionsError, CheckpointError) as error:
                raise type(error)(f"{label}: {error}") from error
            keep_output_precise(network)
            self.teachers.append(Frozen(network))
            if remark:
                self.remarks.append(type(remark)(f"{label}: {remark}"))

    def attach(self, networks: NetworkPair) -> None:
        """Further teachers of gray images get Y of RGB ones, where the student takes RGB."""
        for number, held in enumerate(self.teachers):
            network = on_images_of(networks.student.network, cast(Frozen[Any], held).network)
            if isinstance(network, LumaNetwork):
                self.teachers[number] = Frozen(network)
                self.remarks = [*self.remarks, f"SeveralTeachers: teachers[{number}]: {ON_LUMA}"]

    def further_networks(self) -> Mapping[str, nn.Module]:
        """The further teachers."""
        return {f"teachers[{i}].network": cast(Frozen[Any], held).network for i, held in enumerate(self.teachers)}

    def target(self, context: StepContext) -> torch.Tensor:
        """The teachers' mean; raises OptionsError if their images differ in size or channels."""
        mean = self._shares[0] * context.teacher_output
        for number, (share, teacher) in enumerate(zip(self._shares[1:], self.teachers, strict=True)):
            with torch.no_grad(), context.teacher_autocast():
                output = at_least_float32(teacher(context.lq))
            if output.shape != mean.shape:
                raise OptionsError(
                    f"SeveralTeachers: teachers[{number}] gives {tuple(output.shape[1:])}, network_t"
                    f" {tuple(mean.shape[1:])}: their upscale and channels must agree"
                )
            mean = mean + share * output
        return mean


def _built(entry: FurtherTeacher) -> tuple[nn.Module, str | None]:
    """The network with its weights, on the CPU, and what the log should say of them."""
    if entry.path is not None:
        network, remark = network_for(entry.network, entry.path, param_key=entry.param_key, strict=entry.strict)
        return network, remark or f"Loaded from {entry.path}"
    if entry.network is None or is_auto(entry.network):
        raise OptionsError("path is required where network is left out or auto: it is recognised from this file")
    if not entry.allow_random:
        raise OptionsError("path is required: an untrained teacher teaches noise (allow_random: true allows it)")
    return build_network(entry.network), None
