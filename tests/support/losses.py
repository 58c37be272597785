"""Losses that go wrong when a test wants it, as a user's own file would register them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class BreaksDown(nn.Module):
    """An L1 loss whose value, or whose gradient alone, is not finite from one call on, on one rank."""

    def __init__(self, *, call: int, rank: int = 0, gradient_only: bool = False, loss_weight: float = 1.0) -> None:
        super().__init__()
        self._left, self._rank, self._gradient_only = call, rank, gradient_only
        self.loss_weight = loss_weight

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        loss = self.loss_weight * (pred - target).abs().mean()
        here = dist.get_rank() if dist.is_initialized() else 0
        if self._left > 0 or here != self._rank:
            return loss
        return _GradientOfNan.apply(loss) if self._gradient_only else loss * torch.nan


class _GradientOfNan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan
