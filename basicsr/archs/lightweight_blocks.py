"""What small networks share: stages that are numbered, stages whose outputs are gathered, and their attention."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import StagedNetwork
from basicsr.archs.recognition import shuffled_scale, weights_of

# The strided convolution and the pooling of `SpatialAttention` need that many pixels for one result.
_LEAST_SIDE = 15


def conv3x3(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Module:
    """A plain convolution of 3x3."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding)


def pixel_shuffle_tail(num_feat: int, num_out_ch: int, upscale: int) -> nn.Sequential:
    """One convolution to `num_out_ch upscale^2` channels, then a pixel shuffle."""
    return nn.Sequential(nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1), nn.PixelShuffle(upscale))


def tail_of(state: Mapping[str, Tensor], key: str, colours: int) -> tuple[int, int]:
    """Channels of the output and factor of a `pixel_shuffle_tail` whose convolution is `key`; (0, 0) for none.

    Networks have as many colours out as in, or three.
    """
    outputs = state[f"{key}.weight"].shape[0]
    options = ((channels, shuffled_scale(outputs, channels)) for channels in dict.fromkeys((colours, 3, 1)))
    return next(((channels, scale) for channels, scale in options if scale), (0, 0))


def blueprints(*modules: str) -> frozenset[str]:
    """The keys of `BlueprintConv`s."""
    return frozenset(key for module in modules for key in weights_of(f"{module}.dw") | {f"{module}.pw.weight"})


class BlueprintConv(nn.Module):
    """Blueprint separable convolution (BSConvU): 1x1 over all channels, then 3x3 in each channel."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dw = nn.Conv2d(outputs, outputs, 3, stride, padding, groups=outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dw(self.pw(x))


class ContrastAttention(nn.Module):
    """Contrast-aware channel attention (CCA): gates from each channel's mean plus its standard deviation."""

    def __init__(self, channels: int, squeeze_factor: int = 16) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // squeeze_factor, 1),
            nn.ReLU(),
            nn.Conv2d(channels // squeeze_factor, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        variance = (x - mean).square().mean((2, 3), keepdim=True)
        return x * self.conv_du(_root(variance) + mean)


def _root(variance: Tensor) -> Tensor:
    """The square root, whose gradient at 0, of a patch of one colour, is 0 instead of infinite."""
    if not torch.is_grad_enabled():  # the same values, in one operation: not every exporter knows the others
        return variance.sqrt()
    return torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)


class SpatialAttention(nn.Module):
    """Enhanced spatial attention (ESA): a gate for each value, from features seen at a sixth of the resolution.

    Args:
        num_feat: channels.
        inner: channels inside.
        conv: makes the convolutions of 3x3 from channels, stride and padding.
        activation: of the three convolutions at low resolution; None leaves one convolution, as RLFN does.
    """

    smallest_traced_side = 21
    """From here on there are two results of the pooling along each axis, as a graph for all sizes supposes."""

    def __init__(
        self,
        num_feat: int,
        inner: int,
        conv: Callable[..., nn.Module] = conv3x3,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(num_feat, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        if activation is not None:
            self.conv_max = conv(inner, inner)
        self.conv2 = conv(inner, inner, 2, 0)
        self.conv3 = conv(inner, inner)
        if activation is not None:
            self.conv3_ = conv(inner, inner)
        self.conv4 = nn.Conv2d(inner, num_feat, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        reduced = self.conv1(x)
        seen = F.max_pool2d(self.conv2(_at_least(reduced, _LEAST_SIDE)), 7, 3)
        if self.activation is not None:
            seen = self.activation(self.conv_max(seen))
            seen = self.conv3_(self.activation(self.conv3(seen)))
        else:
            seen = self.conv3(seen)
        spread = F.interpolate(seen, size, mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(spread + self.conv_f(reduced)))


def _at_least(x: Tensor, side: int) -> Tensor:
    """Repeats the last row and column of (B, C, H, W) until both sides are that long."""
    height, width = x.shape[-2:]
    if not torch.compiler.is_exporting():
        right, bottom = max(side - width, 0), max(side - height, 0)
        return F.pad(x, (0, right, 0, bottom), "replicate") if right or bottom else x
    # One graph for all sizes.
    for axis, length in ((2, height), (3, width)):
        position = torch.arange(torch.sym_max(length, side), device=x.device)
        x = x.index_select(axis, position.clamp(max=length - 1))
    return x


class NumberedStages(StagedNetwork):
    """A network whose stages are called `stages_name` and a number, counted from 1: B1, B2, ..."""

    def add_stages(self, stages: Iterable[nn.Module]) -> None:
        """Registers the stages."""
        for number, stage in enumerate(stages, start=1):
            self.add_module(f"{self.stages_name}{number}", stage)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.named_children() if name.removeprefix(self.stages_name).isdecimal())

    def run_stages(self, features, kept, first=0, last=None):
        for name in self.stage_names[first:last]:
            features = self.get_submodule(name)(features)
        return features


@dataclass
class Gathered:
    """What `GatheredStages` keeps: the first features, and what each stage made of them so far."""

    shallow: Tensor
    outputs: dict[str, Tensor]


class GatheredStages(NumberedStages):
    """Numbered stages whose outputs are all used at the end: upsampler(gather(B1 .. Bn) + shallow).

    Where features enter behind some stages, the outputs of these stages are the network's own, of its own input: so
    are its first features, which every network adds at the end.
    """

    img_range: float

    @abstractmethod
    def shallow(self, x: Tensor) -> Tensor:
        """The first features of images in [0, img_range]."""

    @abstractmethod
    def gather(self, outputs: Tensor) -> Tensor:
        """Features from the outputs of all stages, one after another: (B, n C, H, W) to (B, C, H, W)."""

    @abstractmethod
    def enlarge(self, features: Tensor) -> Tensor:
        """The image from features."""

    def stem(self, x):
        shallow = self.shallow(x * self.img_range)
        return shallow, Gathered(shallow, {})

    def run_stages(self, features, kept, first=0, last=None):
        for name in self.stage_names[first:last]:
            features = kept.outputs[name] = self.get_submodule(name)(features)
        return features

    def reconstruct(self, features, kept):
        before = self.stage_names[:-1]
        own, outputs = kept.shallow, []
        for name in before:
            own = kept.outputs[name] if name in kept.outputs else self.get_submodule(name)(own)
            outputs.append(own)
        gathered = self.gather(torch.cat([*outputs, features], dim=1))
        return self.enlarge(gathered + kept.shallow) / self.img_range
