"""EDSR: residual blocks without batch norm, then sub-pixel upsampling."""

from __future__ import annotations

from functools import partial

from basicsr.archs.arch_util import ResidualBlockNoBN, ResidualTrunk, make_layer
from basicsr.utils.ranges import Blocks, Colour, Factor, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments


@ARCH_REGISTRY.register()
class EDSR(ResidualTrunk):
    """EDSR (Lim et al., Enhanced Deep Residual Networks for Single Image Super-Resolution, CVPRW 2017).

    Other arguments: see `ResidualTrunk`.

    Args:
        num_block: residual blocks in the trunk.
        res_scale: factor on each residual branch; 0.1 for wide networks.
    """

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
        block = {"num_feat": num_feat, "res_scale": res_scale, "pytorch_init": True}
        body = partial(make_layer, ResidualBlockNoBN, num_block, **block)
        super().__init__(body, num_in_ch, num_out_ch, num_feat, upscale, img_range, rgb_mean)
