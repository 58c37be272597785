"""Small networks to quantise, and images whose values 8 bits hold."""

from __future__ import annotations

import torch

BLOCKS = {
    "EDSR": {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2},
    "Compact": {"type": "SRVGGNetCompact", "num_feat": 8, "num_conv": 2, "upscale": 2},
    "SPAN": {"type": "SPAN", "num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2, "img_range": 1.0},
}


def image_8_bits(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(1)).float() / 255
