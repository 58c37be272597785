"""IMDN: information multi-distillation, where each stage keeps a quarter of its channels after every convolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.lightweight_blocks import ContrastAttention, GatheredStages, pixel_shuffle_tail, tail_of
from basicsr.archs.recognition import Recognised, UnsupportedWeights, equal_blocks, weights_of
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_SQUEEZE = 16
_SLOPE = 0.05


class IMDB(nn.Module):
    """Information multi-distillation block: (B, num_feat, H, W) to the same shape.

    Three convolutions each leave a quarter of the channels aside and pass the others on; a fourth makes the last
    quarter. The quarters together, through the attention and a 1x1 convolution, are added to the input.
    """

    def __init__(self, num_feat: int, attention: bool) -> None:
        super().__init__()
        self.kept = num_feat // 4
        self.passed = num_feat - self.kept
        self.c1 = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.c2 = nn.Conv2d(self.passed, num_feat, 3, 1, 1)
        self.c3 = nn.Conv2d(self.passed, num_feat, 3, 1, 1)
        self.c4 = nn.Conv2d(self.passed, self.kept, 3, 1, 1)
        self.c5 = nn.Conv2d(4 * self.kept, num_feat, 1)
        self.cca = ContrastAttention(4 * self.kept, _SQUEEZE) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        kept, passed = [], x
        for convolution in (self.c1, self.c2, self.c3):
            part, passed = F.leaky_relu(convolution(passed), _SLOPE).split((self.kept, self.passed), dim=1)
            kept.append(part)
        together = torch.cat([*kept, self.c4(passed)], dim=1)
        return self.c5(together if self.cca is None else self.cca(together)) + x


@ARCH_REGISTRY.register()
class IMDN(GatheredStages):
    """IMDN (Hui et al., Lightweight Image Super-Resolution with Information Multi-distillation Network, MM 2019).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features, a multiple of 4, with attention 16 at least.
        num_block: stages.
        upscale: factor of enlargement.
        img_range: factor on the input, which is in [0, 1].
        simplified: leave out the attention, and take the last stage's output alone (KAIR's IMDN, the baseline of the
            AIM 2020 and NTIRE 2022 challenges on efficient super-resolution, with 8 stages).
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"channels cut apart"})
    stages_name = "IMDB"

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 64,
        num_block: Blocks = 6,
        upscale: Scale = 4,
        img_range: ImageRange = 1.0,
        simplified: bool = False,
    ) -> None:
        check_arguments(IMDN, locals())
        super().__init__()
        self.img_range = img_range
        self.simplified = simplified
        self.fea_conv = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.add_stages(IMDB(num_feat, attention=not simplified) for _ in range(num_block))
        if not simplified:
            self.c = nn.Sequential(nn.Conv2d(num_feat * num_block, num_feat, 1), nn.LeakyReLU(_SLOPE))
        self.LR_conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.upsampler = pixel_shuffle_tail(num_feat, num_out_ch, upscale)

    @staticmethod
    def conflicts(num_feat: int, simplified: bool) -> Iterator[Conflict]:
        if num_feat % 4:
            yield "num_feat", f"{num_feat} is not a multiple of 4: each stage keeps a quarter of its channels"
        elif num_feat < _SQUEEZE and not simplified:
            yield "num_feat", f"{num_feat} is less than {_SQUEEZE}, by which the attention divides it"

    def shallow(self, x):
        return self.fea_conv(x)

    def gather(self, outputs):
        return self.LR_conv(self.c(outputs))

    def enlarge(self, features):
        return self.upsampler(features)

    def reconstruct(self, features, kept):
        if not self.simplified:
            return super().reconstruct(features, kept)
        return self.enlarge(self.LR_conv(features) + kept.shallow) / self.img_range

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys, and KAIR's, `model.1.sub.N`; see `basicsr.archs.recognition`."""
        renamed, layout = dict(state), "IMDN's original"
        if "model.1.sub.0.conv1x1.weight" in state:
            renamed, layout = _from_kair(state), "KAIR"
        if "IMDB1.c1.weight" in state and "fea_conv.2.weight" in state:
            raise UnsupportedWeights(
                "it is IMDN_AS, which takes images that were enlarged before, of any factor; use the IMDN of one scale"
            )
        simplified = "c.0.weight" not in renamed
        of_block, others = (_BLOCK, _OTHERS) if simplified else (_BLOCK | _ATTENTION, _OTHERS | weights_of("c.0"))
        if not (blocks := equal_blocks(renamed, "IMDB", of_block, others)):
            return None
        features, colours = renamed["fea_conv.weight"].shape[:2]
        channels, scale = tail_of(renamed, "upsampler.0", colours)
        if not scale or renamed["LR_conv.weight"].shape[2] != 3 or renamed["IMDB1.c4.weight"].shape[0] * 4 != features:
            return None
        options = {
            "type": "IMDN",
            "num_in_ch": colours,
            "num_out_ch": channels,
            "num_feat": features,
            "num_block": blocks,
            "upscale": scale,
            "img_range": 1.0,
            "simplified": simplified,
        }
        return Recognised("IMDN", layout, options, scale, renamed, ("img_range 1",))


_BLOCK = weights_of("c1", "c2", "c3", "c4", "c5")
_ATTENTION = weights_of("cca.conv_du.0", "cca.conv_du.2")
_OTHERS = weights_of("fea_conv", "LR_conv", "upsampler.0")


def _from_kair(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    blocks = len({key.split(".")[3] for key in state if key.endswith(".conv1x1.weight")})
    names = {"model.0": "fea_conv", f"model.1.sub.{blocks}": "LR_conv", "model.2": "upsampler.0"}
    for block in range(blocks):
        ours, theirs = f"IMDB{block + 1}", f"model.1.sub.{block}"
        names |= {f"{theirs}.conv{number}.0": f"{ours}.c{number}" for number in (1, 2, 3)}
        names |= {f"{theirs}.conv4": f"{ours}.c4", f"{theirs}.conv1x1": f"{ours}.c5"}
    renamed = {}
    for key, value in state.items():
        owner, kind = key.rsplit(".", 1)
        renamed[f"{names.get(owner, owner)}.{kind}"] = value
    return renamed
