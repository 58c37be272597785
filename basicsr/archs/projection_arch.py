"""Projection heads of MCAD-KD: from an image or a patch to a point on the unit sphere."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Features, ImageChannels
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments


class _ProjectionHead(nn.Module):
    """3x3 convolutions with ReLU, the last to `embed_dim` / 2 channels, global average, linear layer, L2 normalisation.

    Args:
        num_in_ch: channels of the input.
        embed_dim: length d of the embedding, a multiple of 2 for images, of 4 for patches.
    """

    _convolutions: ClassVar[int]

    def __init__(self, *, num_in_ch: ImageChannels = 3, embed_dim: Features = 256) -> None:
        check_arguments(type(self), locals())
        super().__init__()
        widths = [num_in_ch, *(embed_dim // 2**halvings for halvings in range(self._convolutions, 0, -1))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 1, 1), nn.ReLU(inplace=True)]
        self.encoder = nn.Sequential(*layers, _GlobalAverage(), nn.Flatten(), nn.Linear(widths[-1], embed_dim))

    @classmethod
    def conflicts(cls, embed_dim: int) -> Iterator[Conflict]:
        """See `basicsr.utils.registry.find_problems`."""
        if embed_dim % 2**cls._convolutions:
            yield "embed_dim", f"{embed_dim} is not supported: give a multiple of {2**cls._convolutions}"

    def forward(self, x: Tensor) -> Tensor:
        """Returns float32 (or wider) embeddings (B, embed_dim) of norm 1 of images (B, C, H, W) in [0, 1]."""
        # In bfloat16's 8 bits, cosines divided by a temperature of 0.07 would be off by tenths.
        return F.normalize(at_least_float32(self.encoder(x)), dim=1)


@ARCH_REGISTRY.register()
class ImageProjectionHead(_ProjectionHead):
    """phi_img of MCAD-KD: one convolution to `embed_dim` / 2 channels."""

    _convolutions = 1


@ARCH_REGISTRY.register()
class PatchProjectionHead(_ProjectionHead):
    """phi_patch of MCAD-KD: two convolutions, to `embed_dim` / 4 and `embed_dim` / 2 channels."""

    _convolutions = 2


class _GlobalAverage(nn.Module):
    """Average over all pixels: (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return _GlobalAverageFunction.apply(x)


class _GlobalAverageFunction(torch.autograd.Function):
    """Without PyTorch's float32 copy of bf16 images on the CPU; a product with ones adds in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return x.mean((2, 3), keepdim=True)
        pixels = x.flatten(2)
        ones = pixels.new_ones(pixels.shape[2], 1)
        return (pixels @ ones / pixels.shape[2])[..., None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape)
