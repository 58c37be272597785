"""LKDN: BSRN with large kernels: attention by a wide depthwise convolution and a dilated one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.lightweight_blocks import BlueprintConv, GatheredStages, blueprints, pixel_shuffle_tail, tail_of
from basicsr.archs.recognition import Recognised, UnsupportedWeights, equal_blocks, weights_of
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, Few, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments


class LargeKernelAttention(nn.Module):
    """Multiplies features by what a 1x1, a depthwise 5x5 and a depthwise dilated 5x5 convolution make of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.depthwise_dilated = nn.Conv2d(channels, channels, 5, padding=6, groups=channels, dilation=3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.depthwise_dilated(self.depthwise(self.pointwise(x)))


class LKDB(nn.Module):
    """Large kernel distillation block: (B, num_feat, H, W) to the same shape."""

    def __init__(self, num_feat: int, num_atten: int) -> None:
        super().__init__()
        half = num_feat // 2
        self.c1_d = nn.Conv2d(num_feat, half, 1)
        self.c1_r = BlueprintConv(num_feat, num_feat)
        self.c2_d = nn.Conv2d(num_feat, half, 1)
        self.c2_r = BlueprintConv(num_feat, num_feat)
        self.c3_d = nn.Conv2d(num_feat, half, 1)
        self.c3_r = BlueprintConv(num_feat, num_feat)
        self.c4 = BlueprintConv(num_feat, half)
        self.c5 = nn.Conv2d(4 * half, num_atten, 1)
        self.atten = LargeKernelAttention(num_atten)
        self.c6 = nn.Conv2d(num_atten, num_feat, 1)
        self.pixel_norm = nn.LayerNorm(num_feat)

    def forward(self, x: Tensor) -> Tensor:
        kept, features = [], x
        for keep, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            kept.append(F.gelu(keep(features)))
            features = F.gelu(refine(features))
        kept.append(F.gelu(self.c4(features)))
        pixels = self.c6(self.atten(self.c5(torch.cat(kept, dim=1)))).permute(0, 2, 3, 1)
        return self.pixel_norm(pixels).permute(0, 3, 1, 2) + x


@ARCH_REGISTRY.register()
class LKDN(GatheredStages):
    """LKDN (Xie et al., Large Kernel Distillation Network for Efficient Single Image Super-Resolution, CVPRW 2023).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features, an even number: 56, in LKDN-S 42.
        num_atten: channels inside the attention; `num_feat` where left out.
        num_block: stages: 8, in LKDN-S 5.
        upscale: factor of enlargement.
        num_in: copies of the input that the first convolution gets.
        img_range: factor on the input, which is in [0, 1].
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"layer norm over channels"})
    stages_name = "B"

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 56,
        num_atten: Features | None = None,
        num_block: Blocks = 8,
        upscale: Scale = 4,
        num_in: Few = 4,
        img_range: ImageRange = 1.0,
    ) -> None:
        check_arguments(LKDN, locals())
        super().__init__()
        self.img_range = img_range
        self.num_in = num_in
        self.fea_conv = BlueprintConv(num_in_ch * num_in, num_feat)
        self.add_stages(LKDB(num_feat, num_atten or num_feat) for _ in range(num_block))
        self.c1 = nn.Conv2d(num_feat * num_block, num_feat, 1)
        self.c2 = BlueprintConv(num_feat, num_feat)
        self.upsampler = pixel_shuffle_tail(num_feat, num_out_ch, upscale)

    @staticmethod
    def conflicts(num_feat: int) -> Iterator[Conflict]:
        if num_feat < 2:
            yield "num_feat", f"{num_feat} is less than 2: each stage keeps half of its channels"

    def shallow(self, x):
        return self.fea_conv(x.repeat(1, self.num_in, 1, 1))

    def gather(self, outputs):
        return self.c2(F.gelu(self.c1(outputs)))

    def enlarge(self, features):
        return self.upsampler(features)

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys, with the last convolution as `upsampler.0` or `conv3`; see `basicsr.archs.recognition`.

        Raises UnsupportedWeights for convolutions that must be merged first.
        """
        if "B1.atten.depthwise_dilated.weight" not in state:
            return None
        if any(key.endswith(".rep1x1.weight") for key in state):
            raise UnsupportedWeights(
                "it is LKDN-S as it was trained, with convolutions that must be merged first;"
                " give the authors' file LKDN-S_del_rep_x4.pth"
            )
        state = {key.replace("upsampler.conv3.", "upsampler.0."): value for key, value in state.items()}
        if not (blocks := equal_blocks(state, "B", _BLOCK, _OTHERS)):
            return None
        features, copies = state["fea_conv.pw.weight"].shape[:2]
        channels, scale = tail_of(state, "upsampler.0", 3)
        inner = state["B1.c5.weight"].shape[0]
        if not scale or copies % channels:
            return None
        options = {
            "type": "LKDN",
            "num_in_ch": channels,
            "num_out_ch": channels,
            "num_feat": features,
            "num_atten": None if inner == features else inner,
            "num_block": blocks,
            "upscale": scale,
            "num_in": copies // channels,
            "img_range": 1.0,
        }
        return Recognised("LKDN", "LKDN's original", options, scale, state, ("img_range 1",))


_PLAIN = ("c1_d", "c2_d", "c3_d", "c5", "c6", "pixel_norm")
_ATTENTION = ("atten.pointwise", "atten.depthwise", "atten.depthwise_dilated")
_BLOCK = weights_of(*_PLAIN, *_ATTENTION) | blueprints("c1_r", "c2_r", "c3_r", "c4")
_OTHERS = blueprints("fea_conv", "c2") | weights_of("c1", "upsampler.0")
