"""NAFNet: a U-shaped network of convolutions without activation functions, for images of one size in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import block_conflicts, pad_to_multiple
from basicsr.archs.recognition import Recognised, first_fitting, numbered, ours
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import BlocksOrNone, Features, ImageChannels
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

MOST_LEVELS = 8
WIDEST = 16384
_KEYS = ours(
    r"intro|ending|downs\.\d+|ups\.\d+\.0",
    r"(?:encoders\.\d+|middle_blks|decoders\.\d+)\.\d+\.(?:beta|gamma|norm[12]|conv[1-5]|sca\.1)",
)
_NEEDED = ("intro.weight", "ending.weight", "downs.0.weight", "ups.0.0.weight")


class LayerNorm2d(nn.Module):
    """Normalises the channels of each pixel of (B, C, H, W), with a weight and a bias for each channel."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class SimpleGate(nn.Module):
    """One half of the channels times the other: (B, 2C, H, W) to (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return left * right


class NAFBlock(nn.Module):
    """y = x + beta mix(norm(x)), then y + gamma feed(norm(y)), on (B, C, H, W).

    mix: 1x1 and depthwise 3x3 convolutions to 2C channels, the gate, channel attention sca, a 1x1 convolution.
    sca(z) = z W(mean of z over H and W), without a nonlinearity. feed: 1x1 to 2C, the gate, 1x1. A new block is the
    identity, as beta and gamma begin at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.sg = SimpleGate()
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv3 = nn.Conv2d(channels, channels, 1)
        self.norm2 = LayerNorm2d(channels)
        self.conv4 = nn.Conv2d(channels, 2 * channels, 1)
        self.conv5 = nn.Conv2d(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.sg(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.conv3(mixed * self.sca(mixed)) * self.beta
        return x + self.conv5(self.sg(self.conv4(self.norm2(x)))) * self.gamma


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*[NAFBlock(channels) for _ in range(count)])


@ARCH_REGISTRY.register()
class NAFNet(nn.Module):
    """NAFNet (Chen et al., Simple Baselines for Image Restoration, ECCV 2022).

    Takes images of any size: extended by reflection to multiples of 2^levels inside (the authors' code extends by
    zeros; for multiples there is no difference), then cropped. Each level halves the image and doubles the channels.

    Args:
        img_channel: colours of the input and of the output.
        width: channels of the first level.
        middle_blk_num: blocks at the lowest resolution.
        enc_blk_nums: blocks of each level on the way down.
        dec_blk_nums: blocks of each level on the way up, the lowest first; as many entries.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"sides extended to multiples", "layer norm over channels"})

    def __init__(
        self,
        *,
        img_channel: ImageChannels = 3,
        width: Features = 16,
        middle_blk_num: BlocksOrNone = 1,
        enc_blk_nums: tuple[BlocksOrNone, ...] = (),
        dec_blk_nums: tuple[BlocksOrNone, ...] = (),
    ) -> None:
        check_arguments(NAFNet, locals())
        super().__init__()
        levels = len(enc_blk_nums)
        widths = [width * 2**level for level in range(levels)]
        self.padder_size = 2**levels
        self.intro = nn.Conv2d(img_channel, width, 3, padding=1)
        self.encoders = nn.ModuleList(map(_blocks, widths, enc_blk_nums))
        self.downs = nn.ModuleList(nn.Conv2d(channels, 2 * channels, 2, stride=2) for channels in widths)
        self.middle_blks = _blocks(width * self.padder_size, middle_blk_num)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * channels, 4 * channels, 1, bias=False), nn.PixelShuffle(2))
            for channels in reversed(widths)
        )
        self.decoders = nn.ModuleList(map(_blocks, reversed(widths), dec_blk_nums))
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)

    @staticmethod
    def conflicts(
        width: int, middle_blk_num: int, enc_blk_nums: tuple[int, ...], dec_blk_nums: tuple[int, ...]
    ) -> Iterator[Conflict]:
        levels = len(enc_blk_nums)
        if levels != len(dec_blk_nums):
            yield (
                "enc_blk_nums",
                f"has {levels} entries and dec_blk_nums {len(dec_blk_nums)}: give one per level in each",
            )
        widest = width * 2 ** min(levels, MOST_LEVELS)
        if levels > MOST_LEVELS or widest > WIDEST:
            yield (
                "enc_blk_nums",
                f"has {levels} entries, each of which doubles width {width}; allowed: {MOST_LEVELS} and"
                f" {WIDEST} channels at the lowest resolution",
            )
        yield from block_conflicts("enc_blk_nums", sum(enc_blk_nums) + middle_blk_num + sum(dec_blk_nums))

    def forward(self, x: Tensor) -> Tensor:
        """Restores (B, C, H, W) in [0, 1] to the same shape, not clipped; any H and W."""
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.padder_size)
        features = self.intro(x)
        skips = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encoder(features))
            features = down(skips[-1])
        features = self.middle_blks(features)
        for decoder, up in zip(self.decoders, self.ups, strict=True):
            features = decoder(up(features) + skips.pop())
        return (self.ending(features) + x)[..., :height, :width]

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys, which are BasicSR's; see `basicsr.archs.recognition`."""
        if (fitting := first_fitting(state, {"BasicSR": _KEYS}, _NEEDED)) is None:
            return None
        layout, converted = fitting
        levels = range(numbered(converted, "downs"))
        options = {
            "type": "NAFNet",
            "img_channel": converted["intro.weight"].shape[1],
            "width": converted["intro.weight"].shape[0],
            "middle_blk_num": numbered(converted, "middle_blks"),
            "enc_blk_nums": tuple(numbered(converted, f"encoders.{level}") for level in levels),
            "dec_blk_nums": tuple(numbered(converted, f"decoders.{level}") for level in levels),
        }
        return Recognised("NAFNet", layout, options, 1, converted)
