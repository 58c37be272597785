"""The frozen teacher."""

from __future__ import annotations

import torch
from torch import nn

from basicsr.archs.feature_hooks import FeatureTaps
from basicsr.losses.loss_util import at_least_float32
from basicsr.utils.precision import Precision


class NotThere(nn.Module):
    """Stands for a teacher of which there are but the outputs; whoever runs it has not said so in `teacher_needs`."""

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        """Raises AssertionError."""
        raise AssertionError("the teacher's outputs come from a cache; a term that runs it must say so: teacher_needs")


class Teacher:
    """Runs a network for its outputs and features only: in eval mode, without gradients, at its own precision.

    It is no module on purpose: the KD model that holds it neither trains, saves, synchronises nor moves it.

    Args:
        network: a trained network, on its device. It is frozen and put in eval mode for good.
        precision: how to run it.
        taps: on the modules whose outputs are wanted; None for none.
    """

    def __init__(self, network: nn.Module, precision: Precision, taps: FeatureTaps | None = None) -> None:
        self.network = network.requires_grad_(False).eval()
        self.precision = precision
        self._taps = taps if taps is not None else FeatureTaps(network, ())

    @torch.no_grad()
    def __call__(self, lq: torch.Tensor) -> torch.Tensor:
        """I_T, float32 (B, C, sH, sW), for I_LR (B, C, H, W)."""
        with self.precision.autocast():
            return at_least_float32(self.network(lq))

    def with_features(self, lq: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """I_T and the tapped features."""
        with self._taps as features:
            return self(lq), features
