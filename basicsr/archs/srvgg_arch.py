"""SRVGGNetCompact: Real-ESRGAN's small network of plain convolutions, all of them at low resolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import StagedNetwork
from basicsr.archs.recognition import Recognised, numbered, shuffled_scale
from basicsr.utils.ranges import Blocks, Features, ImageChannels, Scale
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments


@ARCH_REGISTRY.register(suffix="basicsr")
class SRVGGNetCompact(StagedNetwork):
    """SRVGGNetCompact (Real-ESRGAN's `realesr-animevideov3` and `realesr-general-x4v3`).

    Convolutions of 3x3, each with an activation, then one to `num_out_ch upscale^2` channels and a pixel shuffle;
    the input, enlarged by repetition of its pixels, is added. A stage is a convolution with its activation.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, as many as of the input.
        num_feat: channels of the features.
        num_conv: convolutions in the body, beside the first and the last.
        upscale: factor of enlargement.
        act_type: activation: 'prelu' with a slope for each channel, 'relu', or 'leakyrelu' with a slope of 0.1.
    """

    hidden_options = ("act_type",)

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 64,
        num_conv: Blocks = 16,
        upscale: Scale = 4,
        act_type: Literal["prelu", "relu", "leakyrelu"] = "prelu",
    ) -> None:
        check_arguments(SRVGGNetCompact, locals())
        super().__init__()
        self.upscale = upscale

        def activation() -> nn.Module:
            if act_type == "prelu":
                return nn.PReLU(num_parameters=num_feat)
            return nn.ReLU(inplace=True) if act_type == "relu" else nn.LeakyReLU(0.1, inplace=True)

        layers = [nn.Conv2d(num_in_ch, num_feat, 3, 1, 1), activation()]
        for _ in range(num_conv):
            layers += [nn.Conv2d(num_feat, num_feat, 3, 1, 1), activation()]
        self.body = nn.ModuleList([*layers, nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, 1, 1)])
        self.upsampler = nn.PixelShuffle(upscale)

    @staticmethod
    def conflicts(num_in_ch, num_out_ch):
        if num_out_ch != num_in_ch:
            yield "num_out_ch", f"{num_out_ch} is not num_in_ch {num_in_ch}: the input is added to the output"

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(f"body.{number}" for number in range(3, len(self.body) - 1, 2))

    def stem(self, x):
        return self.body[1](self.body[0](x)), x

    def run_stages(self, features, kept, first=0, last=None):
        stages = list(self.body[2:-1])
        for module in stages[2 * first : None if last is None else 2 * last]:
            features = module(features)
        return features

    def reconstruct(self, features, kept):
        enlarged = F.interpolate(kept, scale_factor=self.upscale, mode="nearest")
        return self.upsampler(self.body[-1](features)) + enlarged

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """BasicSR's keys, `body.N`; see `basicsr.archs.recognition`."""
        if not all(key.startswith("body.") and key.count(".") == 2 for key in state):
            return None
        with_slopes = "body.1.weight" in state
        convolutions = numbered(state, "body") // 2 + 1 if with_slopes else numbered(state, "body")
        first, last = state["body.0.weight"], state[f"body.{2 * (convolutions - 1)}.weight"]
        features, colours = first.shape[:2]
        scale = shuffled_scale(last.shape[0], colours)
        if convolutions < 3 or not scale or last.shape[1] != features:
            return None
        options = {
            "type": "SRVGGNetCompact",
            "num_in_ch": colours,
            "num_out_ch": colours,
            "num_feat": features,
            "num_conv": convolutions - 2,
            "upscale": scale,
            "act_type": "prelu" if with_slopes else "relu",
        }
        assumed = () if with_slopes else ("act_type relu",)
        return Recognised("SRVGGNetCompact", "BasicSR", options, scale, dict(state), assumed)
