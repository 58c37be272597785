"""Networks of gray images on colour images: the luma goes through the network, the chroma is enlarged by bicubic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from basicsr.archs.bicubic_arch import Bicubic
from basicsr.utils.color_util import rgb2ycbcr_pt, ycbcr2rgb_pt
from basicsr.utils.precision import at_least_float32

ON_LUMA = "it takes gray images: of RGB images Y goes through it, and chroma is enlarged by bicubic"
"""For the log."""


class LumaNetwork(nn.Module):
    """A network of gray images that takes RGB as well: Y of YCbCr through it, Cb and Cr by MATLAB's bicubic.

    Y lies in [16, 235] / 255, as such networks were trained. Gray images go through the network as they are.

    Attributes:
        network: maps (B, 1, H, W) to (B, 1, sH, sW).
        architecture: name of the network's class, or of what it says it is.
    """

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network = network
        self.enlarge = Bicubic(upscale=scale) if scale > 1 else nn.Identity()
        self.architecture: str = getattr(network, "architecture", type(network).__name__)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), or (B, 1, H, W) to (B, 1, sH, sW), not clipped."""
        if x.shape[1] == 1:
            return self.network(x)
        luma, chroma = rgb2ycbcr_pt(x).split([1, 2], 1)
        return ycbcr2rgb_pt(torch.cat([at_least_float32(self.network(luma)), self.enlarge(chroma)], 1))
