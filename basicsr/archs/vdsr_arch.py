"""VDSR: twenty convolutions on a bicubic enlargement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from basicsr.archs.arch_util import StagedNetwork, default_init_weights
from basicsr.archs.bicubic_arch import Bicubic
from basicsr.archs.recognition import Recognised, numbered, renamed
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Features, ImageChannels, Layers, Scale
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments

SCALES = (2, 3, 4)
"""Those that one file of weights is published for."""


class ConvReLU(nn.Module):
    """relu(conv3x3(x)) on (B, `num_feat`, H, W), without a bias."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_feat, num_feat, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x))


@ARCH_REGISTRY.register()
class VDSR(StagedNetwork):
    """VDSR (Kim et al., Accurate Image Super-Resolution Using Very Deep Convolutional Networks, CVPR 2016).

    The input is enlarged by MATLAB's bicubic inside the network, and added to the output. Published for Y of YCbCr.

    Args:
        img_channel: channels of the input and of the output.
        num_feat: channels of the features.
        num_layer: convolutions in all.
        upscale: factor of enlargement; the weights are the same for all.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"bicubic enlargement inside"})
    stages_name = "residual_layer"

    def __init__(
        self,
        *,
        img_channel: ImageChannels = 1,
        num_feat: Features = 64,
        num_layer: Layers = 20,
        upscale: Scale = 4,
    ) -> None:
        check_arguments(VDSR, locals())
        super().__init__()
        self.enlarge = Bicubic(upscale=upscale)
        self.input = nn.Conv2d(img_channel, num_feat, 3, 1, 1, bias=False)
        self.residual_layer = nn.Sequential(*(ConvReLU(num_feat) for _ in range(num_layer - 2)))
        self.output = nn.Conv2d(num_feat, img_channel, 3, 1, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        default_init_weights([self.input, self.residual_layer])
        default_init_weights(self.output, 0.1)  # so that it begins near the enlargement

    def stem(self, x):
        """See `StagedNetwork`; features have the output's size, and what is kept is the enlarged input."""
        enlarged = self.enlarge(x)
        return self.relu(self.input(enlarged)), enlarged

    def reconstruct(self, features, kept):
        return self.output(features) + kept

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The keys of two public PyTorch versions; see `basicsr.archs.recognition`."""
        for layout, patterns in _LAYOUTS.items():
            converted = renamed(state, patterns)
            if converted is None or any(key.endswith(".bias") for key in converted):
                continue
            first, last = converted["input.weight"], converted["output.weight"]
            if first.shape[2:] != (3, 3) or first.shape[1] != last.shape[0] or first.shape[0] != last.shape[1]:
                continue
            options = {
                "type": "VDSR",
                "img_channel": first.shape[1],
                "num_feat": first.shape[0],
                "num_layer": numbered(converted, "residual_layer") + 2,
                "upscale": SCALES[0],
            }
            return Recognised("VDSR", layout, options, SCALES[0], converted, scales=SCALES)
        return None


_LAYOUTS = {
    "pytorch-vdsr": {r"input|output|residual_layer\.\d+\.conv": r"\g<0>"},
    "VDSR-PyTorch": {r"conv1\.0": "input", r"trunk\.(\d+)\.conv": r"residual_layer.\1.conv", "conv2": "output"},
}
