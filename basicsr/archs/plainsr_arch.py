"""PlainSR: 3x3 convolutions one after the other at low resolution, trained as branches, for phones and NPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.arch_util import StagedNetwork
from basicsr.archs.plainsr_layouts import plain_layout
from basicsr.archs.recognition import Recognised
from basicsr.archs.reparameterization import SPATIAL, Branch, BranchedConv2d
from basicsr.utils.ranges import Blocks, Features, ImageChannels, Ratio, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

Activation = Literal["relu", "prelu", "clipped_relu"]
_GAIN = 2**0.5  # a ReLU halves what comes in
_RESIDUAL_GAIN = 0.1  # training begins near the enlarged input


def _activation(act_type: Activation, num_feat: int) -> nn.Module:
    if act_type == "prelu":
        return nn.PReLU(num_feat)
    return nn.ReLU(inplace=True) if act_type == "relu" else nn.Hardtanh(0, 1, inplace=True)


class ConvActivation(nn.Module):
    """A convolution with its activation."""

    def __init__(self, conv: BranchedConv2d, act_type: Activation) -> None:
        super().__init__()
        self.conv = conv
        self.act = _activation(act_type, conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


@ARCH_REGISTRY.register()
class PlainSR(StagedNetwork):
    """A plain network for devices: convolutions with activations, one more, a pixel shuffle.

    While training each convolution is a sum of branches, shipped as one: `branches` of '3x3', '1x1-3x3', 'sobel_x',
    'sobel_y' and 'laplacian' with 'prelu' are ECBSR (Zhang et al., MM 2021), '3x3-1x1' and 'identity' with
    `outer_kernel` 5 and `body_residual` SESR (Bhardwaj et al., MLSys 2022), '3x3' alone with 'clipped_relu',
    `identity_init` and `clip` QuickSRNet (Berger et al., CVPRW 2023), with 'relu' and `residual` ABPN (Du et al.,
    CVPRW 2021). Images are taken as they are, in [0, 1]. A stage is a convolution of the body with its activation.

    Args:
        num_in_ch: channels of the input.
        num_out_ch: channels of the output.
        num_feat: channels of the features.
        num_conv: convolutions in the body, beside the first and the last.
        upscale: factor of enlargement.
        act_type: activation: 'relu', 'prelu' with a slope for each channel, or 'clipped_relu' to [0, 1].
        branches: what each convolution is while it is trained; names with '-' are convolutions one after the other,
            sobel_x, sobel_y and laplacian a 1x1 with that filter behind it.
        expansion: channels inside the branches with '-', in multiples of a convolution's output.
        outer_kernel: side of the first and the last convolution; 5 there stands in place of 3 in `branches`.
        residual: add the input, enlarged by repetition of its pixels, to the output.
        body_residual: add the body's input to its output.
        identity_init: begin with convolutions that pass their first channels on, the last one enlarging them by
            repetition unless `residual` does it. Without it, and without a branch `identity`, the sum of branches
            begins as He et al. (ICCV 2015) say: with PyTorch's own weights features fade from layer to layer.
        clip: clip the output to [0, 1], but not in training, where values beyond must have a gradient.
        merged: hold the merged convolutions only, as shipped. It is the same network, and trains worse.
    """

    hidden_options = ("act_type", "residual", "body_residual", "clip")

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_out_ch: ImageChannels = 3,
        num_feat: Features = 32,
        num_conv: Blocks = 6,
        upscale: Scale = 4,
        act_type: Activation = "relu",
        branches: tuple[Branch, ...] = ("3x3", "1x1-3x3", "sobel_x", "sobel_y", "laplacian"),
        expansion: Ratio = 2.0,
        outer_kernel: Literal[3, 5] = 3,
        residual: bool = True,
        body_residual: bool = False,
        identity_init: bool = False,
        clip: bool = False,
        merged: bool = False,
    ) -> None:
        check_arguments(PlainSR, locals())
        super().__init__()
        self.upscale, self.residual, self.body_residual, self.clip = upscale, residual, body_residual, clip

        def conv(inputs: int, outputs: int, side: int = 3) -> BranchedConv2d:
            return BranchedConv2d(inputs, outputs, branches, expansion, merged, side)

        self.conv_first = ConvActivation(conv(num_in_ch, num_feat, outer_kernel), act_type)
        self.body = nn.Sequential(*(ConvActivation(conv(num_feat, num_feat), act_type) for _ in range(num_conv)))
        self.conv_last = conv(num_feat, num_out_ch * upscale**2, outer_kernel)
        if identity_init:
            for stage in (self.conv_first, *self.body):
                stage.conv.add_identity()
            if not residual:
                self.conv_last.add_identity(upscale**2)
        elif "identity" not in branches:
            for stage in (self.conv_first, *self.body):
                stage.conv.rescale(_GAIN)
            self.conv_last.rescale(_RESIDUAL_GAIN if residual else 1.0)

    @staticmethod
    def conflicts(
        num_in_ch: int,
        num_out_ch: int,
        branches: tuple[str, ...],
        residual: bool,
        identity_init: bool,
        merged: bool,
    ) -> Iterator[Conflict]:
        if not merged and not set(branches) & set(SPATIAL):
            yield "branches", f"has none that learns 3x3 kernels: give one of {', '.join(SPATIAL)}"
        if not merged and identity_init and "3x3" not in branches:
            yield "identity_init", "needs the branch 3x3, whose weights it sets: add it, or use the branch identity"
        if (residual or identity_init) and num_out_ch != num_in_ch:
            image = "residual" if residual else "identity_init"
            yield "num_out_ch", f"{num_out_ch} is not num_in_ch {num_in_ch}, but {image} passes the input on: set false"

    def stem(self, x):
        features = self.conv_first(x)
        return features, (x, features)

    def reconstruct(self, features, kept):
        image, shallow = kept
        output = F.pixel_shuffle(self.conv_last(features + shallow if self.body_residual else features), self.upscale)
        if self.residual:
            output = output + F.interpolate(image, scale_factor=self.upscale, mode="nearest")
        return output.clamp(0, 1) if self.clip and not self.training else output

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """Our keys, with branches or merged, and those of others; see `basicsr.archs.recognition`."""
        return plain_layout(state)
