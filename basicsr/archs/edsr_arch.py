"""EDSR: residual blocks without batch norm, then sub-pixel upsampling."""

from __future__ import annotations

from functools import partial

from basicsr.archs.arch_util import ResidualBlockNoBN, ResidualTrunk, make_layer, trunk_conflicts
from basicsr.utils.ranges import Blocks, Colour, Factor, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments


@ARCH_REGISTRY.register()
class EDSR(ResidualTrunk):
    """EDSR (Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017).

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output, as many as of the input.
        num_feat: channels of the features.
        num_block: residual blocks in the trunk.
        upscale: factor of enlargement, a power of two or 3.
        res_scale: factor on each residual branch; 0.1 for wide networks.
        img_range: factor on the input, which is in [0, 1].
        rgb_mean: mean colour in [0, 1], one entry per channel; the default is DIV2K's.
    """

    conflicts = staticmethod(trunk_conflicts)

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels,
        num_out_ch: ImageChannels,
        num_feat: Features = 64,
        num_block: Blocks = 16,
        upscale: Scale = 4,
        res_scale: Factor = 1,
        img_range: ImageRange = 255.0,
        rgb_mean: tuple[Colour, ...] = (0.4488, 0.4371, 0.4040),
    ) -> None:
        check_arguments(EDSR, locals())
        super().__init__()
        block = {"num_feat": num_feat, "res_scale": res_scale, "pytorch_init": True}
        body = partial(make_layer, ResidualBlockNoBN, num_block, **block)
        channels = (num_in_ch, num_out_ch)
        self._add_layers(body, channels, num_feat, upscale, img_range, rgb_mean)
