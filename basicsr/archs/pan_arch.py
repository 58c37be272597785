"""PAN: pixel attention, a 1x1 convolution and a sigmoid, in the body and in the upsampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import StagedNetwork, make_layer
from basicsr.archs.recognition import Recognised, equal_blocks, weights_of
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_SLOPE = 0.2


class PixelAttention(nn.Module):
    """Multiplies features by a gate in (0, 1) for each value, from the channels of its pixel."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class GatedConvolutions(nn.Module):
    """k4(k3(x) gate(x)), both 3x3."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.k2 = nn.Conv2d(num_feat, num_feat, 1)
        self.k3 = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)
        self.k4 = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.k4(self.k3(x) * torch.sigmoid(self.k2(x)))


class SCPA(nn.Module):
    """Self-calibrated block with pixel attention: one half of the channels gated, the other not; plus the input."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        half = num_feat // 2
        self.conv1_a = nn.Conv2d(num_feat, half, 1, bias=False)
        self.conv1_b = nn.Conv2d(num_feat, half, 1, bias=False)
        self.k1 = nn.Sequential(nn.Conv2d(half, half, 3, 1, 1, bias=False))
        self.PAConv = GatedConvolutions(half)
        self.conv3 = nn.Conv2d(2 * half, num_feat, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.k1(F.leaky_relu(self.conv1_a(x), _SLOPE))
        gated = self.PAConv(F.leaky_relu(self.conv1_b(x), _SLOPE))
        return self.conv3(F.leaky_relu(torch.cat([plain, gated], dim=1), _SLOPE)) + x


@ARCH_REGISTRY.register()
class PAN(StagedNetwork):
    """PAN (Zhao et al., Efficient Image Super-Resolution Using Pixel Attention, ECCVW 2020).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, as many as of the input.
        num_feat: channels of the features, 2 at least.
        num_up_feat: channels behind the enlargement.
        num_block: stages.
        upscale: factor of enlargement: 2, 3 or 4.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"bilinear enlargement"})
    stages_name = "SCPA_trunk"

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 40,
        num_up_feat: Features = 24,
        num_block: Blocks = 16,
        upscale: Scale = 4,
    ) -> None:
        check_arguments(PAN, locals())
        super().__init__()
        self.upscale = upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.SCPA_trunk = make_layer(SCPA, num_block, num_feat=num_feat)
        self.trunk_conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upconv1 = nn.Conv2d(num_feat, num_up_feat, 3, 1, 1)
        self.att1 = PixelAttention(num_up_feat)
        self.HRconv1 = nn.Conv2d(num_up_feat, num_up_feat, 3, 1, 1)
        if upscale == 4:
            self.upconv2 = nn.Conv2d(num_up_feat, num_up_feat, 3, 1, 1)
            self.att2 = PixelAttention(num_up_feat)
            self.HRconv2 = nn.Conv2d(num_up_feat, num_up_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_up_feat, num_out_ch, 3, 1, 1)

    @staticmethod
    def conflicts(upscale: int, num_feat: int, num_in_ch: int, num_out_ch: int) -> Iterator[Conflict]:
        if upscale not in (2, 3, 4):
            yield "upscale", f"{upscale} is not supported: give 2, 3 or 4"
        if num_feat < 2:
            yield "num_feat", f"{num_feat} is less than 2: each stage has two halves"
        if num_out_ch != num_in_ch:
            yield "num_out_ch", f"{num_out_ch} is not num_in_ch {num_in_ch}: the input is added to the output"

    def stem(self, x):
        shallow = self.conv_first(x)
        return shallow, (x, shallow)

    def reconstruct(self, features, kept):
        image, shallow = kept
        features = self.trunk_conv(features) + shallow
        ways = [(self.upconv1, self.att1, self.HRconv1)]
        if self.upscale == 4:
            ways.append((self.upconv2, self.att2, self.HRconv2))
        for upconv, attention, convolution in ways:
            factor = 2 if self.upscale == 4 else self.upscale
            features = upconv(F.interpolate(features, scale_factor=factor, mode="nearest"))
            features = F.leaky_relu(convolution(F.leaky_relu(attention(features), _SLOPE)), _SLOPE)
        enlarged = F.interpolate(image, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return self.conv_last(features) + enlarged

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys; see `basicsr.archs.recognition`. x2 and x3 have equal shapes: the options choose."""
        others = _OTHERS | weights_of("upconv2", "att2.conv", "HRconv2") if "upconv2.weight" in state else _OTHERS
        if not (blocks := equal_blocks(state, "SCPA_trunk.", _BLOCK, others)):
            return None
        features, colours = state["conv_first.weight"].shape[:2]
        if state["conv_last.weight"].shape[0] != colours:
            return None
        scale = 4 if "upconv2.weight" in state else 2
        options = {
            "type": "PAN",
            "num_in_ch": colours,
            "num_out_ch": colours,
            "num_feat": features,
            "num_up_feat": state["upconv1.weight"].shape[0],
            "num_block": blocks,
            "upscale": scale,
        }
        notes = () if scale == 4 else ("its shapes are those of x2 and of x3; the options' scale decides",)
        scales = () if scale == 4 else (2, 3)
        return Recognised("PAN", "PAN's original", options, scale, dict(state), notes=notes, scales=scales)


_WITHOUT_BIAS = ("conv1_a", "conv1_b", "k1.0", "PAConv.k3", "PAConv.k4", "conv3")
_BLOCK = weights_of(*_WITHOUT_BIAS, bias=False) | weights_of("PAConv.k2")
_OTHERS = weights_of("conv_first", "trunk_conv", "upconv1", "att1.conv", "HRconv1", "conv_last")
