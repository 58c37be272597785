"""Operations on pixels, in PyTorch, that run alike on the CPU and on other devices.

Images are float32 (C, H, W) in [0, 1]. Nothing is random here: whoever calls has drawn the numbers before.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
import torch
from torch.nn import functional

_GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights, which BasicSR takes


def filtered(images: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Correlates planes (..., H, W) with a kernel (k, k), k odd.

    Beyond the edges planes are mirrored without the edge; the edge is repeated where they are too small for that.
    """
    reach, (height, width) = kernel.shape[-1] // 2, images.shape[-2:]
    mode = "reflect" if reach < min(height, width) else "replicate"
    planes = functional.pad(images.reshape(1, -1, height, width), (reach,) * 4, mode=mode)
    # By Fourier transforms, which cost the same for every kernel; what wraps around is cut off.
    size = planes.shape[-2], planes.shape[-1]
    spectrum = torch.fft.rfft2(planes) * torch.fft.rfft2(kernel.to(images), size).conj()
    return torch.fft.irfft2(spectrum, size)[..., :height, :width].reshape(images.shape)


def resized(image: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Resizes by 'area', 'bilinear' or 'bicubic' interpolation, without antialiasing, as Real-ESRGAN does."""
    return functional.interpolate(image[None], size=size, mode=mode)[0]


def with_gaussian_noise(image: torch.Tensor, normal: torch.Tensor, sigma: float) -> torch.Tensor:
    """Adds `normal`, standard normal numbers (C, H, W) or (1, H, W), times sigma / 255; clips to [0, 1]."""
    return (image + normal * (sigma / 255)).clamp_(0, 1)


def with_poisson_noise(image: torch.Tensor, uniform: torch.Tensor, strength: float) -> torch.Tensor:
    """Adds Poisson noise times `strength`, as Real-ESRGAN does, and clips to [0, 1].

    With X the image rounded to 8 bits, and v the next power of two from the number of its different values on, the
    noise is P / v - X with P ~ Poisson(v X). `uniform` are numbers from [0, 1), whose quantiles of the Poisson
    distribution are taken: (C, H, W), or (1, H, W) for noise that is that of the gray image and the same in all
    channels.
    """
    source = image
    if uniform.shape[0] == 1 and image.shape[0] == 3:
        source = torch.einsum("c,chw->hw", image.new_tensor(_GRAY), image)[None]
    levels = (source * 255).round_().clamp_(0, 255)
    whole = levels.long()
    different = int(torch.bincount(whole.view(-1), minlength=256).count_nonzero())
    values = 1 << (different - 1).bit_length()
    table, columns = _poisson_table(values, image.device)
    # Row l of the table lies between l and l + 1, so that one search finds all quantiles.
    counts = torch.searchsorted(table, levels.double() + uniform.double(), right=True) - whole * columns
    noise = counts.to(image) / values - levels / 255
    return (image + noise * strength).clamp_(0, 1)


@lru_cache(maxsize=32)
def _poisson_table(values: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """For each of 256 levels l the distribution function of Poisson(values l / 255), plus l; and how many columns."""
    highest = values + 12 * math.isqrt(values) + 24
    counts = np.arange(highest)
    logs = np.array([math.lgamma(count + 1) for count in counts])
    rates = np.arange(256)[:, None] * (values / 255)
    with np.errstate(divide="ignore", invalid="ignore"):
        chances = np.exp(counts * np.log(rates) - rates - logs)
    chances[0] = counts == 0
    table = np.minimum(np.cumsum(chances, axis=1), 1)
    table[:, -1] = 1
    return torch.from_numpy((table + np.arange(256)[:, None]).ravel()).to(device), highest


def sharpened(images: torch.Tensor, weight: float = 0.5, threshold: float = 10.0, radius: int = 50) -> torch.Tensor:
    """Unsharp masking where it shows, of images (..., H, W), as Real-ESRGAN sharpens HR images.

    Adds `weight` times the difference from a Gaussian blur of side `radius` (one more if even), clipped to [0, 1],
    where that difference is more than `threshold` / 255; the places are blurred likewise.
    """
    kernel = _gaussian(radius + 1 - radius % 2)
    rest = images - filtered(images, kernel)
    places = filtered((rest.abs() * 255 > threshold).to(images), kernel)
    return images + places * ((images + weight * rest).clamp_(0, 1) - images)


@cache
def _gaussian(side: int) -> torch.Tensor:
    """OpenCV's Gaussian kernel of this side, (side, side)."""
    sigma = 0.3 * ((side - 1) * 0.5 - 1) + 0.8
    line = np.exp(-((np.arange(side) - (side - 1) / 2) ** 2) / (2 * sigma**2))
    return torch.from_numpy(np.outer(line, line) / line.sum() ** 2)


def rounded(image: torch.Tensor) -> torch.Tensor:
    """As uint8."""
    return (image * 255).round_().clamp_(0, 255).to(torch.uint8)
