"""SAFMN: attention from features seen at four resolutions, and convolutional channel mixers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import StagedNetwork
from basicsr.archs.lightweight_blocks import pixel_shuffle_tail, tail_of
from basicsr.archs.nafnet_arch import LayerNorm2d
from basicsr.archs.recognition import Recognised, equal_blocks, weights_of
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, ImageRange, Ratio, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_LEVELS = 4


class SAFM(nn.Module):
    """Spatially-adaptive feature modulation: (B, num_feat, H, W) times a gate of that shape.

    A quarter of the channels is seen at full resolution, the others at a half, a quarter and an eighth of it.
    """

    smallest_traced_side = 2 * 2 ** (_LEVELS - 1)
    """From here on there are two parts along each axis, as a graph for all sizes supposes."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        part = num_feat // _LEVELS
        self.mfr = nn.ModuleList(nn.Conv2d(part, part, 3, 1, 1, groups=part) for _ in range(_LEVELS))
        self.aggr = nn.Conv2d(num_feat, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        seen = []
        for level, (part, convolution) in enumerate(zip(x.chunk(_LEVELS, dim=1), self.mfr, strict=True)):
            features = convolution(smaller(part, 2**level))
            seen.append(F.interpolate(features, size, mode="nearest") if level else features)
        return F.gelu(self.aggr(torch.cat(seen, dim=1))) * x


def smaller(x: Tensor, factor: int) -> Tensor:
    """The largest values of parts of (B, C, H, W), of which there are H // factor by W // factor, 1 at least."""
    if factor == 1:
        return x
    if not torch.compiler.is_exporting():
        return F.adaptive_max_pool2d(x, [max(side // factor, 1) for side in x.shape[-2:]])
    # ONNX has no pooling into parts of unequal sizes: of each row of parts, row after row.
    for axis in (2, 3):
        side = x.shape[axis]
        count = torch.sym_max(side // factor, 1)
        number = torch.arange(count, device=x.device)
        starts, ends = number * side // count, ((number + 1) * side + count - 1) // count
        steps = torch.arange(2 * factor, device=x.device)[:, None]  # no part is longer
        rows = x.index_select(axis, torch.minimum(starts + steps, ends - 1).flatten())
        x = rows.reshape(*x.shape[:axis], 2 * factor, count, *x.shape[axis + 1 :]).amax(axis)
    return x


class CCM(nn.Module):
    """Convolutional channel mixer: 3x3 to more channels, GELU, 1x1 back."""

    def __init__(self, num_feat: int, hidden: int) -> None:
        super().__init__()
        self.ccm = nn.Sequential(nn.Conv2d(num_feat, hidden, 3, 1, 1), nn.GELU(), nn.Conv2d(hidden, num_feat, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.ccm(x)


class AttBlock(nn.Module):
    """y = x + safm(norm(x)), then y + ccm(norm(y))."""

    def __init__(self, num_feat: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(num_feat)
        self.norm2 = LayerNorm2d(num_feat)
        self.safm = SAFM(num_feat)
        self.ccm = CCM(num_feat, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.safm(self.norm1(x)) + x
        return self.ccm(self.norm2(x)) + x


@ARCH_REGISTRY.register()
class SAFMN(StagedNetwork):
    """SAFMN (Sun et al., Spatially-Adaptive Feature Modulation for Efficient Image Super-Resolution, ICCV 2023).

    At sides that are no multiples of 8 the parts of a resolution overlap by a pixel, as in the authors' code.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features, a multiple of 4: 36, in the large network 128.
        num_block: stages: 8, in the large network 16.
        ffn_scale: hidden channels of the mixers over `num_feat`.
        upscale: factor of enlargement.
        img_range: factor on the input, which is in [0, 1].
    """

    traits: ClassVar[frozenset[Trait]] = frozenset(
        {"pooling into parts of the image", "resizing to the image's size", "layer norm over channels"}
    )
    stages_name = "feats"

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 36,
        num_block: Blocks = 8,
        ffn_scale: Ratio = 2.0,
        upscale: Scale = 4,
        img_range: ImageRange = 1.0,
    ) -> None:
        check_arguments(SAFMN, locals())
        super().__init__()
        self.img_range = img_range
        self.to_feat = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.feats = nn.Sequential(*(AttBlock(num_feat, int(num_feat * ffn_scale)) for _ in range(num_block)))
        self.to_img = pixel_shuffle_tail(num_feat, num_out_ch, upscale)

    @staticmethod
    def conflicts(num_feat: int, ffn_scale: float) -> Iterator[Conflict]:
        if num_feat % _LEVELS:
            yield "num_feat", f"{num_feat} is not a multiple of {_LEVELS}, the resolutions that share the channels"
        if int(num_feat * ffn_scale) < 1:
            yield "ffn_scale", f"{ffn_scale} leaves no hidden channel of num_feat {num_feat}: raise it"

    def stem(self, x):
        shallow = self.to_feat(x * self.img_range)
        return shallow, shallow

    def reconstruct(self, features, kept):
        return self.to_img(features + kept) / self.img_range

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys; see `basicsr.archs.recognition`."""
        if not (blocks := equal_blocks(state, "feats.", _BLOCK, weights_of("to_feat", "to_img.0"))):
            return None
        features, colours = state["to_feat.weight"].shape[:2]
        channels, scale = tail_of(state, "to_img.0", colours)
        hidden = state["feats.0.ccm.ccm.0.weight"].shape[0]
        if not scale or state["feats.0.safm.mfr.3.weight"].shape[0] * _LEVELS != features:
            return None
        options = {
            "type": "SAFMN",
            "num_in_ch": colours,
            "num_out_ch": channels,
            "num_feat": features,
            "num_block": blocks,
            # A ratio for which int(features * ratio) is `hidden`, whatever the rounding.
            "ffn_scale": hidden / features
            if int(features * (hidden / features)) == hidden
            else (hidden + 0.5) / features,
            "upscale": scale,
            "img_range": 1.0,
        }
        return Recognised("SAFMN", "SAFMN's original", options, scale, dict(state), ("img_range 1",))


_MODULATION = (*(f"safm.mfr.{level}" for level in range(_LEVELS)), "safm.aggr")
_BLOCK = weights_of("norm1", "norm2", "ccm.ccm.0", "ccm.ccm.2", *_MODULATION)
