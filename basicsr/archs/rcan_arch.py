"""RCAN: residual groups of blocks with channel attention."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from basicsr.archs.arch_util import ResidualTrunk, block_conflicts, make_layer
from basicsr.utils.ranges import Blocks, Colour, Factor, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments


class ChannelAttention(nn.Module):
    """Scales each channel of (B, num_feat, H, W) by a gate in (0, 1), from all channels' means, squeezed inside."""

    def __init__(self, num_feat: int, squeeze_factor: int = 16) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(num_feat, num_feat // squeeze_factor, 1),
            nn.ReLU(),
            nn.Conv2d(num_feat // squeeze_factor, num_feat, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.attention(x)


class RCAB(nn.Module):
    """Residual channel attention block: x + res_scale * attention(conv3x3(relu(conv3x3(x))))."""

    def __init__(self, num_feat: int, squeeze_factor: int = 16, res_scale: float = 1) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.rcab = nn.Sequential(
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1),
            ChannelAttention(num_feat, squeeze_factor),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rcab(x), alpha=self.res_scale)


class ResidualGroup(nn.Module):
    """`num_block` RCABs and a convolution, around which the input is added."""

    def __init__(self, num_feat: int, num_block: int, squeeze_factor: int = 16, res_scale: float = 1) -> None:
        super().__init__()
        self.residual_group = make_layer(
            RCAB, num_block, num_feat=num_feat, squeeze_factor=squeeze_factor, res_scale=res_scale
        )
        self.conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.residual_group(x)) + x


@ARCH_REGISTRY.register()
class RCAN(ResidualTrunk):
    """RCAN (Zhang et al., Super-Resolution Using Very Deep Residual Channel Attention Networks, ECCV 2018).

    Other arguments: see `ResidualTrunk`.

    Args:
        num_group: residual groups.
        num_block: channel attention blocks in each group.
        squeeze_factor: how many times fewer channels the attention has inside.
        res_scale: factor on the residual branch of each block.
    """

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels,
        num_out_ch: ImageChannels,
        num_feat: Features = 64,
        num_group: Blocks = 10,
        num_block: Blocks = 16,
        squeeze_factor: Features = 16,
        upscale: Scale = 4,
        res_scale: Factor = 1,
        img_range: ImageRange = 255.0,
        rgb_mean: tuple[Colour, ...] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        check_arguments(RCAN, locals())
        group = {"num_feat": num_feat, "num_block": num_block, "squeeze_factor": squeeze_factor, "res_scale": res_scale}
        body = partial(make_layer, ResidualGroup, num_group, **group)
        super().__init__(body, num_in_ch, num_out_ch, num_feat, upscale, img_range, rgb_mean)

    @staticmethod
    def conflicts(  # type: ignore[override]  # called by names
        num_feat: int,
        num_group: int,
        num_block: int,
        squeeze_factor: int,
        upscale: int,
        rgb_mean: tuple[float, ...],
        num_in_ch: int,
        num_out_ch: int,
    ) -> Iterator[Conflict]:
        yield from ResidualTrunk.conflicts(upscale, rgb_mean, num_in_ch, num_out_ch)
        if squeeze_factor > num_feat:
            yield "squeeze_factor", f"{squeeze_factor} is not between 1 and num_feat, {num_feat}: change either"
        yield from block_conflicts("num_group", num_group * num_block)
