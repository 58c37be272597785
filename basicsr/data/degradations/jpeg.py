"""JPEG compression and decompression in PyTorch: the loss of quantised cosines, without the lossless coding.

As Real-ESRGAN's code has it: tables of the standard's Annex K scaled by the quality and not rounded, chroma of half the
size by means of 2 x 2 pixels and repeated afterwards, no rounding of pixels or of YCbCr. libjpeg rounds its tables and
smooths chroma, so its pixels differ by a few levels.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch.nn import functional

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))  # 99 further out
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def compressed(image: torch.Tensor, quality: float) -> torch.Tensor:
    """An image (C, H, W), RGB or gray in [0, 1], after JPEG compression of a quality above 0, 100 at most.

    Where a side is no multiple of 16 (of 8 for gray), edge pixels are repeated below and right for the coding.
    """
    height, width = image.shape[-2:]
    side = 16 if image.shape[0] == 3 else 8
    padded = functional.pad(image[None], (0, -width % side, 0, -height % side), mode="replicate")[0] * 255
    factor = (50 / quality) if quality < 50 else (2 - quality / 50)
    luma, chroma, transform = (table.to(image) for table in _tables())
    if image.shape[0] == 1:
        result = _coded(padded - 128, luma * factor, transform) + 128
    else:
        y, *colours = torch.einsum("oc,chw->ohw", image.new_tensor(_TO_YCBCR), padded)
        small = functional.avg_pool2d(torch.stack(colours)[None], 2)[0]
        y = _coded(y[None] - 128, luma * factor, transform) + 128
        large = _coded(small, chroma * factor, transform).repeat_interleave(2, 1).repeat_interleave(2, 2)
        result = torch.einsum("oc,chw->ohw", image.new_tensor(_TO_RGB), torch.cat([y, large]))
    return (result[:, :height, :width] / 255).clamp_(0, 1)


def _coded(planes: torch.Tensor, table: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Planes (C, H, W) around 0, in blocks of 8 x 8: cosine transform, rounding to multiples of a table, and back."""
    channels, height, width = planes.shape
    blocks = planes.view(channels, height // 8, 8, width // 8, 8).transpose(2, 3).reshape(-1, 64)
    steps = table.clamp_min(torch.finfo(table.dtype).tiny)
    blocks = ((blocks @ transform.T) / steps).round_().mul_(steps) @ transform
    return blocks.view(channels, height // 8, width // 8, 8, 8).transpose(2, 3).reshape(planes.shape)


@cache
def _tables() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tables of luma and chroma, (64,), and the cosine transform of a block, orthonormal, (64, 64)."""
    chroma = torch.full((8, 8), 99.0, dtype=torch.float64)
    chroma[:4, :4] = torch.tensor(_CHROMA, dtype=torch.float64)
    frequencies, places = torch.meshgrid(*[torch.arange(8, dtype=torch.float64)] * 2, indexing="ij")
    line = torch.cos((2 * places + 1) * frequencies * math.pi / 16) / 2
    line[0] /= math.sqrt(2)
    return torch.tensor(_LUMA, dtype=torch.float64).view(64), chroma.view(64), torch.kron(line, line)
