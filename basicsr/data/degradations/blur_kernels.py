"""Blur kernels as Real-ESRGAN draws them (Wang et al., ICCVW 2021): Gaussian ones, their two generalisations, sinc.

With x from the centre, S = R(theta) diag(sigma_x^2, sigma_y^2) R(theta)^T and q = x^T S^-1 x, a kernel is in proportion
to exp(-q / 2), as a generalized Gaussian to exp(-q^beta / 2), as a plateau to 1 / (1 + q^beta). An isotropic one has
sigma_y = sigma_x. All sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

KernelName = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
Limits = tuple[float, float]
_SMALLEST_SIDE = 7
_WIDE_SIDE = 13  # from which on sinc kernels may have a lower cutoff


def gaussian_kernel(
    side: int, sigma_x: float, sigma_y: float, theta: float = 0.0, beta: float = 1.0, *, plateau: bool = False
) -> np.ndarray:
    """A kernel of any of the six kinds, float64 (side, side); `beta` 1 is the Gaussian, but for plateaus."""
    across = np.arange(side) - (side - 1) / 2
    x, y = np.meshgrid(across, across)
    along = (x * math.cos(theta) + y * math.sin(theta)) / sigma_x
    aside = (y * math.cos(theta) - x * math.sin(theta)) / sigma_y
    power = (along**2 + aside**2) ** beta
    kernel = 1 / (1 + power) if plateau else np.exp(-power / 2)
    return np.asarray(kernel / kernel.sum())


def circular_lowpass_kernel(cutoff: float, kernel_size: int, pad_to: int = 0) -> np.ndarray:
    """A circular sinc filter, float64: w J1(w r) / (2 pi r) for the cutoff w in radians to a pixel, pi at most.

    With `pad_to`, an odd number, zeros around it make it so large.
    """
    across = np.arange(kernel_size) - (kernel_size - 1) / 2
    radius = np.hypot(*np.meshgrid(across, across))
    middle = radius == 0
    radius[middle] = 1
    bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * radius)).numpy()
    kernel = np.where(middle, cutoff**2 / (4 * math.pi), cutoff * bessel / (2 * math.pi * radius))
    return np.pad(kernel / kernel.sum(), max(pad_to - kernel_size, 0) // 2)


def random_mixed_kernels(
    kernel_list: Sequence[str],
    kernel_prob: Sequence[float],
    kernel_size: int = 21,
    sigma_x_range: Limits = (0.6, 5),
    sigma_y_range: Limits = (0.6, 5),
    rotation_range: Limits = (-math.pi, math.pi),
    betag_range: Limits = (0.5, 8),
    betap_range: Limits = (0.5, 8),
    noise_range: Limits | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Draws a kernel, float64 (kernel_size, kernel_size); BasicSR's function.

    Args:
        kernel_list: kinds, each one of `KernelName`.
        kernel_prob: how likely each is; they need not sum to 1.
        kernel_size: its side, odd.
        sigma_x_range: limits of a standard deviation in pixels.
        sigma_y_range: likewise, of anisotropic kernels.
        rotation_range: limits of theta, of anisotropic kernels.
        betag_range: limits of beta of generalized Gaussians: half of them from the lower one to 1, half from 1 on.
        betap_range: likewise of plateaus.
        noise_range: limits of a factor for each weight of kernels that are no plateaus; None for none.
        rng: where all is drawn from; None for numpy's global generator.
    """
    rng = rng or np.random.default_rng(np.random.randint(2**31))
    chances = np.asarray(kernel_prob, np.float64)
    kind = str(rng.choice(list(kernel_list), p=chances / chances.sum()))
    plateau = kind.startswith("plateau")
    sigma_x = sigma_y = rng.uniform(*sigma_x_range)
    theta, beta = 0.0, 1.0
    if kind.endswith("aniso"):
        sigma_y, theta = rng.uniform(*sigma_y_range), rng.uniform(*rotation_range)
    if plateau or kind.startswith("generalized"):
        low, high = betap_range if plateau else betag_range
        beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    kernel = gaussian_kernel(kernel_size, sigma_x, sigma_y, theta, beta, plateau=plateau)
    if noise_range is not None and not plateau:
        kernel = kernel * rng.uniform(*noise_range, kernel.shape)
        kernel = kernel / kernel.sum()
    return kernel


def draw_side(largest: int, rng: np.random.Generator) -> int:
    """The side of a kernel: an odd number from 7 to the largest, each as likely; a smaller largest one itself."""
    return int(rng.integers(_SMALLEST_SIDE // 2, max(largest // 2, 3) + 1)) * 2 + 1 if largest > 7 else largest


def draw_sinc(largest: int, rng: np.random.Generator, *, final: bool = False) -> np.ndarray:
    """A sinc kernel of a random side and cutoff; the final one of the pipeline never has the lower cutoffs."""
    side = draw_side(largest, rng)
    lowest = math.pi / 3 if final or side < _WIDE_SIDE else math.pi / 5
    return circular_lowpass_kernel(rng.uniform(lowest, math.pi), side)
