"""RRDBNet: ESRGAN's and Real-ESRGAN's network of dense blocks inside residual blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import StagedNetwork, default_init_weights, make_layer, pad_to_multiple, pixel_unshuffle
from basicsr.archs.recognition import Recognised, State, UnsupportedWeights, numbered, renamed
from basicsr.utils.ranges import Blocks, Features, ImageChannels, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_RESIDUAL = 0.2  # the factor on the residual branches, inner and outer


class ResidualDenseBlock(nn.Module):
    """x + 0.2 f(x) on (B, `num_feat`, H, W): of five convolutions each sees the input and all outputs before it."""

    def __init__(self, num_feat: int = 64, num_grow_ch: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_feat, num_grow_ch, 3, 1, 1)
        self.conv2 = nn.Conv2d(num_feat + num_grow_ch, num_grow_ch, 3, 1, 1)
        self.conv3 = nn.Conv2d(num_feat + 2 * num_grow_ch, num_grow_ch, 3, 1, 1)
        self.conv4 = nn.Conv2d(num_feat + 3 * num_grow_ch, num_grow_ch, 3, 1, 1)
        self.conv5 = nn.Conv2d(num_feat + 4 * num_grow_ch, num_feat, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)
        default_init_weights([self.conv1, self.conv2, self.conv3, self.conv4, self.conv5], 0.1)

    def forward(self, x):
        seen = [x]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            seen.append(self.lrelu(conv(torch.cat(seen, 1))))
        return torch.add(x, self.conv5(torch.cat(seen, 1)), alpha=_RESIDUAL)


class RRDB(nn.Module):
    """x + 0.2 f(x), where f is three dense blocks, on (B, `num_feat`, H, W)."""

    def __init__(self, num_feat: int, num_grow_ch: int = 32) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb2 = ResidualDenseBlock(num_feat, num_grow_ch)
        self.rdb3 = ResidualDenseBlock(num_feat, num_grow_ch)

    def forward(self, x):
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=_RESIDUAL)


@ARCH_REGISTRY.register(suffix="basicsr")
class RRDBNet(StagedNetwork):
    """RRDBNet (Wang et al., ESRGAN, ECCVW 2018; Real-ESRGAN, ICCVW 2021).

    Enlarges by repetition of features and convolutions, twice each time. Images of any size: where pixels are folded
    into channels first, they are extended by reflection to a multiple of the fold, and the output is cropped.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        scale: factor of enlargement: 1, 2, 4 or 8.
        num_feat: channels of the features.
        num_block: blocks in the trunk.
        num_grow_ch: channels that each convolution of a dense block adds.
        pixel_unshuffle: at scales 1 and 2 fold 4x4 or 2x2 pixels into channels, then enlarge by 4, as BasicSR and
            Real-ESRGAN do. If not, the features have the input's size, as in ESRGAN's networks for these scales.
    """

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels,
        num_out_ch: ImageChannels,
        scale: Scale = 4,
        num_feat: Features = 64,
        num_block: Blocks = 23,
        num_grow_ch: Features = 32,
        pixel_unshuffle: bool = True,
    ) -> None:
        check_arguments(RRDBNet, locals())
        super().__init__()
        self.scale = scale
        self.padder_size = max(4 // scale, 1) if pixel_unshuffle else 1
        self.doublings = (scale * self.padder_size).bit_length() - 1
        self.conv_first = nn.Conv2d(num_in_ch * self.padder_size**2, num_feat, 3, 1, 1)
        self.body = make_layer(RRDB, num_block, num_feat=num_feat, num_grow_ch=num_grow_ch)
        self.conv_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        for number in range(1, self.doublings + 1):
            self.add_module(f"conv_up{number}", nn.Conv2d(num_feat, num_feat, 3, 1, 1))
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    @staticmethod
    def conflicts(scale: int) -> Iterator[Conflict]:
        if scale not in (1, 2, 4, 8):
            yield "scale", f"{scale} is not supported: give 1, 2, 4 or 8"

    def stem(self, x):
        """See `StagedNetwork`; what is kept are the first features and the input's height and width."""
        features = self.conv_first(pixel_unshuffle(pad_to_multiple(x, self.padder_size), self.padder_size))
        return features, (features, x.shape[-2:])

    def reconstruct(self, features, kept):
        first, (height, width) = kept
        features = first + self.conv_body(features)
        for number in range(1, self.doublings + 1):
            enlarged = F.interpolate(features, scale_factor=2, mode="nearest")
            features = self.lrelu(self.get_submodule(f"conv_up{number}")(enlarged))
        output = self.conv_last(self.lrelu(self.conv_hr(features)))
        return output[..., : height * self.scale, : width * self.scale]

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """BasicSR's keys, and ESRGAN's, older (`model.N`) and newer (`RRDB_trunk`); see `basicsr.archs.recognition`."""
        if any(".conv1x1." in key and ".RDB" in key for key in state):
            raise UnsupportedWeights("it is RRDBNet with noise and 1x1 convolutions (ESRGAN+)")
        for layout, patterns in (("BasicSR", _OURS), ("ESRGAN and KAIR", _ESRGAN), ("old ESRGAN", _old_keys(state))):
            converted = renamed(state, patterns)
            if converted is not None and "body.0.rdb1.conv1.weight" in converted:
                return _read(layout, converted)
        return None


_OURS = {r"conv_first|body\.\d+\.rdb[123]\.conv[1-5]|conv_body|conv_up\d|conv_hr|conv_last": r"\g<0>"}
_ESRGAN = {
    r"conv_first|conv_last": r"\g<0>",
    r"RRDB_trunk\.(\d+)\.RDB([123])\.conv([1-5])": r"body.\1.rdb\2.conv\3",
    "trunk_conv": "conv_body",
    r"upconv(\d)": r"conv_up\1",
    "HRconv": "conv_hr",
}


def _old_keys(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Patterns of the keys of one long sequence, which is as long as there are enlargements."""
    numbers = sorted(int(match[1]) for key in state if (match := re.fullmatch(r"model\.(\d+)\.weight", key)))
    enlarging = [f"conv_up{count}" for count in range(1, len(numbers) - 2)]
    names = ["conv_first", *enlarging, "conv_hr", "conv_last"]
    return {
        r"model\.1\.sub\.(\d+)\.RDB([123])\.conv([1-5])\.0": r"body.\1.rdb\2.conv\3",
        r"model\.1\.sub\.\d+": "conv_body",
        **{rf"model\.{number}": name for number, name in zip(numbers, names, strict=False)},
    }


def _read(layout: str, state: State) -> Recognised:
    first, last = state["conv_first.weight"], state["conv_last.weight"]
    doublings = sum(key.startswith("conv_up") and key.endswith(".weight") for key in state)
    folded = {1: 1, 4: 2, 16: 4}.get(first.shape[1] // last.shape[0], 1)
    options = {
        "type": "RRDBNet",
        "num_in_ch": first.shape[1] // folded**2,
        "num_out_ch": last.shape[0],
        "scale": 2**doublings // folded,
        "num_feat": first.shape[0],
        "num_block": numbered(state, "body"),
        "num_grow_ch": state["body.0.rdb1.conv1.weight"].shape[0],
        "pixel_unshuffle": folded > 1 or doublings > 1,
    }
    if folded > 1 and doublings != 2:
        raise UnsupportedWeights(f"it is RRDBNet with folded pixels that enlarges {doublings} times, allowed are 2")
    return Recognised("RRDBNet", layout, options, options["scale"], state)
