"""Response distillation: the student imitates the teacher's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from basicsr.config.component_blocks import LossBlock
from basicsr.distill.base import CriterionTerm, StepContext, criterion_scope
from basicsr.losses.basic_loss import BatchScope
from basicsr.utils.registry import METHOD_REGISTRY

_DEFAULT = {"type": "L1Loss"}


@METHOD_REGISTRY.register()
class ResponseDistillation(CriterionTerm):
    """L_resp = L1(I_S, I_T), eq. 7c of MCAD-KD; "KD" or "logits" in the papers' tables.

    Args:
        criterion: options of a registered loss; `{type: L1Loss}` where left out. Its `loss_weight` is the part's.
    """

    teacher_needs = ""
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
