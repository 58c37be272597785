"""EDSR: residual blocks without batch norm, then sub-pixel upsampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from basicsr.archs.arch_util import ResidualBlockNoBN, ResidualTrunk, make_layer
from basicsr.archs.mean_shift import DIV2K_MEAN
from basicsr.archs.recognition import Recognised, State, numbered, ours
from basicsr.archs.trunk_layouts import TrunkLayout, read_trunk, shifted_layout, to_shifted
from basicsr.utils.ranges import Blocks, Colour, Factor, Features, ImageChannels, ImageRange, Scale
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments

_EDSR_PYTORCH = {
    "head.0": "conv_first",
    "body.#.body.0": "body.#.conv1",
    "body.#.body.2": "body.#.conv2",
    "body.*": "conv_after_body",
    "tail.0.#": "upsample.#",
    "tail.1": "conv_last",
}
_MMAGIC = {
    **ours(r"conv_first|conv_after_body|conv_last|body\.\d+\.conv[12]"),
    # A convolution and its pixel shuffle are one module there, two here.
    **{rf"upsample\.{step}\.upsample_conv": f"upsample.{2 * step}" for step in range(6)},
}
_LAYOUTS = {
    "BasicSR": TrunkLayout(ours(r"conv_first|conv_after_body|conv_last|body\.\d+\.conv[12]|upsample\.\d+"), 255),
    "EDSR-PyTorch": shifted_layout(_EDSR_PYTORCH),
    "MMagic": TrunkLayout(_MMAGIC, 1),
}


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

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The keys of BasicSR, EDSR-PyTorch and MMagic (MMEditing); see `basicsr.archs.recognition`."""
        return read_trunk(state, _LAYOUTS, ("body.0.conv1.weight",), _read)


def _read(state: State) -> tuple[dict[str, Any], tuple[str, ...]]:
    # The published networks of 256 channels have 0.1, those of 64 channels 1.
    res_scale = 0.1 if state["conv_first.weight"].shape[0] >= 256 else 1.0
    options = {"type": "EDSR", "num_block": numbered(state, "body"), "res_scale": res_scale}
    return options, (f"res_scale {res_scale:g}",)


def to_edsr_pytorch(
    state: Mapping[str, Tensor], *, img_range: float = 255.0, rgb_mean: Sequence[float] = DIV2K_MEAN
) -> State:
    """Weights of our EDSR under EDSR-PyTorch's keys, mean shifts included, for images in [0, 255].

    `img_range` and `rgb_mean` are the network's. Raises UnsupportedWeights if `state` is not our EDSR's.
    """
    return to_shifted("EDSR", _EDSR_PYTORCH, state, img_range, rgb_mean)
