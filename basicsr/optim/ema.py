"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A copy of a network whose weights follow it: w' <- decay w' + (1 - decay) w, after each iteration.

    Buffers (batch normalisation's statistics) are copied. The copy starts equal; `decay` lies in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step towards `network`."""
        averages = [average.detach() for average in self.network.parameters()]
        weights = [weight.detach() for weight in network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - self._decay)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
