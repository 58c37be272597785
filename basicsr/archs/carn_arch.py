"""CARN: residual blocks whose outputs are joined at two levels, and CARN-M with grouped and shared convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import upscale_conflicts
from basicsr.archs.mean_shift import without_mean_shift
from basicsr.archs.recognition import Recognised, shuffled_scale, weights_of
from basicsr.utils.ranges import Colour, Features, Few, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_CASCADES = 3


class Joined(nn.Module):
    """A 1x1 convolution and a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Residual(nn.Module):
    """relu(x + body(x)); with `efficient`, convolutions are grouped and a 1x1 convolution mixes the groups."""

    def __init__(self, num_feat: int, groups: int, efficient: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(num_feat, num_feat, 3, 1, 1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(num_feat, num_feat, 3, 1, 1, groups=groups),
        ]
        if efficient:
            layers += [nn.ReLU(), nn.Conv2d(num_feat, num_feat, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class Cascade(nn.Module):
    """Three parts, b1 to b3, each behind a 1x1 convolution over the input and the outputs of all parts before.

    Where there is one part only, it serves three times.
    """

    def __init__(self, num_feat: int, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        for number, part in enumerate(parts, start=1):
            self.add_module(f"b{number}", part)
        self.shared = len(parts) == 1
        for number in range(1, _CASCADES + 1):
            self.add_module(f"c{number}", Joined(num_feat * (number + 1), num_feat))

    def forward(self, x: Tensor) -> Tensor:
        return self.cascaded(x)

    def cascaded(self, x: Tensor) -> Tensor:
        """What the three parts make of (B, num_feat, H, W), of that shape."""
        joined, features = x, x
        for number in range(1, _CASCADES + 1):
            part = self.get_submodule("b1" if self.shared else f"b{number}")
            joined = torch.cat([joined, part(features)], dim=1)
            features = self.get_submodule(f"c{number}")(joined)
        return features


class Branch(nn.Module):
    """Enlargement to one scale: convolutions to more channels, ReLU, pixel shuffles."""

    def __init__(self, num_feat: int, scale: int, groups: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in [3] if scale == 3 else [2] * (scale.bit_length() - 1):
            layers += [
                nn.Conv2d(num_feat, step**2 * num_feat, 3, 1, 1, groups=groups),
                nn.ReLU(),
                nn.PixelShuffle(step),
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@ARCH_REGISTRY.register()
class CARN(Cascade):
    """CARN (Ahn et al., Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network, ECCV 2018).

    A cascade of three cascades of three residual blocks. CARN-M has `groups: 4` and `shared_blocks: true`.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, as many as of the input.
        num_feat: channels of the features, a multiple of `groups`.
        groups: of the convolutions in blocks and enlargement; more than 1 adds a 1x1 convolution to each block.
        shared_blocks: one block with its weights serves three times in each cascade.
        upscale: factor of enlargement, a power of two or 3.
        scales: factors that there are branches for, of which `upscale` chooses one and the others lie idle, as in the
            published files (2, 3, 4); empty for one branch.
        img_range: factor on the input, which is in [0, 1].
        rgb_mean: mean colour in [0, 1], one entry per channel; the default is DIV2K's.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 64,
        groups: Few = 1,
        shared_blocks: bool = False,
        upscale: Scale = 4,
        scales: tuple[Scale, ...] = (),
        img_range: ImageRange = 1.0,
        rgb_mean: tuple[Colour, ...] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        check_arguments(CARN, locals())

        def block() -> nn.Module:
            return Residual(num_feat, groups, efficient=shared_blocks)

        def cascade() -> nn.Module:
            return Cascade(num_feat, [block() for _ in range(1 if shared_blocks else _CASCADES)])

        super().__init__(num_feat, [cascade() for _ in range(_CASCADES)])
        self.upscale, self.img_range = upscale, img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, -1, 1, 1), persistent=False)
        self.entry = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        branches = {f"up{scale}": Branch(num_feat, scale, groups) for scale in scales}
        self.upsample = nn.ModuleDict(branches or {"up": Branch(num_feat, upscale, groups)})
        self.exit = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        for name, branch in self.upsample.items():
            branch.requires_grad_(name in ("up", f"up{upscale}"))

    @staticmethod
    def conflicts(
        num_feat: int,
        groups: int,
        upscale: int,
        scales: tuple[int, ...],
        rgb_mean: tuple[float, ...],
        num_in_ch: int,
        num_out_ch: int,
    ) -> Iterator[Conflict]:
        for scale in (upscale, *scales):
            yield from upscale_conflicts(scale)
        if scales and upscale not in scales:
            yield "upscale", f"{upscale} is none of scales {list(scales)}: give one of them"
        if num_feat % groups:
            yield "num_feat", f"{num_feat} is not a multiple of groups {groups}: change either"
        if not len(rgb_mean) == num_in_ch == num_out_ch:
            channels = f"num_in_ch {num_in_ch} and num_out_ch {num_out_ch}"
            yield "rgb_mean", f"has {len(rgb_mean)} entries for {channels}: give one per channel, as many out as in"

    def forward(self, x: Tensor) -> Tensor:
        """Enlarges (B, C, H, W) in [0, 1] to (B, C, upscale H, upscale W), not clipped."""
        features = self.cascaded(self.entry((x - self.mean) * self.img_range))
        branch = "up" if "up" in self.upsample else f"up{self.upscale}"
        return self.exit(self.upsample[branch](features)) / self.img_range + self.mean

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys; see `basicsr.archs.recognition`. Files have branches for several scales, or one."""
        renamed = {key.replace("_mean.shifter.", "_mean."): value for key, value in state.items()}
        if "b1.b1.body.0.weight" not in renamed or "exit.weight" not in renamed:
            return None
        inner, img_range, rgb_mean, note = without_mean_shift(renamed, "entry", "exit")
        features, colours = inner["entry.weight"].shape[:2]
        names = sorted({key.split(".")[1] for key in inner if key.startswith("upsample.")})
        steps = {name: _scale_of(inner, f"upsample.{name}.body", features) for name in names}
        scales = tuple(steps.values())
        if names != ["up"] and names != [f"up{scale}" for scale in scales]:
            return None
        shared = "b1.b2.body.0.weight" not in inner
        if _keys(shared, names, steps) != inner.keys() or inner["exit.weight"].shape[0] != colours:
            return None
        options = {
            "type": "CARN",
            "num_in_ch": colours,
            "num_out_ch": colours,
            "num_feat": features,
            "groups": features // inner["b1.b1.body.0.weight"].shape[1],
            "shared_blocks": shared,
            "upscale": scales[0],
            "scales": () if names == ["up"] else scales,
            "img_range": img_range,
            "rgb_mean": rgb_mean,
        }
        notes = (note,) if note else ()
        found = Recognised("CARN", "CARN's original", options, scales[0], inner, notes=notes)
        return replace(found, has_range="sub_mean.weight" in renamed, scales=scales if len(scales) > 1 else ())


def _keys(shared: bool, branches: Sequence[str], scales: Mapping[str, int]) -> frozenset[str]:
    """All keys of a network with these branches."""
    parts, last = (1, 4) if shared else (_CASCADES, 2)
    numbers = range(1, _CASCADES + 1)
    modules = ["entry", "exit", *(f"c{number}.body.0" for number in numbers)]
    for number in numbers:
        modules += [f"b{number}.c{inner}.body.0" for inner in numbers]
        modules += [f"b{number}.b{part + 1}.body.{at}" for part in range(parts) for at in range(0, last + 1, 2)]
    for name in branches:
        steps = 1 if scales[name] == 3 else scales[name].bit_length() - 1
        modules += [f"upsample.{name}.body.{3 * step}" for step in range(steps)]
    return weights_of(*modules)


def _scale_of(state: Mapping[str, Tensor], prefix: str, features: int) -> int:
    convolutions = [value for key, value in state.items() if key.startswith(f"{prefix}.") and key.endswith(".weight")]
    return math.prod(shuffled_scale(value.shape[0], features) for value in convolutions)
