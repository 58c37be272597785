"""BSRN: RFDN with blueprint separable convolutions, and contrast-aware channel attention behind the spatial one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.lightweight_blocks import (
    BlueprintConv,
    ContrastAttention,
    GatheredStages,
    SpatialAttention,
    blueprints,
    pixel_shuffle_tail,
    tail_of,
)
from basicsr.archs.recognition import Recognised, equal_blocks, weights_of
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_COPIES = 4
_SQUEEZE = 16


class ESDB(nn.Module):
    """Efficient separable distillation block: (B, num_feat, H, W) to the same shape."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        half = num_feat // 2
        self.c1_d = nn.Conv2d(num_feat, half, 1)
        self.c1_r = BlueprintConv(num_feat, num_feat)
        self.c2_d = nn.Conv2d(num_feat, half, 1)
        self.c2_r = BlueprintConv(num_feat, num_feat)
        self.c3_d = nn.Conv2d(num_feat, half, 1)
        self.c3_r = BlueprintConv(num_feat, num_feat)
        self.c4 = BlueprintConv(num_feat, half)
        self.c5 = nn.Conv2d(4 * half, num_feat, 1)
        self.esa = SpatialAttention(num_feat, num_feat // 4, BlueprintConv, F.gelu)
        self.cca = ContrastAttention(num_feat, _SQUEEZE)

    def forward(self, x: Tensor) -> Tensor:
        kept, features = [], x
        for keep, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            kept.append(F.gelu(keep(features)))
            features = F.gelu(refine(features) + features)
        kept.append(F.gelu(self.c4(features)))
        return self.cca(self.esa(self.c5(torch.cat(kept, dim=1)))) + x


@ARCH_REGISTRY.register()
class BSRN(GatheredStages):
    """BSRN (Li et al., Blueprint Separable Residual Network for Efficient Image Super-Resolution, CVPRW 2022).

    Args:
        num_in_ch: channels of the input, of which the first convolution gets four copies.
        num_out_ch: channels of the output.
        num_feat: channels of the features, 16 at least.
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
        num_feat: Features = 64,
        num_block: Blocks = 8,
        upscale: Scale = 4,
        img_range: ImageRange = 1.0,
    ) -> None:
        check_arguments(BSRN, locals())
        super().__init__()
        self.img_range = img_range
        self.fea_conv = BlueprintConv(num_in_ch * _COPIES, num_feat)
        self.add_stages(ESDB(num_feat) for _ in range(num_block))
        self.c1 = nn.Conv2d(num_feat * num_block, num_feat, 1)
        self.c2 = BlueprintConv(num_feat, num_feat)
        self.upsampler = nn.ModuleDict({"upsampleOneStep": pixel_shuffle_tail(num_feat, num_out_ch, upscale)})

    @staticmethod
    def conflicts(num_feat: int) -> Iterator[Conflict]:
        if num_feat < _SQUEEZE:
            yield "num_feat", f"{num_feat} is less than {_SQUEEZE}, by which the attention divides it"

    def shallow(self, x):
        return self.fea_conv(x.repeat(1, _COPIES, 1, 1))

    def gather(self, outputs):
        return self.c2(F.gelu(self.c1(outputs)))

    def enlarge(self, features):
        return self.upsampler["upsampleOneStep"](features)

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys; see `basicsr.archs.recognition`."""
        if not (blocks := equal_blocks(state, "B", _BLOCK, _OTHERS)) or state["fea_conv.pw.weight"].dim() != 4:
            return None
        features, copies = state["fea_conv.pw.weight"].shape[:2]
        colours = copies // _COPIES
        channels, scale = tail_of(state, "upsampler.upsampleOneStep.0", colours)
        if not scale or copies % _COPIES or state["B1.esa.conv1.weight"].shape[0] != features // 4:
            return None
        options = {
            "type": "BSRN",
            "num_in_ch": colours,
            "num_out_ch": channels,
            "num_feat": features,
            "num_block": blocks,
            "upscale": scale,
            "img_range": 1.0,
        }
        return Recognised("BSRN", "BSRN's original", options, scale, dict(state), ("img_range 1",))


_SEPARABLE = ("c1_r", "c2_r", "c3_r", "c4", "esa.conv2", "esa.conv3", "esa.conv3_", "esa.conv_max")
_PLAIN = ("c1_d", "c2_d", "c3_d", "c5", "cca.conv_du.0", "cca.conv_du.2", "esa.conv1", "esa.conv4", "esa.conv_f")
_BLOCK = weights_of(*_PLAIN) | blueprints(*_SEPARABLE)
_OTHERS = blueprints("fea_conv", "c2") | weights_of("c1", "upsampler.upsampleOneStep.0")
