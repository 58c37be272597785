"""MSRResNet: SRResNet without batch norm, on top of a bilinear enlargement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import ResidualBlockNoBN, StagedNetwork, default_init_weights, make_layer
from basicsr.archs.recognition import Recognised, first_fitting, numbered, ours
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Blocks, Features, ImageChannels, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

_LAYOUTS = {
    "BasicSR": ours(r"conv_first|body\.\d+\.conv[12]|upconv[12]|conv_hr|conv_last"),
    "ESRGAN and KAIR": {
        r"conv_first|upconv[12]|conv_last": r"\g<0>",
        r"recon_trunk\.(\d+)\.(conv[12])": r"body.\1.\2",
        "HRconv": "conv_hr",
    },
    "MMagic": {
        r"conv_first|conv_hr|conv_last": r"\g<0>",
        r"trunk_net\.(\d+)\.(conv[12])": r"body.\1.\2",
        r"upsample([12])\.upsample_conv": r"upconv\1",
    },
}
_NEEDED = ("conv_first.weight", "conv_last.weight", "body.0.conv1.weight", "upconv1.weight", "conv_hr.weight")


@ARCH_REGISTRY.register()
class MSRResNet(StagedNetwork):
    """Modified SRResNet, after Ledig et al. (CVPR 2017), as ESRGAN's authors simplified it.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, as many as of the input.
        num_feat: channels of the features.
        num_block: residual blocks in the trunk.
        upscale: factor of enlargement: 2, 3 or 4.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"bilinear enlargement"})

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 64,
        num_block: Blocks = 16,
        upscale: Scale = 4,
    ) -> None:
        check_arguments(MSRResNet, locals())
        super().__init__()
        self.upscale = upscale
        step = 2 if upscale == 4 else upscale
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        self.body = make_layer(ResidualBlockNoBN, num_block, num_feat=num_feat)
        self.upconv1 = nn.Conv2d(num_feat, num_feat * step**2, 3, 1, 1)
        self.upconv2 = nn.Conv2d(num_feat, num_feat * step**2, 3, 1, 1) if upscale == 4 else None
        self.pixel_shuffle = nn.PixelShuffle(step)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.1)
        upconvs = [conv for conv in (self.upconv1, self.upconv2) if conv is not None]
        default_init_weights([self.conv_first, *upconvs, self.conv_hr, self.conv_last], 0.1)

    @staticmethod
    def conflicts(upscale: int, num_in_ch: int, num_out_ch: int) -> Iterator[Conflict]:
        if upscale not in (2, 3, 4):
            yield "upscale", f"{upscale} is not supported: give 2, 3 or 4"
        if num_out_ch != num_in_ch:
            yield "num_out_ch", f"{num_out_ch} is not num_in_ch {num_in_ch}: the input is added to the output"

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The keys of BasicSR, of ESRGAN's authors and KAIR, of MMagic (MMEditing); see `basicsr.archs.recognition`."""
        if (fitting := first_fitting(state, _LAYOUTS, _NEEDED)) is None:
            return None
        layout, converted = fitting
        first, enlarging = converted["conv_first.weight"], converted["upconv1.weight"]
        step = math.isqrt(enlarging.shape[0] // enlarging.shape[1])
        scale = step**2 if "upconv2.weight" in converted else step
        options = {
            "type": "MSRResNet",
            "num_in_ch": first.shape[1],
            "num_out_ch": converted["conv_last.weight"].shape[0],
            "num_feat": first.shape[0],
            "num_block": numbered(converted, "body"),
            "upscale": scale,
        }
        return Recognised("MSRResNet", layout, options, scale, converted)

    def stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `StagedNetwork`; what is kept is the input."""
        return self.lrelu(self.conv_first(x)), x

    def reconstruct(self, features: Tensor, kept: Tensor) -> Tensor:
        features = self.lrelu(self.pixel_shuffle(self.upconv1(features)))
        if self.upconv2 is not None:
            features = self.lrelu(self.pixel_shuffle(self.upconv2(features)))
        residual = self.conv_last(self.lrelu(self.conv_hr(features)))
        return residual + F.interpolate(kept, scale_factor=self.upscale, mode="bilinear", align_corners=False)
