"""Restormer: a U-shaped transformer whose attention is between channels, for images of one size in and out."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import block_conflicts, pad_to_multiple
from basicsr.archs.recognition import Recognised, first_fitting, numbered, ours
from basicsr.archs.traits import Trait
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import BlocksOrNone, Features, Heads, ImageChannels, Ratio
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

LEVELS = 4
_STAGES = r"(?:encoder_level[123]|latent|decoder_level[123]|refinement)\.\d+"
_KEYS = ours(
    r"patch_embed\.proj|(?:down|up)\d_\d\.body\.0|reduce_chan_level[23]|skip_conv|output",
    rf"{_STAGES}\.(?:norm[12]\.body|attn\.temperature|attn\.(?:qkv|qkv_dwconv|project_out))",
    rf"{_STAGES}\.ffn\.(?:project_in|dwconv|project_out)",
)
_NEEDED = ("patch_embed.proj.weight", "latent.0.attn.temperature", "output.weight", "reduce_chan_level3.weight")


class ChannelScale(nn.Module):
    """'BiasFree' norm: y = weight x / sqrt(var(x) + eps), var over the channels of each pixel (..., C)."""

    computes_in_float32 = True

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Returns a float32 or float64 tensor of the shape of `x`."""
        x = at_least_float32(x)  # squares of float16 overflow
        return x * torch.rsqrt(x.var(-1, keepdim=True, correction=0) + self.eps) * self.weight


