"""SAFMN++: SAFMN for speed, with one lower resolution and no normalisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import StagedNetwork
from basicsr.archs.lightweight_blocks import tail_of
from basicsr.archs.recognition import Recognised, equal_blocks, weights_of
from basicsr.archs.safmn_arch import smaller
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, Ratio, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_PARTS = 3
_REDUCTION = 8


class SimpleSAFM(nn.Module):
    """(B, num_feat, H, W) to the same shape: a third of the channels gated by what it is at an eighth of the size."""

    smallest_traced_side = 2 * _REDUCTION
    """As of `SAFM`."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        part = num_feat // _PARTS
        self.parts = [part, num_feat - part]
        self.proj = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)
        self.dwconv = nn.Conv2d(part, part, 3, 1, 1, groups=part, bias=False)
        self.out = nn.Conv2d(num_feat, num_feat, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated, others = self.proj(x).split(self.parts, dim=1)
        seen = self.dwconv(smaller(gated, _REDUCTION))
        seen = F.interpolate(seen, x.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(F.gelu(torch.cat([others, F.gelu(seen) * gated], dim=1)))


class PlainMixer(nn.Module):
    """3x3 to more channels, GELU, 1x1 back."""

    def __init__(self, num_feat: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, hidden, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(hidden, num_feat, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.conv1(x)))


class PlainBlock(nn.Module):
    """x + mixer(attention(x))."""

    def __init__(self, num_feat: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = SimpleSAFM(num_feat)
        self.conv2 = PlainMixer(num_feat, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


@ARCH_REGISTRY.register()
class SAFMNPP(StagedNetwork):
    """SAFMN++ (of SAFMN's authors, NTIRE 2024 Challenge on Efficient Super-Resolution), on the bilinear enlargement.

    Args:
        num_in_ch: channels of the input and of the output.
        num_feat: channels of the features, 3 at least.
        num_block: stages.
        ffn_scale: hidden channels of the mixers over `num_feat`.
        upscale: factor of enlargement.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset(
        {"pooling into parts of the image", "resizing to the image's size", "layer norm over channels"}
    )
    stages_name = "feats"

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_feat: Features = 36,
        num_block: Blocks = 6,
        ffn_scale: Ratio = 1.5,
        upscale: Scale = 4,
    ) -> None:
        check_arguments(SAFMNPP, locals())
        super().__init__()
        self.upscale = upscale
        self.to_feat = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1, bias=False)
        self.feats = nn.Sequential(*(PlainBlock(num_feat, int(num_feat * ffn_scale)) for _ in range(num_block)))
        last = nn.Conv2d(num_feat, num_in_ch * upscale**2, 3, 1, 1, bias=False)
        self.to_img = nn.Sequential(last, nn.PixelShuffle(upscale))

    @staticmethod
    def conflicts(num_feat: int, ffn_scale: float) -> Iterator[Conflict]:
        if num_feat < _PARTS:
            yield "num_feat", f"{num_feat} is less than {_PARTS}: a third of the channels is gated"
        if int(num_feat * ffn_scale) < 1:
            yield "ffn_scale", f"{ffn_scale} leaves no hidden channel of num_feat {num_feat}: raise it"

    def stem(self, x):
        return self.to_feat(x), x

    def reconstruct(self, features, kept):
        return self.to_img(features) + F.interpolate(kept, scale_factor=self.upscale, mode="bilinear")

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys; see `basicsr.archs.recognition`."""
        if not (blocks := equal_blocks(state, "feats.", _BLOCK, weights_of("to_feat", "to_img.0", bias=False))):
            return None
        features, colours = state["to_feat.weight"].shape[:2]
        channels, scale = tail_of(state, "to_img.0", colours)
        hidden = state["feats.0.conv2.conv1.weight"].shape[0]
        if not scale or channels != colours or state["feats.0.conv1.dwconv.weight"].shape[0] != features // _PARTS:
            return None
        ratio = hidden / features
        options = {
            "type": "SAFMNPP",
            "num_in_ch": colours,
            "num_feat": features,
            "num_block": blocks,
            "ffn_scale": ratio if int(features * ratio) == hidden else (hidden + 0.5) / features,
            "upscale": scale,
        }
        return Recognised("SAFMNPP", "SAFMN++'s original", options, scale, dict(state))


_BLOCK = weights_of("conv1.proj", "conv1.dwconv", "conv1.out", "conv2.conv1", "conv2.conv2", bias=False)
