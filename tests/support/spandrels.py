"""Tiny networks of spandrel's, with random weights and the published windows, which their buffers follow from."""

from __future__ import annotations

from typing import Any

import torch
from support.published import spandrel_architecture
from torch import nn

LIKE_SWIN = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8, "upscale": 2, "mlp_ratio": 2.0}
LIKE_DAT = {"embed_dim": 32, "split_size": [8, 32], "depth": [3], "num_heads": [2], "upscale": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "ATD": {**LIKE_SWIN, "category_size": 4, "num_tokens": 4, "reducted_dim": 2, "upsampler": "pixelshuffledirect"},
    "CRAFT": {"embed_dim": 12, "depths": [1], "num_heads": [6], "upscale": 2},
    "DAT": {**LIKE_DAT, "expansion_factor": 2.0, "upsampler": "pixelshuffledirect", "resi_connection": "3conv"},
    "DRCT": {**LIKE_SWIN, "gc": 4, "upsampler": "pixelshuffle"},
    "ESRGAN": {"num_filters": 8, "num_blocks": 1, "scale": 4},
    "HAT": {**LIKE_SWIN, "compress_ratio": 3, "squeeze_factor": 6, "num_feat": 8},
    "RGT": {**LIKE_DAT, "mlp_ratio": 2.0},
    "Swin2SR": {**LIKE_SWIN, "upsampler": "pixelshuffledirect"},
    "Uformer": {"img_size": 128, "embed_dim": 4, "depths": [1] * 9, "num_heads": [1] * 9},
}


def spandrels(name: str) -> nn.Module:
    """An architecture of `OPTIONS`, its weights drawn anew so that none is idle."""
    torch.manual_seed(0)
    network = getattr(spandrel_architecture(name), name)(**OPTIONS[name])
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)
