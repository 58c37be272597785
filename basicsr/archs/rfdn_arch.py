"""RFDN: residual feature distillation, IMDN's idea with 1x1 convolutions that keep half of the channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.lightweight_blocks import GatheredStages, SpatialAttention, pixel_shuffle_tail, tail_of
from basicsr.archs.recognition import Recognised, equal_blocks, weights_of
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_SLOPE = 0.05


class RFDB(nn.Module):
    """Residual feature distillation block: (B, num_feat, H, W) to the same shape, without a skip around it.

    Three residual convolutions; before each, a 1x1 convolution keeps half as many channels. These and the last
    features, halved too, are joined by a 1x1 convolution and gated by spatial attention.
    """

    def __init__(self, num_feat: int, inner: int) -> None:
        super().__init__()
        half = num_feat // 2
        self.c1_d = nn.Conv2d(num_feat, half, 1)
        self.c1_r = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.c2_d = nn.Conv2d(num_feat, half, 1)
        self.c2_r = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.c3_d = nn.Conv2d(num_feat, half, 1)
        self.c3_r = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.c4 = nn.Conv2d(num_feat, half, 3, 1, 1)
        self.c5 = nn.Conv2d(4 * half, num_feat, 1)
        self.esa = SpatialAttention(num_feat, inner, activation=F.relu)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for keep, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            kept.append(F.leaky_relu(keep(x), _SLOPE))
            x = F.leaky_relu(refine(x) + x, _SLOPE)
        kept.append(F.leaky_relu(self.c4(x), _SLOPE))
        return self.esa(self.c5(torch.cat(kept, dim=1)))


@ARCH_REGISTRY.register()
class RFDN(GatheredStages):
    """RFDN (Liu et al., Residual Feature Distillation Network for Lightweight Image Super-Resolution, ECCVW 2020).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features, 4 at least.
        num_block: stages.
        upscale: factor of enlargement.
        img_range: factor on the input, which is in [0, 1].
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"resizing to the image's size"})
    stages_name = "B"

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 50,
        num_block: Blocks = 4,
        upscale: Scale = 4,
        img_range: ImageRange = 255.0,
    ) -> None:
        check_arguments(RFDN, locals())
        super().__init__()
        self.img_range = img_range
        self.fea_conv = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.add_stages(RFDB(num_feat, num_feat // 4) for _ in range(num_block))
        self.c = nn.Sequential(nn.Conv2d(num_feat * num_block, num_feat, 1), nn.LeakyReLU(_SLOPE))
        self.LR_conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsampler = pixel_shuffle_tail(num_feat, num_out_ch, upscale)

    @staticmethod
    def conflicts(num_feat: int) -> Iterator[Conflict]:
        if num_feat < 4:
            yield "num_feat", f"{num_feat} is less than 4, by which the attention divides it"

    def shallow(self, x):
        return self.fea_conv(x)

    def gather(self, outputs):
        return self.LR_conv(self.c(outputs))

    def enlarge(self, features):
        return self.upsampler(features)

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys; see `basicsr.archs.recognition`."""
        if not (blocks := equal_blocks(state, "B", _BLOCK, _OTHERS)):
            return None
        features, colours = state["fea_conv.weight"].shape[:2]
        channels, scale = tail_of(state, "upsampler.0", colours)
        half = state["B1.c4.weight"].shape[0]
        if not scale or half != features // 2 or state["B1.esa.conv1.weight"].shape[0] != features // 4:
            return None
        options = {
            "type": "RFDN",
            "num_in_ch": colours,
            "num_out_ch": channels,
            "num_feat": features,
            "num_block": blocks,
            "upscale": scale,
            "img_range": 255.0,
        }
        return Recognised("RFDN", "RFDN's original", options, scale, dict(state), ("img_range 255",))


_REFINED = weights_of("c1_d", "c1_r", "c2_d", "c2_r", "c3_d", "c3_r", "c4", "c5")
_ATTENTION = (f"esa.conv{name}" for name in ("1", "2", "3", "3_", "4", "_f", "_max"))
_BLOCK = _REFINED | weights_of(*_ATTENTION)
_OTHERS = weights_of("fea_conv", "c.0", "LR_conv", "upsampler.0")
