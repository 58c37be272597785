"""PSNR and SSIM of batches of tensors, on their device; the figures are those of `psnr_ssim`."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch

from basicsr.metrics.metric_util import SSIM_SIGMA, SSIM_WINDOW, check_crop_border, check_same_shape, check_ssim_window
from basicsr.utils.color_util import rgb2ycbcr_pt
from basicsr.utils.errors import DataError
from basicsr.utils.ranges import Border
from basicsr.utils.registry import METRIC_REGISTRY


@METRIC_REGISTRY.register()
def calculate_psnr_pt(
    img: torch.Tensor,
    img2: torch.Tensor,
    crop_border: Border,
    test_y_channel: bool = False,
    round_to_8_bits: bool = True,
) -> torch.Tensor:
    """PSNR = 10 log10(255^2 / MSE) in dB of each image, (B,) float64; infinite for equal images.

    Args:
        img: (B, C, H, W) RGB in [0, 1], of any floating type.
        img2: of the same shape.
        crop_border: pixels to leave out at each edge.
        test_y_channel: whether to compare luma (see `rgb2ycbcr_pt`) where there are three channels.
        round_to_8_bits: clip and round both, as images are when they are saved; else take them as they are.

    Raises:
        OptionsError: `crop_border` is negative.
        DataError: the shapes differ or are not (B, C, H, W), or nothing is left inside the border.
    """
    first, second = _comparable_pair(img, img2, crop_border, test_y_channel, round_to_8_bits)
    return 10 * torch.log10(255.0**2 / (first - second).square().mean((1, 2, 3)))


@METRIC_REGISTRY.register()
def calculate_ssim_pt(
    img: torch.Tensor,
    img2: torch.Tensor,
    crop_border: Border,
    test_y_channel: bool = False,
    round_to_8_bits: bool = True,
) -> torch.Tensor:
    """Mean SSIM of each image, as `calculate_ssim` defines it: (B,) float64; raises as `calculate_psnr_pt`.

    DataError, too, if less than a window is left inside the border.

    Args:
        img: (B, C, H, W) RGB in [0, 1], of any floating type.
        img2: of the same shape.
        crop_border: pixels to leave out at each edge.
        test_y_channel: whether to compare luma (see `rgb2ycbcr_pt`) where there are three channels.
        round_to_8_bits: clip and round both, as images are when they are saved; else take them as they are.
    """
    first, second = _comparable_pair(img, img2, crop_border, test_y_channel, round_to_8_bits)
    check_ssim_window(first.shape[-2], first.shape[-1], crop_border)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_first, mean_second = _window_mean(first), _window_mean(second)
    product_of_means = mean_first * mean_second
    squares_of_means = mean_first.square() + mean_second.square()
    covariance = _window_mean(first * second) - product_of_means
    variances = _window_mean(first.square() + second.square()) - squares_of_means
    similarity = (2 * product_of_means + c1) * (2 * covariance + c2)
    return (similarity / ((squares_of_means + c1) * (variances + c2))).mean((1, 2, 3))


def eight_bit_levels(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as the whole numbers 0...255 that `tensor2img` saves, ties alike; float32."""
    return images.detach().float().clamp(0, 1).mul_(255).round_()


def _comparable_pair(
    img: torch.Tensor, img2: torch.Tensor, crop_border: int, test_y_channel: bool, round_to_8_bits: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both batches in [0, 255] without the border, on Y if asked for; in float64, as variances need it."""
    check_same_shape(img.shape, img2.shape)
    if img.dim() != 4:
        raise DataError(f"images have shape {tuple(img.shape)}; expected (B, C, H, W)")
    height, width = img.shape[-2:]
    check_crop_border(crop_border, height, width)
    pair = []
    for images in (img, img2):
        inner = images[..., crop_border : height - crop_border, crop_border : width - crop_border]
        levels = eight_bit_levels(inner).double() if round_to_8_bits else inner.double() * 255
        if test_y_channel and levels.shape[1] == 3:
            levels = rgb2ycbcr_pt(levels / 255, y_only=True) * 255
        pair.append(levels)
    return pair[0], pair[1]


def _window_mean(images: torch.Tensor) -> torch.Tensor:
    """Gaussian-weighted mean around each pixel that has a whole window: (B, C, H, W) to (B, C, H - 10, W - 10).

    OpenCV is several times as fast on the CPU; PyTorch has no fast convolution of float64, but a sum of shifted images.
    """
    margin = SSIM_WINDOW // 2
    if images.device.type == "cpu" and not images.requires_grad:
        kernel = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA)
        planes = images.flatten(0, 1).numpy()
        means = [cv2.sepFilter2D(plane, -1, kernel, kernel)[margin:-margin, margin:-margin] for plane in planes]
        return torch.from_numpy(np.stack(means)).unflatten(0, images.shape[:2])
    weights = [math.exp(-((k - margin) ** 2) / (2 * SSIM_SIGMA**2)) for k in range(SSIM_WINDOW)]
    for dim in (2, 3):
        size = images.shape[dim] - SSIM_WINDOW + 1
        mean = torch.zeros_like(images.narrow(dim, 0, size))
        for shift, weight in enumerate(weights):
            mean.add_(images.narrow(dim, shift, size), alpha=weight / sum(weights))
        images = mean
    return images
