"""FFDNet: a denoiser at half resolution that is told the noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.archs.dncnn_arch import USUAL_NOISE, PlainDenoiser, noise_assumed, read_stack, with_noise_level
from basicsr.archs.recognition import Recognised
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Features, ImageChannels, Layers, NoiseLevel
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments


@ARCH_REGISTRY.register()
class FFDNet(PlainDenoiser):
    """FFDNet (Zhang et al., FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising, TIP 2018).

    Folds 2x2 pixels into channels, adds one channel of the noise level, and unfolds the clean image. Images of any
    size: odd sides are extended by repetition, and the output is cropped.

    Args:
        img_channel: colours of the input and of the output.
        num_feat: channels of the features: published are 96 for colour and 64 for gray.
        num_layer: convolutions in all: published are 12 for colour and 15 for gray.
        noise_level: standard deviation of the noise to remove, of images in [0, 255].
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"folding by strides", "a channel of the noise level"})
    split_size = 2  # tiles begin at even pixels
    smallest_traced_side = 3  # torch.export lays out one folded pixel differently

    def __init__(
        self,
        *,
        img_channel: ImageChannels = 3,
        num_feat: Features = 96,
        num_layer: Layers = 12,
        noise_level: NoiseLevel = USUAL_NOISE,
    ) -> None:
        check_arguments(FFDNet, locals())
        super().__init__(4 * img_channel + 1, 4 * img_channel, num_feat, num_layer)
        self.noise_level = noise_level

    def stem(self, x):
        """See `StagedNetwork`; what is kept is the input's height and width."""
        return super().stem(with_noise_level(_folded(x), self.noise_level))[0], x.shape[-2:]

    def reconstruct(self, features, kept):
        output = F.pixel_shuffle(self.model[-1](features), 2)
        # Cut by negative padding, whose result is a tensor of its own: of a view torch.export notes sides as even.
        return F.pad(output, (0, kept[1] - output.shape[-1], 0, kept[0] - output.shape[-2]))

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """KAIR's keys, `model.N`."""
        stack = read_stack(state)
        if stack is None or stack.outputs % 4 or stack.inputs != stack.outputs + 1:
            return None
        options = {"type": "FFDNet", "img_channel": stack.outputs // 4, **stack.options, "noise_level": USUAL_NOISE}
        return Recognised("FFDNet", stack.layout, options, 1, stack.state, (*stack.assumed, noise_assumed()))


def _folded(x: Tensor) -> Tensor:
    """2x2 pixels as channels, (B, C, H, W) to (B, 4C, ceil(H/2), ceil(W/2)); the last row and column are repeated.

    By strides, as exporters get sides wrong that are rounded up.
    """
    longer = torch.cat([x, x[..., -1:, :]], -2)
    longer = torch.cat([longer, longer[..., -1:]], -1)
    height, width = x.shape[-2:]
    parts = [
        longer[..., :height, :width][..., ::2, ::2],
        longer[..., :height, :][..., ::2, 1::2],
        longer[..., :width][..., 1::2, ::2],
        longer[..., 1::2, 1::2],
    ]
    return torch.stack(parts, 2).flatten(1, 2)
