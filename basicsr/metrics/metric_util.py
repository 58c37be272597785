"""What metrics share: the order of dimensions, the border, the luma channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from basicsr.utils.color_util import bgr2ycbcr
from basicsr.utils.errors import DataError, OptionsError

SSIM_WINDOW = 11  # pixels a side
SSIM_SIGMA = 1.5  # of its Gaussian weights, pixels


def check_same_shape(shape: Sequence[int], shape2: Sequence[int]) -> None:
    """Raises DataError where two images differ in shape."""
    if tuple(shape) != tuple(shape2):
        raise DataError(f"the images have shapes {tuple(shape)} and {tuple(shape2)}; a metric needs two of one shape")


def check_crop_border(crop_border: int, height: int, width: int) -> None:
    """Raises OptionsError where `crop_border` is negative, DataError where it leaves nothing."""
    if crop_border < 0:
        raise OptionsError(f"crop_border is {crop_border}; it must be 0 or more pixels")
    if 2 * crop_border >= min(height, width):
        raise DataError(f"crop_border {crop_border} leaves nothing of {height} x {width} pixels; make it smaller")


def check_ssim_window(height: int, width: int, crop_border: int) -> None:
    """Raises DataError where what `crop_border` left is smaller than SSIM's window."""
    if min(height, width) < SSIM_WINDOW:
        raise DataError(
            f"crop_border {crop_border} leaves {height} x {width} pixels; SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW}"
        )


def reorder_image(img: npt.NDArray[Any], input_order: str = "HWC") -> npt.NDArray[Any]:
    """An image as (H, W, C), from (H, W), or from what `input_order` says: 'HWC' or 'CHW'.

    Raises:
        OptionsError: `input_order` is neither.
        DataError: the array has neither two nor three dimensions.
    """
    if input_order not in ("HWC", "CHW"):
        raise OptionsError(f"input_order is '{input_order}'; allowed: HWC, CHW")
    if img.ndim not in (2, 3):
        raise DataError(f"an image has shape {img.shape}; expected (H, W) or {input_order}")
    if img.ndim == 2:
        return img[..., None]
    return img.transpose(1, 2, 0) if input_order == "CHW" else img


def to_y_channel(img: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The luma Y of ITU-R BT.601 in [16, 235], not rounded.

    Args:
        img: (H, W, 3) BGR in [0, 255]; of another number of channels it is returned as float32.

    Returns:
        (H, W, 1) float32.
    """
    unit = img.astype(np.float32) / 255.0
    if img.ndim == 3 and img.shape[2] == 3:
        unit = bgr2ycbcr(unit, y_only=True)[..., None]
    return unit * np.float32(255.0)


def comparable_pair(
    img: npt.NDArray[Any], img2: npt.NDArray[Any], crop_border: int, input_order: str, test_y_channel: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both images as float64 (H, W, C) in [0, 255], without the border, on Y if asked for.

    Raises:
        OptionsError: `input_order` or `crop_border` is wrong.
        DataError: the shapes differ, or nothing is left inside the border.
    """
    check_same_shape(img.shape, img2.shape)
    height, width = reorder_image(img, input_order).shape[:2]
    check_crop_border(crop_border, height, width)
    pair = []
    for image in (img, img2):
        inner = reorder_image(image, input_order)[crop_border : height - crop_border, crop_border : width - crop_border]
        pair.append((to_y_channel(inner) if test_y_channel else inner).astype(np.float64))
    return pair[0], pair[1]
