"""Bicubic upscaling as a network, for a row of its own in tables, and as the first step of other networks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.traits import Trait
from basicsr.utils.matlab_functions import enlarging_kernels
from basicsr.utils.precision import at_least_float32, without_autocast
from basicsr.utils.ranges import Scale
from basicsr.utils.registry import ARCH_REGISTRY


@ARCH_REGISTRY.register()
class Bicubic(nn.Module):
    """MATLAB's bicubic `imresize`, without parameters: one convolution of each channel, then a pixel shuffle.

    Args:
        upscale: factor of enlargement.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"bicubic enlargement inside"})
    kernels: Tensor

    def __init__(self, *, upscale: Scale = 4) -> None:
        super().__init__()
        self.upscale = upscale
        along = torch.from_numpy(enlarging_kernels(upscale))
        kernels = torch.einsum("pi,qj->pqij", along, along).flatten(0, 1).unsqueeze(1)
        self.register_buffer("kernels", kernels.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges (B, C, H, W) in [0, 1] to (B, C, upscale H, upscale W), not clipped; in float32 at least."""
        precise = at_least_float32(x)
        planes = _mirrored(_mirrored(precise, -2), -1).flatten(0, 1).unsqueeze(1)
        with without_autocast(x.device.type):
            enlarged = F.pixel_shuffle(F.conv2d(planes, self.kernels.to(precise.dtype)), self.upscale)
        return enlarged.reshape(*x.shape[:2], *enlarged.shape[-2:]).to(x.dtype)


def _mirrored(x: Tensor, axis: int) -> Tensor:
    """Two more rows or columns at both ends, mirrored: the edge pixels are repeated."""
    length = x.shape[axis]
    if length == 1:
        return torch.cat([x] * 5, axis)
    ends = (x.narrow(axis, start, 2).flip(axis) for start in (0, length - 2))
    return torch.cat([next(ends), x, next(ends)], axis)
