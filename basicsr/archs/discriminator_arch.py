"""Discriminators of BasicSR: VGG-style for one input size, U-Net with spectral norm for pixelwise logits."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from basicsr.utils.errors import AssertedDataError, DataError
from basicsr.utils.ranges import Features, ImageChannels
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments


@ARCH_REGISTRY.register()
class VGGStyleDiscriminator(nn.Module):
    """One logit per image, as in SRGAN and ESRGAN: halvings to 4x4, then two linear layers.

    Args:
        num_in_ch: channels of the input.
        num_feat: channels of the first layer; later ones have up to eight times as many.
        input_size: height and width of the input: 128 or 256.
    """

    def __init__(self, *, num_in_ch: ImageChannels, num_feat: Features, input_size: Literal[128, 256] = 128) -> None:
        check_arguments(VGGStyleDiscriminator, locals())
        super().__init__()
        self.input_size = input_size
        self.num_stages = 5 if input_size == 128 else 6
        channels = num_in_ch
        for stage in range(self.num_stages):
            wider = num_feat * min(2**stage, 8)
            # The first convolution alone has a bias and no batch norm after it.
            self.add_module(f"conv{stage}_0", nn.Conv2d(channels, wider, 3, 1, 1, bias=stage == 0))
            self.add_module(f"bn{stage}_0", nn.Identity() if stage == 0 else nn.BatchNorm2d(wider))
            self.add_module(f"conv{stage}_1", nn.Conv2d(wider, wider, 4, 2, 1, bias=False))
            self.add_module(f"bn{stage}_1", nn.BatchNorm2d(wider))
            channels = wider
        self.linear1 = nn.Linear(channels * 4 * 4, 100)
        self.linear2 = nn.Linear(100, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, 1) of images (B, C, input_size, input_size); DataError for other sizes."""
        if x.shape[-2:] != (self.input_size, self.input_size):
            raise AssertedDataError(
                f"VGGStyleDiscriminator takes {self.input_size}x{self.input_size} images, got "
                f"{x.shape[-2]}x{x.shape[-1]}: change gt_size or input_size"
            )
        for name in (f"{stage}_{half}" for stage in range(self.num_stages) for half in (0, 1)):
            x = self.lrelu(self.get_submodule(f"bn{name}")(self.get_submodule(f"conv{name}")(x)))
        return self.linear2(self.lrelu(self.linear1(x.flatten(1))))


@ARCH_REGISTRY.register(suffix="basicsr")
class UNetDiscriminatorSN(nn.Module):
    """One logit per pixel from a U-Net with spectral norm (Wang et al., Real-ESRGAN, ICCVW 2021).

    Args:
        num_in_ch: channels of the input.
        num_feat: channels of the first layer; the deepest has eight times as many.
        skip_connection: add the features of the way down on the way up.
    """

    def __init__(self, *, num_in_ch: ImageChannels, num_feat: Features = 64, skip_connection: bool = True) -> None:
        super().__init__()
        self.skip_connection = skip_connection
        self.conv0 = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        wide = [num_feat * multiple for multiple in (1, 2, 4, 8, 4, 2, 1, 1, 1)]
        for number, (before, after) in enumerate(pairwise(wide), start=1):
            size = (4, 2, 1) if number <= 3 else (3, 1, 1)  # the first three halve the image
            self.add_module(f"conv{number}", spectral_norm(nn.Conv2d(before, after, *size, bias=False)))
        self.conv9 = nn.Conv2d(num_feat, 1, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, 1, H, W) of images (B, C, H, W); DataError unless 8 divides H and W."""
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise DataError(
                f"UNetDiscriminatorSN takes heights and widths that are multiples of 8, got "
                f"{x.shape[-2]}x{x.shape[-1]}: change gt_size"
            )
        down = [self.lrelu(self.conv0(x))]
        convs = [self.get_submodule(f"conv{number}") for number in range(1, 9)]
        for conv in convs[:3]:
            down.append(self.lrelu(conv(down[-1])))
        x = down.pop()
        for conv in convs[3:6]:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.lrelu(conv(x))
            same_size = down.pop()
            if self.skip_connection:
                x = x + same_size
        return _to_few_channels(self.conv9, self.lrelu(convs[7](self.lrelu(convs[6](x)))))


def _to_few_channels(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)` with zero channels up to eight where gradients follow, as kernels compute gradients in blocks."""
    if not torch.is_grad_enabled():
        return conv(x)
    missing = max(0, 8 - conv.out_channels)
    weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, missing))
    bias = None if conv.bias is None else F.pad(conv.bias, (0, missing))
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)[:, : conv.out_channels]
