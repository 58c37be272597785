"""SPAN: a small network whose attention has no parameters, and whose convolutions are merged from several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.mean_shift import DIV2K_MEAN
from basicsr.archs.recognition import Recognised, shuffled_scale
from basicsr.archs.reparameterization import composed
from basicsr.utils.precision import without_autocast
from basicsr.utils.ranges import Colour, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments
from basicsr.utils.reparameterization import Mergeable

_BLOCKS = 6
_WIDER = 2  # the 3x3 convolution to be merged has so many times the channels


class _Kernel(nn.Module):
    """A weight and a bias that are computed, so they are buffers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())


class Conv3XC(Mergeable):
    """A 3x3 convolution, (B, `num_in`, H, W) to (B, `num_out`, H, W), trained as the sum of four.

    1x1, 3x3 and 1x1 one after the other (`conv`), plus a 1x1 beside them (`sk`). All are linear, so they are merged
    into one kernel before it is applied, in training too: it computes the same, with the same gradients, in a fraction
    of the time. `eval_conv` in a saved state is that kernel. With `merged` there is no other weight than it.
    """

    def __init__(self, num_in: int, num_out: int, merged: bool) -> None:
        super().__init__(num_in, num_out, merged)
        if merged:
            self.eval_conv: nn.Module = nn.Conv2d(num_in, num_out, 3, 1, 1)
            return
        self.sk = nn.Conv2d(num_in, num_out, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(num_in, num_in * _WIDER, 1),
            nn.Conv2d(num_in * _WIDER, num_out * _WIDER, 3),
            nn.Conv2d(num_out * _WIDER, num_out, 1),
        )
        self.eval_conv = _Kernel(*self.kernel())

    def kernel(self):
        """See `Mergeable.kernel`."""
        if self.merged:
            return self.eval_conv.weight, self.eval_conv.bias
        with without_autocast(self.sk.weight.device.type):
            (weight, bias), (beside, beside_bias) = composed(self.conv), composed([self.sk])
            weight, bias = weight + F.pad(beside, (1, 1, 1, 1)), bias + beside_bias
            return weight.to(self.sk.weight.dtype), bias.to(self.sk.weight.dtype)

    def _keep(self, weight, bias):
        del self.sk, self.conv
        with torch.device("meta"):  # no initial values are drawn
            self.eval_conv = nn.Conv2d(self.in_channels, self.out_channels, 3, 1, 1)
        self.eval_conv.weight, self.eval_conv.bias = weight, bias

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if not self.merged:
            with torch.no_grad():
                self.eval_conv.weight, self.eval_conv.bias = self.kernel()
        super()._save_to_state_dict(destination, prefix, keep_vars)


class SPAB(nn.Module):
    """(f(x) + x) (sigmoid(f(x)) - 1/2) on (B, `num_feat`, H, W), where f is three convolutions with SiLU between."""

    def __init__(self, num_feat: int, merged: bool) -> None:
        super().__init__()
        self.c1_r = Conv3XC(num_feat, num_feat, merged)
        self.c2_r = Conv3XC(num_feat, num_feat, merged)
        self.c3_r = Conv3XC(num_feat, num_feat, merged)

    def inner(self, x):
        """The first convolution with its activation."""
        return F.silu(self.c1_r(x))

    def forward(self, x, inner=None):
        """`inner` is `self.inner(x)`, where it is at hand."""
        inner = self.inner(x) if inner is None else inner
        out = self.c3_r(F.silu(self.c2_r(inner)))
        return (out + x) * (torch.sigmoid(out) - 0.5)


