"""Blocks that several networks share, under BasicSR's names and argument order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.staged import StagedNetwork
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import Conflict

MOST_BLOCKS = 2000


@torch.no_grad()
def default_init_weights(
    module_list: nn.Module | list[nn.Module], scale: float = 1, bias_fill: float = 0, **kwargs: Any
) -> None:
    """Fills convolutions and linear layers by Kaiming's normal rule times `scale`, batch norms with ones.

    `bias_fill` is the value of every bias; `kwargs` go to `torch.nn.init.kaiming_normal_`.
    """
    modules = module_list if isinstance(module_list, list) else [module_list]
    for module in (inner for outer in modules for inner in outer.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, **kwargs)
            module.weight.mul_(scale)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(module.weight)
        else:
            continue
        if module.bias is not None:
            module.bias.fill_(bias_fill)


def make_layer(basic_block: Callable[..., nn.Module], num_basic_block: int, **kwarg: Any) -> nn.Sequential:
    """Stacks `num_basic_block` blocks, each built as `basic_block(**kwarg)`."""
    return nn.Sequential(*(basic_block(**kwarg) for _ in range(num_basic_block)))


class ResidualBlockNoBN(nn.Module):
    """EDSR's block without batch norm: x + res_scale * conv3x3(relu(conv3x3(x))), on (B, `num_feat`, H, W).

    Weights begin by `default_init_weights` at scale 0.1, or with `pytorch_init` as PyTorch's.
    """

    def __init__(self, num_feat: int = 64, res_scale: float = 1, pytorch_init: bool = False) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv2 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.relu = nn.ReLU()
        if not pytorch_init:
            default_init_weights([self.conv1, self.conv2], 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `x`."""
        return torch.add(x, self.conv2(self.relu(self.conv1(x))), alpha=self.res_scale)


class Upsample(nn.Sequential):
    """Sub-pixel upsampling by convolutions and pixel shuffles: (B, C, H, W) to (B, C, scale H, scale W).

    `scale` is a power of two (1 is the identity) or 3, others raise OptionsError; `num_feat` is C.
    """

    def __init__(self, scale: int, num_feat: int) -> None:
        for key, message in upscale_conflicts(scale):
            raise OptionsError(f"{key}: {message}")
        steps = [3] if scale == 3 else [2] * (scale.bit_length() - 1)
        layers: list[nn.Module] = []
        for step in steps:
            layers += [nn.Conv2d(num_feat, step**2 * num_feat, 3, 1, 1), nn.PixelShuffle(step)]
        super().__init__(*layers)


def block_conflicts(key: str, blocks: int) -> Iterator[Conflict]:
    """Refuses more blocks than a network can be made of in any useful time."""
    if blocks > MOST_BLOCKS:
        yield key, f"makes {blocks} blocks in all, allowed: {MOST_BLOCKS}; lower it"


def upscale_conflicts(upscale: int) -> Iterator[Conflict]:
    """Refuses a factor that `Upsample` does not have."""
    if upscale != 3 and (upscale < 1 or upscale & (upscale - 1)):
        yield "upscale", f"{upscale} is not supported: give a power of two or 3"


def pixel_unshuffle(x: Tensor, scale: int) -> Tensor:
    """Folds `scale` by `scale` pixels into channels: (B, C, scale H, scale W) to (B, C scale^2, H, W)."""
    return F.pixel_unshuffle(x, scale)


def to_2tuple(x: Any) -> Any:
    """Returns `x` itself if it is iterable, else `(x, x)`."""
    return x if isinstance(x, Iterable) else (x, x)


def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fills `tensor` in place from the normal distribution cut off at the values `a` and `b`."""
    return nn.init.trunc_normal_(tensor, mean, std, a, b)


def trunk_conflicts(upscale: int, rgb_mean: tuple[float, ...], num_in_ch: int, num_out_ch: int) -> Iterator[Conflict]:
    """Refuses a factor or a mean colour that does not fit a `ResidualTrunk`."""
    yield from upscale_conflicts(upscale)
    if not len(rgb_mean) == num_in_ch == num_out_ch:
        channels = f"num_in_ch {num_in_ch} and num_out_ch {num_out_ch}"
        remedy = "give one per channel, and as many channels out as in"
        yield "rgb_mean", f"has {len(rgb_mean)} entries for {channels}: {remedy}"


def in_colour(images: Tensor) -> Tensor:
    """Gray images (B, 1, H, W) as three equal channels, for networks that know colour images only; others as given."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


class ResidualTrunk(StagedNetwork):
    """A network on images without their mean colour: a convolution, a residual body, sub-pixel upsampling."""

    mean: Tensor
    slices_are_networks = True

    def _add_layers(
        self,
        body: Callable[[], nn.Sequential],
        channels: tuple[int, int],
        num_feat: int,
        upscale: int,
        img_range: float,
        rgb_mean: Sequence[float],
    ) -> None:
        """Adds all layers, in the order of BasicSR, in which initial weights are drawn."""
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(channels[0], num_feat, 3, 1, 1)
        self.body = body()
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, channels[1], 3, 1, 1)

    def stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `StagedNetwork`; what is kept are the first features."""
        shallow = self.conv_first((x - self.mean) * self.img_range)
        return shallow, shallow

    def reconstruct(self, features: Tensor, kept: Tensor) -> Tensor:
        """See `StagedNetwork`."""
        # Not in place: a hook on conv_after_body must see its own output.
        x = self.conv_last(self.upsample(self.conv_after_body(features) + kept))
        return x / self.img_range + self.mean


def fill_at_random(network: nn.Module, nonlinearity: Literal["linear", "relu"]) -> None:
    """Initial weights for a network on 'meta', always the same ones; Kaiming's rule for `nonlinearity`."""
    generator = torch.Generator().manual_seed(0)
    network.to_empty(device="cpu")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.GroupNorm, nn.BatchNorm2d)):
            layer.reset_parameters()
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.5, generator=generator)
