"""Random degradations of the LR input, which DCKD makes its negatives of, in the manner of Real-ESRGAN.

Zhou et al., "Dynamic Contrastive Knowledge Distillation for Efficient Image Restoration", AAAI 2025; Wang et al.,
"Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCV Workshops 2021.

Every image has a generator of its own, so that what becomes of it does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.utils.errors import OptionsError

Degradation = Literal["noise", "blur", "resize", "mix"]

NOISE_SIGMA = (1.0, 30.0)
"""Standard deviations of noise, of 255."""
GRAY_PROBABILITY = 0.5
KERNEL_SIZES = (3, 5, 7, 9, 11)
BLUR_SIGMA = (0.1, 2.0)
"""Standard deviations of the blur along each of its axes, pixels."""
SHRINK, ENLARGE = (0.5, 1.0), (1.0, 1.5)
ENLARGE_PROBABILITY = 0.25
MODES = ("area", "bilinear", "bicubic")


@torch.no_grad()
def degrade(images: Tensor, kind: Degradation, generators: Sequence[np.random.Generator]) -> Tensor:
    """Degrades every image in a way of its own.

    - 'noise': Gaussian, of a standard deviation in [1, 30] of 255; with probability 0.5 gray, the same in all channels.
    - 'blur': an anisotropic Gaussian of standard deviations in [0.1, 2] pixels, turned by any angle, cut off to an odd
      size from 3 to 11; images are mirrored at their borders.
    - 'resize': down by a factor in [0.5, 1] (with probability 3/4) or up by one in [1, 1.5], and back to the size, each
      by area, bilinear or bicubic interpolation. By a factor near 1 nothing may change.
    - 'mix': blur, resize down or up, noise, resize back; all of them, in Real-ESRGAN's order. A choice among the three
      would add no negative that the other kinds do not have.

    Args:
        images: (B, C, H, W) in [0, 1]; no gradients flow through.
        kind: of degradation.
        generators: one for each image. Noise is drawn on the images' device, seeded by them.

    Returns:
        Images of the same shape in [0, 1].

    Raises:
        OptionsError: there is no such kind, or an image is too small to be mirrored for the blur.
    """
    if kind not in _KINDS:
        raise OptionsError(f"degradation is '{kind}'; allowed: {', '.join(_KINDS)}")
    pairs = zip(images, generators, strict=True)
    return torch.stack([_KINDS[kind](image, generator).clamp(0, 1) for image, generator in pairs])


def gaussian_kernel(size: int, sigmas: tuple[float, float], angle: float) -> np.ndarray:
    """A Gaussian of two axes, float64 (size, size), of sum 1.

    k(p) ~ exp(-u^2 / (2 s_1^2) - v^2 / (2 s_2^2)), with u and v the position p = (x, y) from the middle, turned:
    u = x cos(a) + y sin(a), v = y cos(a) - x sin(a).

    Args:
        size: odd, pixels.
        sigmas: s_1 and s_2, pixels.
        angle: a, radians.
    """
    positions = np.arange(size) - size // 2
    y, x = np.meshgrid(positions, positions, indexing="ij")
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = np.exp(-0.5 * ((u / sigmas[0]) ** 2 + (v / sigmas[1]) ** 2))
    return kernel / kernel.sum()


def _noise(image: Tensor, generator: np.random.Generator) -> Tensor:
    sigma = generator.uniform(*NOISE_SIGMA) / 255
    channels = 1 if generator.random() < GRAY_PROBABILITY else len(image)
    field = torch.Generator(image.device).manual_seed(int(generator.integers(2**63)))
    shape = (channels, *image.shape[1:])
    return image + sigma * torch.randn(shape, generator=field, dtype=image.dtype, device=image.device)


def _blur(image: Tensor, generator: np.random.Generator) -> Tensor:
    size = int(generator.choice(KERNEL_SIZES))
    first, second = generator.uniform(*BLUR_SIGMA, size=2)
    kernel = torch.from_numpy(gaussian_kernel(size, (first, second), generator.uniform(-np.pi, np.pi)))
    if min(image.shape[1:]) <= size // 2:
        least = KERNEL_SIZES[-1] // 2 + 1
        raise OptionsError(
            f"an LR image of {image.shape[1]}x{image.shape[2]} is too small to be blurred by {size}x{size} pixels;"
            f" raise gt_size so that it has {least} at least, or take degradation 'noise'"
        )
    padded = F.pad(image[:, None], [size // 2] * 4, mode="reflect")
    return F.conv2d(padded, kernel.to(image)[None, None])[:, 0]


def _resize(image: Tensor, generator: np.random.Generator) -> Tensor:
    return _to_size(_rescaled(image, generator), image.shape[1:], generator)


def _mix(image: Tensor, generator: np.random.Generator) -> Tensor:
    rescaled = _rescaled(_blur(image, generator), generator)
    # Between the steps, too, Real-ESRGAN's images stay images.
    noisy = _noise(rescaled, generator).clamp(0, 1)
    return _to_size(noisy, image.shape[1:], generator)


def _rescaled(image: Tensor, generator: np.random.Generator) -> Tensor:
    scales = ENLARGE if generator.random() < ENLARGE_PROBABILITY else SHRINK
    scale = generator.uniform(*scales)
    height, width = (max(1, int(length * scale)) for length in image.shape[1:])
    return _to_size(image, (height, width), generator)


def _to_size(image: Tensor, size: Sequence[int], generator: np.random.Generator) -> Tensor:
    mode = str(generator.choice(MODES))
    return F.interpolate(image[None], size=tuple(size), mode=mode)[0]


_KINDS: dict[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "resize": _resize,
    "mix": _mix,
}
