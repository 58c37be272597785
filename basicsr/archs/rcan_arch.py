"""RCAN: residual groups of blocks with channel attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.archs.arch_util import ResidualTrunk, block_conflicts, make_layer
from basicsr.archs.mean_shift import DIV2K_MEAN
from basicsr.archs.recognition import Recognised, State, numbered, ours
from basicsr.archs.trunk_layouts import TrunkLayout, read_trunk, shifted_layout, to_shifted
from basicsr.utils.ranges import Blocks, Colour, Factor, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_ORIGINAL = {
    "head.0": "conv_first",
    "body.#.body.#.body.0": "body.#.residual_group.#.rcab.0",
    "body.#.body.#.body.2": "body.#.residual_group.#.rcab.2",
    "body.#.body.#.body.3.conv_du.0": "body.#.residual_group.#.rcab.3.attention.1",
    "body.#.body.#.body.3.conv_du.2": "body.#.residual_group.#.rcab.3.attention.3",
    "body.#.body.*": "body.#.conv",
    "body.*": "conv_after_body",
    "tail.0.#": "upsample.#",
    "tail.1": "conv_last",
}
_OURS = ours(
    r"conv_first|conv_after_body|conv_last|body\.\d+\.conv|upsample\.\d+",
    r"body\.\d+\.residual_group\.\d+\.rcab\.(0|2|3\.attention\.1|3\.attention\.3)",
)
_LAYOUTS = {"BasicSR": TrunkLayout(_OURS, 255), "RCAN's original": shifted_layout(_ORIGINAL)}
_SQUEEZED = "body.0.residual_group.0.rcab.3.attention.1.weight"


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

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The keys of BasicSR and of the authors, which are EDSR-PyTorch's; see `basicsr.archs.recognition`."""
        return read_trunk(state, _LAYOUTS, (_SQUEEZED,), _read)


def _read(state: State) -> tuple[dict[str, Any], tuple[str, ...]]:
    options = {
        "type": "RCAN",
        "num_group": numbered(state, "body"),
        "num_block": numbered(state, "body.0.residual_group"),
        "squeeze_factor": state["conv_first.weight"].shape[0] // state[_SQUEEZED].shape[0],
    }
    return options, ("res_scale 1",)


def to_original_rcan(
    state: Mapping[str, Tensor], *, img_range: float = 255.0, rgb_mean: Sequence[float] = DIV2K_MEAN
) -> State:
    """As `to_edsr_pytorch`, for our RCAN and its authors' keys. They have no `res_scale`: it must be 1."""
    return to_shifted("RCAN", _ORIGINAL, state, img_range, rgb_mean)
