"""Bicubic upscaling as a network, for a row of its own in tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from basicsr.utils.matlab_functions import imresize
from basicsr.utils.ranges import Scale
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class Bicubic(nn.Module):
    """MATLAB's bicubic `imresize`, without parameters.

    Args:
        upscale: factor of enlargement.
    """

    def __init__(self, *, upscale: Scale = 4) -> None:
        super().__init__()
        self.upscale = upscale

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges (B, C, H, W) in [0, 1] to (B, C, upscale H, upscale W), not clipped."""
        return torch.stack([imresize(image, self.upscale) for image in x])
