"""Losses that go wrong when a test wants it, or note what they are given, as a user's own file would register them."""

from __future__ import annotations

import hashlib
import os
import random

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from basicsr.losses.basic_loss import L1Loss
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


@LOSS_REGISTRY.register()
class L1OnRecord(nn.Module):
    """L1 that appends to a file, at each call, a line with a digest of all random states and of its target.

    Args:
        record: the file, without its ending `.txt`: so no file is named in the options, whose content would be noted.
        loss_weight: factor of the result.
    """

    def __init__(self, *, record: str, loss_weight: float = 1.0) -> None:
        super().__init__()
        self._record, self._loss = f"{record}.txt", L1Loss(loss_weight=loss_weight)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        digest = hashlib.sha256(repr(random.getstate()).encode())
        kind, keys, *rest = np.random.get_state()
        digest.update(repr((kind, rest)).encode() + keys.tobytes() + torch.get_rng_state().numpy().tobytes())
        digest.update(target.detach().contiguous().numpy().tobytes())
        line = f"{os.environ.get('RANK', 0)} {digest.hexdigest()}\n".encode()
        handle = os.open(self._record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line)
        os.close(handle)
        return self._loss(pred, target)