class LayerNorm(nn.Module):
    """Normalises the channels of each pixel of (B, C, H, W): 'WithBias' is the usual layer norm."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.body = nn.LayerNorm(channels, eps=1e-5) if kind == "WithBias" else ChannelScale(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Transposed attention: which channel attends to which, by their likeness over all pixels; on (B, C, H, W).

    In each head, with queries, keys and values (C / heads, H W) from a 1x1 and a depthwise 3x3 convolution, and unit
    rows of q and k: softmax(temperature q k^T) v. Its cost is linear in the number of pixels.
    """

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv_dwconv(self.qkv(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.unbind(1)
        # A sum of squares over a whole image overflows float16.
        query, key = (F.normalize(at_least_float32(each), dim=-1) for each in (query, key))
        scores = query @ key.transpose(-2, -1) * self.temperature
        attended = scores.softmax(-1).to(value.dtype) @ value
        return self.project_out(attended.reshape(batch, channels, height, width))


class FeedForward(nn.Module):
    """Gated feed-forward: project_out(gelu(a) b), (a, b) = 1x1 and depthwise 3x3 convolutions of x; (B, C, H, W)."""

    def __init__(self, channels: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, content = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * content)


class TransformerBlock(nn.Module):
    """x + attn(norm1(x)), then x + ffn(norm2(x)), on (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, expansion: float, bias: bool, norm: str) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels, norm)
        self.attn = Attention(channels, heads, bias)
        self.norm2 = LayerNorm(channels, norm)
        self.ffn = FeedForward(channels, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


@ARCH_REGISTRY.register()
class Restormer(nn.Module):
    """Restormer (Zamir et al., Efficient Transformer for High-Resolution Image Restoration, CVPR 2022).

    Takes images of any size: extended by reflection to multiples of 8 inside, then cropped. Four levels, of dim, 2 dim,
    4 dim and 8 dim channels; the first level's way up, and the refinement, have 2 dim.

    Args:
        inp_channels: colours of the input.
        out_channels: colours of the output; those of the input but with `dual_pixel_task`.
        dim: channels of the first level, even.
        num_blocks: transformer blocks of each of the four levels; the first three have as many on the way up.
        num_refinement_blocks: transformer blocks after that.
        heads: attention heads of each level, dividing its channels.
        ffn_expansion_factor: hidden channels of the feed-forward over its own, rounded down.
        bias: whether convolutions have one.
        LayerNorm_type: 'WithBias', or 'BiasFree' as the networks for denoising have it.
        dual_pixel_task: for two views of a dual-pixel camera, six colours in: adds the first features to the last ones
            instead of the input to the output.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset(
        {"attention between channels", "sides extended to multiples", "layer norm over channels"}
    )

    def __init__(
        self,
        *,
        inp_channels: ImageChannels = 3,
        out_channels: ImageChannels = 3,
        dim: Features = 48,
        num_blocks: tuple[BlocksOrNone, ...] = (4, 6, 6, 8),
        num_refinement_blocks: BlocksOrNone = 4,
        heads: tuple[Heads, ...] = (1, 2, 4, 8),
        ffn_expansion_factor: Ratio = 2.66,
        bias: bool = False,
        LayerNorm_type: Literal["WithBias", "BiasFree"] = "WithBias",
        dual_pixel_task: bool = False,
    ) -> None:
        check_arguments(Restormer, locals())
        super().__init__()
        self.padder_size = 2 ** (LEVELS - 1)

        def blocks(level: int, count: int, channels: int) -> nn.Sequential:
            made = (channels, heads[level], ffn_expansion_factor, bias, LayerNorm_type)
            return nn.Sequential(*[TransformerBlock(*made) for _ in range(count)])

        self.patch_embed = nn.Sequential(OrderedDict(proj=_conv3(inp_channels, dim)))
        self.encoder_level1 = blocks(0, num_blocks[0], dim)
        self.down1_2 = _down(dim)
        self.encoder_level2 = blocks(1, num_blocks[1], 2 * dim)
        self.down2_3 = _down(2 * dim)
        self.encoder_level3 = blocks(2, num_blocks[2], 4 * dim)
        self.down3_4 = _down(4 * dim)
        self.latent = blocks(3, num_blocks[3], 8 * dim)
        self.up4_3 = _up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = blocks(2, num_blocks[2], 4 * dim)
        self.up3_2 = _up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = blocks(1, num_blocks[1], 2 * dim)
        self.up2_1 = _up(2 * dim)
        self.decoder_level1 = blocks(0, num_blocks[0], 2 * dim)
        self.refinement = blocks(0, num_refinement_blocks, 2 * dim)
        self.dual_pixel_task = dual_pixel_task
        if dual_pixel_task:
            self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    @staticmethod
    def conflicts(
        inp_channels: int,
        out_channels: int,
        dim: int,
        num_blocks: tuple[int, ...],
        num_refinement_blocks: int,
        heads: tuple[int, ...],
        dual_pixel_task: bool,
    ) -> Iterator[Conflict]:
        if inp_channels != out_channels and not dual_pixel_task:
            yield (
                "inp_channels",
                f"{inp_channels} and out_channels {out_channels} must be equal, as the input is added to the output:"
                " change either, or set dual_pixel_task to true",
            )
        for name, values in (("num_blocks", num_blocks), ("heads", heads)):
            if len(values) != LEVELS:
                yield name, f"needs {LEVELS} entries, one per level, got {list(values)}"
        if dim % 2:
            yield "dim", f"must be even, as halving the image halves it first, got {dim}"
        for level, count in enumerate(heads):
            if dim * 2**level % count:
                yield (
                    "heads",
                    f"{list(heads)}: {count} do not divide the {dim * 2**level} channels of level {level + 1}; change"
                    " heads or dim",
                )
        yield from block_conflicts("num_blocks", sum(num_blocks) + num_refinement_blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Restores (B, inp_channels, H, W) in [0, 1] to (B, out_channels, H, W), not clipped; any H and W."""
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.padder_size)
        first = self.patch_embed(x)
        level1 = self.encoder_level1(first)
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        features = self.latent(self.down3_4(level3))
        features = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(features), level3], 1)))
        features = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(features), level2], 1)))
        features = self.refinement(self.decoder_level1(torch.cat([self.up2_1(features), level1], 1)))
        if self.dual_pixel_task:
            return self.output(features + self.skip_conv(first))[..., :height, :width]
        return (self.output(features) + x)[..., :height, :width]

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys, which are BasicSR's; see `basicsr.archs.recognition`."""
        if (fitting := first_fitting(state, {"BasicSR": _KEYS}, _NEEDED)) is None:
            return None
        layout, state = fitting
        levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
        dim, colours = state["patch_embed.proj.weight"].shape[:2]
        hidden = [state[f"{level}.0.ffn.project_out.weight"].shape[1] for level in levels]
        options = {
            "type": "Restormer",
            "inp_channels": colours,
            "out_channels": state["output.weight"].shape[0],
            "dim": dim,
            "num_blocks": tuple(numbered(state, level) for level in levels),
            "num_refinement_blocks": numbered(state, "refinement"),
            "heads": tuple(state[f"{level}.0.attn.temperature"].shape[0] for level in levels),
            "ffn_expansion_factor": _factor([dim * 2**level for level in range(4)], hidden),
            "bias": "latent.0.attn.qkv.bias" in state,
            "LayerNorm_type": "WithBias" if "latent.0.norm1.body.bias" in state else "BiasFree",
            "dual_pixel_task": "skip_conv.weight" in state,
        }
        return Recognised("Restormer", layout, options, 1, state)


def _conv3(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


def _down(channels: int) -> nn.Sequential:
    """(B, C, H, W) to (B, 2C, H/2, W/2)."""
    body = nn.Sequential(_conv3(channels, channels // 2), nn.PixelUnshuffle(2))
    return nn.Sequential(OrderedDict(body=body))  # under this name in its authors' weights


def _up(channels: int) -> nn.Sequential:
    """(B, C, H, W) to (B, C/2, 2H, 2W)."""
    return nn.Sequential(OrderedDict(body=nn.Sequential(_conv3(channels, channels * 2), nn.PixelShuffle(2))))


def _factor(widths: Sequence[int], hidden: Sequence[int]) -> float:
    """The shortest decimal number f for which int(width f) is what is hidden, at all widths: 2.66 of Restormer's."""
    least = max(inner / width for width, inner in zip(widths, hidden, strict=True))
    for digits in range(17):
        factor = math.ceil(round(least * 10**digits, 6)) / 10**digits
        if [int(width * factor) for width in widths] == list(hidden):
            return factor
    return least