@ARCH_REGISTRY.register(suffix="basicsr")
class SPAN(nn.Module):
    """SPAN (Wan et al., Swift Parameter-free Attention Network for Efficient Super-Resolution, CVPRW 2024).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        feature_channels: channels of the features.
        upscale: factor of enlargement.
        img_range: factor on the input, which is in [0, 1]; the output has none.
        rgb_mean: mean colour, in [0, 1], subtracted from the input; the output has none.
        merged: hold the merged 3x3 convolutions only, as published files for fast inference do. They are the same
            network, with a fifth of the parameters, and train worse.
        cat_channels: channels before the last convolution; None for `feature_channels`.
    """

    mean: Tensor

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels,
        num_out_ch: ImageChannels,
        feature_channels: Features = 48,
        upscale: Scale = 4,
        img_range: ImageRange = 255.0,
        rgb_mean: tuple[Colour, ...] = DIV2K_MEAN,
        merged: bool = False,
        cat_channels: Features | None = None,
    ) -> None:
        check_arguments(SPAN, locals())
        super().__init__()
        self.img_range = img_range
        self.register_buffer("mean", torch.tensor(rgb_mean).view(1, -1, 1, 1), persistent=False)
        self.conv_1 = Conv3XC(num_in_ch, feature_channels, merged)
        for number in range(1, _BLOCKS + 1):
            self.add_module(f"block_{number}", SPAB(feature_channels, merged))
        self.conv_cat = nn.Conv2d(4 * feature_channels, cat_channels or feature_channels, 1)
        self.conv_2 = Conv3XC(feature_channels, feature_channels, merged)
        self.upsampler = nn.Sequential(
            nn.Conv2d(cat_channels or feature_channels, num_out_ch * upscale**2, 3, 1, 1), nn.PixelShuffle(upscale)
        )

    @staticmethod
    def conflicts(rgb_mean: tuple[float, ...], num_in_ch: int) -> Iterator[Conflict]:
        if len(rgb_mean) != num_in_ch:
            yield "rgb_mean", f"has {len(rgb_mean)} entries for num_in_ch {num_in_ch}: give one per channel"

    def forward(self, x):
        """Enlarges (B, C, H, W) in [0, 1] to (B, C, upscale H, upscale W), not clipped."""
        first = self.conv_1((x - self.mean) * self.img_range)
        after_one = features = self.block_1(first)
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            features = block(features)
        inner = self.block_6.inner(features)
        last = self.conv_2(self.block_6(features, inner))
        return self.upsampler(self.conv_cat(torch.cat([first, last, after_one, inner], 1)))

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The authors' keys, with all convolutions or with the merged ones only; see `basicsr.archs.recognition`."""
        merged = "conv_1.sk.weight" not in state
        normed = "no_norm" not in state  # a version that takes images as they are
        kept = {key: value for key, value in state.items() if key != "no_norm"}
        pattern = _MERGED if merged else _ALL
        if not all(pattern.fullmatch(key) for key in kept) or len(kept) != (_MERGED_KEYS if merged else _ALL_KEYS):
            return None
        features, colours = state["conv_1.eval_conv.weight"].shape[:2]
        last = state["upsampler.0.weight"]
        scale = shuffled_scale(last.shape[0], colours)
        if not scale:
            return None
        options = {
            "type": "SPAN",
            "num_in_ch": colours,
            "num_out_ch": colours,
            "feature_channels": features,
            "upscale": scale,
            "img_range": 255.0 if normed else 1.0,
            "rgb_mean": DIV2K_MEAN if normed and colours == 3 else (0.0,) * colours,
            "merged": merged,
            "cat_channels": last.shape[1],
        }
        assumed = ("img_range 255", "the mean colour of DIV2K" if colours == 3 else "no mean colour")
        layout = "SPAN's, merged" if merged else "SPAN's"
        return Recognised("SPAN", layout, options, scale, kept, assumed if normed else ())


_PART = r"(?:conv_[12]|block_[1-6]\.c[123]_r)"
_MERGED = re.compile(rf"(?:{_PART}\.eval_conv|conv_cat|upsampler\.0)\.(?:weight|bias)")
_ALL = re.compile(rf"(?:{_PART}\.(?:eval_conv|sk|conv\.[012])|conv_cat|upsampler\.0)\.(?:weight|bias)")
_MERGED_KEYS, _ALL_KEYS = 2 * (20 + 2), 2 * (5 * 20 + 2)
