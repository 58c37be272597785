"""SRCNN: three convolutions on a bicubic enlargement, the first network for super-resolution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from annotated_types import Ge, Le
from torch import Tensor, nn

from basicsr.archs.arch_util import default_init_weights
from basicsr.archs.bicubic_arch import Bicubic
from basicsr.archs.recognition import Recognised, renamed
from basicsr.archs.traits import Trait
from basicsr.archs.vdsr_arch import SCALES
from basicsr.utils.ranges import Features, ImageChannels, Scale
from basicsr.utils.registry import ARCH_REGISTRY, Conflict, check_arguments

KernelSize = Annotated[int, Ge(1), Le(31)]


@ARCH_REGISTRY.register()
class SRCNN(nn.Module):
    """SRCNN (Dong et al., Image Super-Resolution Using Deep Convolutional Networks, TPAMI 2016).

    The input is enlarged by MATLAB's bicubic inside the network. Published for Y of YCbCr, as 9-1-5, 9-3-5 and 9-5-5.

    Args:
        img_channel: channels of the input and of the output.
        num_feats: channels after the first and after the second convolution.
        kernel_sizes: sides of the three kernels, odd.
        upscale: factor of enlargement.
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"bicubic enlargement inside"})

    def __init__(
        self,
        *,
        img_channel: ImageChannels = 1,
        num_feats: tuple[Features, Features] = (64, 32),
        kernel_sizes: tuple[KernelSize, KernelSize, KernelSize] = (9, 5, 5),
        upscale: Scale = 4,
    ) -> None:
        check_arguments(SRCNN, locals())
        super().__init__()
        (first, second), (patch, mapping, last) = num_feats, kernel_sizes
        self.enlarge = Bicubic(upscale=upscale)
        self.conv1 = nn.Conv2d(img_channel, first, patch, padding=patch // 2)
        self.conv2 = nn.Conv2d(first, second, mapping, padding=mapping // 2)
        self.conv3 = nn.Conv2d(second, img_channel, last, padding=last // 2)
        self.relu = nn.ReLU(inplace=True)
        default_init_weights([self.conv1, self.conv2, self.conv3])

    @staticmethod
    def conflicts(kernel_sizes: tuple[int, int, int]) -> Iterator[Conflict]:
        if any(side % 2 == 0 for side in kernel_sizes):
            yield "kernel_sizes", f"{list(kernel_sizes)} has an even number: give odd ones"

    def forward(self, x):
        """Enlarges (B, C, H, W) in [0, 1] to (B, C, upscale H, upscale W), not clipped."""
        features = self.relu(self.conv1(self.enlarge(x)))
        return self.conv3(self.relu(self.conv2(features)))

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """The keys of two public PyTorch versions; see `basicsr.archs.recognition`."""
        for layout, patterns in _LAYOUTS.items():
            converted = renamed(state, patterns)
            if converted is None:
                continue
            first, second, third = (converted[f"conv{number}.weight"] for number in (1, 2, 3))
            if not (first.shape[0] == second.shape[1] and second.shape[0] == third.shape[1]):
                continue
            options = {
                "type": "SRCNN",
                "img_channel": first.shape[1],
                "num_feats": (first.shape[0], second.shape[0]),
                "kernel_sizes": (first.shape[-1], second.shape[-1], third.shape[-1]),
                "upscale": SCALES[0],
            }
            note = "the weights do not show for which scale they were trained"
            return Recognised("SRCNN", layout, options, SCALES[0], converted, notes=(note,), scales=SCALES)
        return None


_LAYOUTS = {
    "SRCNN in PyTorch": {"conv[123]": r"\g<0>"},
    "SRCNN-PyTorch": {r"features\.0": "conv1", r"map\.0": "conv2", "reconstruction": "conv3"},
}
