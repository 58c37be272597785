"""Peak signal-to-noise ratio and structural similarity, with BasicSR's figures."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from basicsr.metrics.metric_util import SSIM_SIGMA, SSIM_WINDOW, check_ssim_window, comparable_pair
from basicsr.utils.registry import METRIC_REGISTRY


@METRIC_REGISTRY.register()
def calculate_psnr(
    img: npt.NDArray[Any],
    img2: npt.NDArray[Any],
    crop_border: int,
    input_order: str = "HWC",
    test_y_channel: bool = False,
) -> float:
    """PSNR = 10 log10(255^2 / MSE) in dB; infinite for equal images.

    Args:
        img: in [0, 255], (H, W, C) BGR, (C, H, W) or (H, W), of any type of number.
        img2: of the same shape.
        crop_border: pixels to leave out at each edge.
        input_order: 'HWC' or 'CHW'.
        test_y_channel: whether to compare luma (see `to_y_channel`) instead of BGR.

    Raises:
        OptionsError: `input_order` or `crop_border` is wrong.
        DataError: the shapes differ, or nothing is left inside the border.
    """
    first, second = comparable_pair(img, img2, crop_border, input_order, test_y_channel)
    mean_squared_error = np.square(first - second).mean()
    if mean_squared_error == 0:
        return float("inf")
    return float(10 * np.log10(255.0**2 / mean_squared_error))


@METRIC_REGISTRY.register()
def calculate_ssim(
    img: npt.NDArray[Any],
    img2: npt.NDArray[Any],
    crop_border: int,
    input_order: str = "HWC",
    test_y_channel: bool = False,
) -> float:
    """Mean SSIM over all pixels with a whole window of 11 x 11 (Gaussian, sigma 1.5), and over channels.

    SSIM = (2 mu_x mu_y + c1) (2 sigma_xy + c2) / ((mu_x^2 + mu_y^2 + c1) (sigma_x^2 + sigma_y^2 + c2)),
    c1 = (0.01 * 255)^2, c2 = (0.03 * 255)^2: Wang et al., "Image Quality Assessment: From Error Visibility to
    Structural Similarity", IEEE TIP 2004.

    Args:
        img: in [0, 255], (H, W, C) BGR, (C, H, W) or (H, W), of any type of number.
        img2: of the same shape.
        crop_border: pixels to leave out at each edge.
        input_order: 'HWC' or 'CHW'.
        test_y_channel: whether to compare luma (see `to_y_channel`) instead of BGR.

    Raises:
        OptionsError: `input_order` or `crop_border` is wrong.
        DataError: the shapes differ, or less than a window is left inside the border.
    """
    first, second = comparable_pair(img, img2, crop_border, input_order, test_y_channel)
    check_ssim_window(first.shape[0], first.shape[1], crop_border)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_first, mean_second = _window_mean(first), _window_mean(second)
    product_of_means = mean_first * mean_second
    squares_of_means = mean_first**2 + mean_second**2
    covariance = _window_mean(first * second) - product_of_means
    # The two variances occur only as a sum, which takes one pass instead of two.
    variances = _window_mean(first**2 + second**2) - squares_of_means
    similarity = (2 * product_of_means + c1) * (2 * covariance + c2)
    similarity /= (squares_of_means + c1) * (variances + c2)
    return float(similarity.mean())


def _window_mean(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian-weighted mean around each pixel that has a whole window: (H, W, C) to (H - 10, W - 10, C)."""
    kernel = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA)
    margin = SSIM_WINDOW // 2
    filtered = np.asarray(cv2.sepFilter2D(image, -1, kernel, kernel), dtype=np.float64)
    return filtered[margin:-margin, margin:-margin]
