"""RLFN: residual local features, RFDN without distillation: three plain convolutions to a stage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.lightweight_blocks import NumberedStages, SpatialAttention, pixel_shuffle_tail, tail_of
from basicsr.archs.recognition import Recognised, equal_blocks, weights_of
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments

_SLOPE = 0.05


class RLFB(nn.Module):
    """Residual local feature block: esa(c5(x + convolutions(x))), on (B, num_feat, H, W)."""

    def __init__(self, num_feat: int, mid_channels: int, esa_channels: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(num_feat, mid_channels, 3, 1, 1)
        self.c2_r = nn.Conv2d(mid_channels, mid_channels, 3, 1, 1)
        self.c3_r = nn.Conv2d(mid_channels, num_feat, 3, 1, 1)
        self.c5 = nn.Conv2d(num_feat, num_feat, 1)
        self.esa = SpatialAttention(num_feat, esa_channels)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for convolution in (self.c1_r, self.c2_r, self.c3_r):
            features = F.leaky_relu(convolution(features), _SLOPE)
        return self.esa(self.c5(features + x))


@ARCH_REGISTRY.register()
class RLFN(NumberedStages):
    """RLFN (Kong et al., Residual Local Feature Network for Efficient Super-Resolution, CVPRW 2022).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features: 52, in RLFN-S 48, in the network of the NTIRE 2022 challenge 46.
        mid_channels: channels between the convolutions of a stage; `num_feat` where left out.
        esa_channels: channels inside the attention.
        num_block: stages: 6, in the challenge's network 4.
        upscale: factor of enlargement.
        img_range: factor on the input, which is in [0, 1].
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"resizing to the image's size"})
    stages_name = "block_"

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 52,
        mid_channels: Features | None = None,
        esa_channels: Features = 16,
        num_block: Blocks = 6,
        upscale: Scale = 4,
        img_range: ImageRange = 255.0,
    ) -> None:
        check_arguments(RLFN, locals())
        super().__init__()
        self.img_range = img_range
        self.conv_1 = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.add_stages(RLFB(num_feat, mid_channels or num_feat, esa_channels) for _ in range(num_block))
        self.conv_2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsampler = pixel_shuffle_tail(num_feat, num_out_ch, upscale)

    def stem(self, x):
        shallow = self.conv_1(x * self.img_range)
        return shallow, shallow

    def reconstruct(self, features, kept):
        return self.upsampler(self.conv_2(features) + kept) / self.img_range

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys, and those of their entry in the NTIRE 2022 challenge; see `basicsr.archs.recognition`."""
        renamed, layout = dict(state), "RLFN's original"
        if "LR_conv.weight" in state:
            renamed, layout = {_from_ntire(key): value for key, value in state.items()}, "NTIRE 2022"
        if not (blocks := equal_blocks(renamed, "block_", _BLOCK, _OTHERS)):
            return None
        features, colours = renamed["conv_1.weight"].shape[:2]
        channels, scale = tail_of(renamed, "upsampler.0", colours)
        middle = renamed["block_1.c1_r.weight"].shape[0]
        if not scale:
            return None
        options = {
            "type": "RLFN",
            "num_in_ch": colours,
            "num_out_ch": channels,
            "num_feat": features,
            "mid_channels": None if middle == features else middle,
            "esa_channels": renamed["block_1.esa.conv1.weight"].shape[0],
            "num_block": blocks,
            "upscale": scale,
            "img_range": 255.0,
        }
        return Recognised("RLFN", layout, options, scale, renamed, ("img_range 255",))


_ATTENTION = (f"esa.conv{name}" for name in ("1", "2", "3", "4", "_f"))
_BLOCK = weights_of("c1_r", "c2_r", "c3_r", "c5", *_ATTENTION)
_OTHERS = weights_of("conv_1", "conv_2", "upsampler.0")


def _from_ntire(key: str) -> str:
    owner, rest = key.split(".", 1)
    owner = {"fea_conv": "conv_1", "LR_conv": "conv_2"}.get(owner, owner)
    return f"{re.sub(r'^B(?=[0-9]+$)', 'block_', owner)}.{rest}"
