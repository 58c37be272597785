"""Discriminators: VGG-style and U-Net as BasicSR's, PatchGAN."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from basicsr.utils.errors import AssertedDataError, DataError
from basicsr.utils.ranges import Features, ImageChannels, Levels
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments


@ARCH_REGISTRY.register()
class VGGStyleDiscriminator(nn.Module):
    """One logit per image, as in SRGAN and ESRGAN: halvings to 4x4, then two linear layers.

    Args:
        num_in_ch: channels of the input.
        num_feat: channels of the first layer; later ones have up to eight times as many.
        input_size: height and width of the input: 128 or 256.
    """

    def __init__(self, *, num_in_ch: ImageChannels, num_feat: Features, input_size: Literal[128, 256] = 128) -> None:
        check_arguments(VGGStyleDiscriminator, locals())
        super().__init__()
        self.input_size = input_size
        self.num_stages = 5 if input_size == 128 else 6
        channels = num_in_ch
        for stage in range(self.num_stages):
            wider = num_feat * min(2**stage, 8)
            # The first convolution alone has a bias and no batch norm after it.
            self.add_module(f"conv{stage}_0", nn.Conv2d(channels, wider, 3, 1, 1, bias=stage == 0))
            self.add_module(f"bn{stage}_0", nn.Identity() if stage == 0 else nn.BatchNorm2d(wider))
            self.add_module(f"conv{stage}_1", nn.Conv2d(wider, wider, 4, 2, 1, bias=False))
            self.add_module(f"bn{stage}_1", nn.BatchNorm2d(wider))
            channels = wider
        self.linear1 = nn.Linear(channels * 4 * 4, 100)
        self.linear2 = nn.Linear(100, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, 1) of images (B, C, input_size, input_size); DataError for other sizes."""
        if x.shape[-2:] != (self.input_size, self.input_size):
            raise AssertedDataError(
                f"VGGStyleDiscriminator takes {self.input_size}x{self.input_size} images, got "
                f"{x.shape[-2]}x{x.shape[-1]}: change gt_size or input_size"
            )
        for name in (f"{stage}_{half}" for stage in range(self.num_stages) for half in (0, 1)):
            x = self.lrelu(self.get_submodule(f"bn{name}")(self.get_submodule(f"conv{name}")(x)))
        return self.linear2(self.lrelu(self.linear1(x.flatten(1))))


@ARCH_REGISTRY.register(suffix="basicsr")
class UNetDiscriminatorSN(nn.Module):
    """One logit per pixel from a U-Net with spectral norm (Wang et al., Real-ESRGAN, ICCVW 2021).

    Args:
        num_in_ch: channels of the input.
        num_feat: channels of the first layer; the deepest has eight times as many.
        skip_connection: add the features of the way down on the way up.
    """

    def __init__(self, *, num_in_ch: ImageChannels, num_feat: Features = 64, skip_connection: bool = True) -> None:
        super().__init__()
        self.skip_connection = skip_connection
        self.conv0 = nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)
        wide = [num_feat * multiple for multiple in (1, 2, 4, 8, 4, 2, 1, 1, 1)]
        for number, (before, after) in enumerate(pairwise(wide), start=1):
            size = (4, 2, 1) if number <= 3 else (3, 1, 1)  # the first three halve the image
            self.add_module(f"conv{number}", spectral_norm(nn.Conv2d(before, after, *size, bias=False)))
        self.conv9 = nn.Conv2d(num_feat, 1, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, 1, H, W) of images (B, C, H, W); DataError unless 8 divides H and W."""
        if x.shape[-2] % 8 or x.shape[-1] % 8:
            raise DataError(
                f"UNetDiscriminatorSN takes heights and widths that are multiples of 8, got "
                f"{x.shape[-2]}x{x.shape[-1]}: change gt_size"
            )
        down = [self.lrelu(self.conv0(x))]
        convs = [self.get_submodule(f"conv{number}") for number in range(1, 9)]
        for conv in convs[:3]:
            down.append(self.lrelu(conv(down[-1])))
        x = down.pop()
        for conv in convs[3:6]:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.lrelu(conv(x))
            same_size = down.pop()
            if self.skip_connection:
                x = x + same_size
        x = self.lrelu(convs[7](self.lrelu(convs[6](x))))
        if not torch.is_grad_enabled():
            return self.conv9(x)
        # Kernels compute gradients in blocks of eight channels, so seven channels of zeros make them faster.
        weight = F.pad(self.conv9.weight, (0, 0, 0, 0, 0, 0, 0, 7))
        bias = F.pad(self.conv9.get_parameter("bias"), (0, 7))
        return F.conv2d(x, weight, bias, padding=1)[:, :1]


@ARCH_REGISTRY.register()
class PatchGANDiscriminator(nn.Module):
    """Logits of overlapping patches, 70x70 pixels each at three layers (Isola et al., pix2pix, CVPR 2017).

    `n_layers` 4x4 convolutions of stride 2, one of stride 1 and the 1-channel output, padding 1; norms
    after all but the first and the last. Layers lie at the same places in `model` whatever the norm.

    Args:
        num_in_ch: channels of the input.
        num_feat: channels of the first layer; later ones have up to eight times as many.
        n_layers: convolutions of stride 2; the receptive field is 16, 34, 70, 142 pixels for 1, 2, 3, 4.
        norm: batch or instance norm after the inner convolutions, nothing, or spectral norm of every weight.
    """

    def __init__(
        self,
        *,
        num_in_ch: ImageChannels = 3,
        num_feat: Features = 64,
        n_layers: Levels = 3,
        norm: Literal["batch", "instance", "none", "spectral"] = "batch",
    ) -> None:
        check_arguments(PatchGANDiscriminator, locals())
        super().__init__()
        norms: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
        norm_layer = norms.get(norm, nn.Identity)
        self.n_layers = n_layers

        def conv(channels: int, wider: int, stride: int, bias: bool = True) -> nn.Module:
            layer = nn.Conv2d(channels, wider, 4, stride, 1, bias=bias)
            return spectral_norm(layer) if norm == "spectral" else layer

        layers: list[nn.Module] = [conv(num_in_ch, num_feat, 2), nn.LeakyReLU(0.2)]
        channels = num_feat
        for depth in range(1, n_layers + 1):
            wider = num_feat * min(2**depth, 8)
            # Batch norm has a bias of its own.
            layers += [conv(channels, wider, 2 if depth < n_layers else 1, bias=norm != "batch")]
            layers += [norm_layer(wider), nn.LeakyReLU(0.2)]
            channels = wider
        self.model = nn.Sequential(*layers, conv(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, 1, H // 2^n_layers - 2, W // 2^n_layers - 2) of images (B, C, H, W).

        Images too small for one logit raise DataError.
        """
        smallest = 3 * 2**self.n_layers
        if min(x.shape[-2:]) < smallest:
            raise DataError(
                f"PatchGANDiscriminator with n_layers {self.n_layers} takes images of at least "
                f"{smallest}x{smallest}, got {x.shape[-2]}x{x.shape[-1]}: change gt_size or n_layers"
            )
        return self.model(x)
