"""Peak signal-to-noise ratio and structural similarity, with BasicSR's figures."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import cv2
import numpy as np

from basicsr.metrics.metric_util import (
    SSIM_SIGMA,
    SSIM_WINDOW,
    Image,
    NoFigureWarning,
    Plane,
    Precision,
    Scratch,
    check_ssim_window,
    comparable_pair,
    total_over_rows,
)
from basicsr.utils.errors import DataError
from basicsr.utils.ranges import Border
from basicsr.utils.registry import METRIC_REGISTRY

_MARGIN = SSIM_WINDOW // 2


@METRIC_REGISTRY.register()
def calculate_psnr(
    img: Image,
    img2: Image,
    crop_border: Border,
    input_order: Literal["HWC", "CHW"] = "HWC",
    test_y_channel: bool = False,
) -> float:
    """PSNR = 10 log10(255^2 / MSE) in dB; infinite for equal images.

    Args:
        img: in [0, 255], (H, W, C) BGR, (C, H, W) or (H, W), of any type of number.
        img2: of the same shape.
        crop_border: pixels to leave out at each edge.
        input_order: 'HWC' or 'CHW'.
        test_y_channel: whether to compare luma (Y of ITU-R BT.601) instead of BGR.

    Raises:
        OptionsError: `input_order` or `crop_border` is wrong.
        DataError: the shapes differ, or nothing is left inside the border.
    """
    first, second = comparable_pair(img, img2, crop_border, input_order)
    on_luma = test_y_channel and first.shape[2] == 3
    squared_error = total_over_rows(first, second, on_luma, _squared_error)
    if squared_error == 0:
        return float("inf")
    return float(10 * np.log10(255.0**2 / (squared_error / (first[..., 0].size if on_luma else first.size))))


@METRIC_REGISTRY.register()
def calculate_ssim(
    img: Image,
    img2: Image,
    crop_border: Border,
    input_order: Literal["HWC", "CHW"] = "HWC",
    test_y_channel: bool = False,
) -> float:
    """Mean SSIM over all pixels with a whole window of 11 x 11 (Gaussian, sigma 1.5), and over channels.

    SSIM = (2 mu_x mu_y + c1) (2 sigma_xy + c2) / ((mu_x^2 + mu_y^2 + c1) (sigma_x^2 + sigma_y^2 + c2)),
    c1 = (0.01 * 255)^2, c2 = (0.03 * 255)^2: Wang et al., "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE TIP 2004. Raises as `calculate_psnr`.

    Args:
        img: as `calculate_psnr`.
        img2: of the same shape.
        crop_border: pixels to leave out at each edge.
        input_order: 'HWC' or 'CHW'.
        test_y_channel: whether to compare luma (Y of ITU-R BT.601) instead of BGR.

    Warns:
        NoFigureWarning: less than a window is left inside the border; the result is NaN.
    """
    first, second = comparable_pair(img, img2, crop_border, input_order)
    try:
        check_ssim_window(first.shape[0], first.shape[1], crop_border)
    except DataError as error:
        warnings.warn(str(error), NoFigureWarning, stacklevel=2)
        return math.nan
    on_luma = test_y_channel and first.shape[2] == 3
    dtype: Precision = np.float32 if on_luma else np.float64
    similarity = total_over_rows(first, second, on_luma, _similarity, overlap=2 * _MARGIN, dtype=dtype, in_threads=True)
    pixels = (first.shape[0] - 2 * _MARGIN) * (first.shape[1] - 2 * _MARGIN)
    return similarity / (pixels if on_luma else pixels * first.shape[2])


def _squared_error(first: Plane, second: Plane, scratch: Scratch) -> float:
    difference = np.subtract(first, second, out=first)
    return float(np.square(difference, out=difference).sum())


def _similarity(first: Plane, second: Plane, scratch: Scratch) -> float:
    """Sum of the SSIM of all pixels of a block with a whole window.

    With s = x + y and d = x - y, SSIM is (mu_s^2 - mu_d^2 + 2 c1) / (mu_s^2 + mu_d^2 + 2 c1) times
    (var_s - var_d + 2 c2) / (var_s + var_d + 2 c2): fewer passes over memory than from x and y. Equal images, d = 0,
    have exactly 1. Float32 is exact enough on luma: an error of var_s counts little where images are alike, and that of
    var_d is as small as d.
    """
    shape, (c1, c2) = first.shape, ((0.01 * 255) ** 2, (0.03 * 255) ** 2)
    sums = np.add(first, second, out=scratch("sums", shape))
    differences = np.subtract(first, second, out=first)
    mean_s, variance_s = _window_moments(sums, scratch("means of sums", shape), scratch)
    mean_d, variance_d = _window_moments(differences, scratch("means of differences", shape), scratch)
    power_s, power_d = np.square(mean_s, out=mean_s), np.square(mean_d, out=mean_d)
    power_s += 2 * c1
    variance_s += 2 * c2
    similarity = np.subtract(power_s, power_d, out=second[_MARGIN:-_MARGIN])
    power_s += power_d
    similarity *= np.subtract(variance_s, variance_d, out=power_d)
    variance_s += variance_d
    power_s *= variance_s
    similarity /= power_s
    return float(similarity[:, _MARGIN:-_MARGIN].sum(dtype=np.float64))


def _window_moments(block: Plane, means: Plane, scratch: Scratch) -> tuple[Plane, Plane]:
    """Gaussian-weighted mean and variance around each pixel, for the h - 10 rows that have whole windows.

    The block's mean is subtracted first: a small difference of large squares would be a rough variance. `block` is
    overwritten, `means` receives the result; the five columns at each side mean nothing.
    """
    kernel = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA)
    centre = block.dtype.type(block.mean(dtype=np.float64))
    block -= centre
    squares = np.square(block, out=scratch("squares", block.shape))
    cv2.sepFilter2D(block, -1, kernel, kernel, means)
    variances = block  # which is not needed any more
    cv2.sepFilter2D(squares, -1, kernel, kernel, variances)
    means, variances, squares = (plane[_MARGIN:-_MARGIN] for plane in (means, variances, squares))
    variances -= np.square(means, out=squares)
    means += centre
    return means, variances
