"""PatchGAN: a fully convolutional discriminator whose logits each see one patch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from basicsr.utils.errors import DataError
from basicsr.utils.ranges import Features, ImageChannels, Levels
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments


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
