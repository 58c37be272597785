"""What metrics share: the order of dimensions, the border, the luma channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from basicsr.utils.color_util import bgr2ycbcr
from basicsr.utils.errors import AssertedDataError, DataError, OptionsError

Image = npt.NDArray[Any]


class NoFigureWarning(RuntimeWarning):
    """A metric has no figure for these images and returns NaN, as BasicSR's do; an evaluation refuses it."""


def check_same_shape(shape: Sequence[int], shape2: Sequence[int]) -> None:
    """Raises DataError, which is an AssertionError too, where two images differ in shape."""
    if tuple(shape) != tuple(shape2):
        raise AssertedDataError(
            f"the images have shapes {tuple(shape)} and {tuple(shape2)}; a metric needs two of one shape"
        )


def check_crop_border(crop_border: int, height: int, width: int) -> None:
    """Raises OptionsError where `crop_border` is negative, DataError where it leaves nothing."""
    if crop_border < 0:
        raise OptionsError(f"crop_border is {crop_border}; it must be 0 or more pixels")
    if 2 * crop_border >= min(height, width):
        raise DataError(f"crop_border {crop_border} leaves nothing of {height} x {width} pixels; make it smaller")


def reorder_image(img: Image, input_order: str = "HWC") -> Image:
    """(H, W) or 'HWC' or 'CHW' as (H, W, C); OptionsError for another `input_order`, DataError for other dimensions."""
    if input_order not in ("HWC", "CHW"):
        raise OptionsError(f"input_order is '{input_order}'; allowed: HWC, CHW")
    if img.ndim not in (2, 3):
        raise DataError(f"an image has shape {img.shape}; expected (H, W) or {input_order}")
    if img.ndim == 2:
        return img[..., None]
    return img.transpose(1, 2, 0) if input_order == "CHW" else img


def to_y_channel(img: Image) -> npt.NDArray[np.float32]:
    """Y of BT.601 in [16, 235], not rounded: (H, W, 3) BGR in [0, 255] to (H, W, 1); others are returned as float32."""
    unit = img.astype(np.float32) / 255.0
    if img.ndim == 3 and img.shape[2] == 3:
        unit = bgr2ycbcr(unit, y_only=True)[..., None]
    return unit * np.float32(255.0)


def comparable_pair(img: Image, img2: Image, crop_border: int, input_order: str) -> tuple[Image, Image]:
    """Views of both images as (H, W, C) without the border."""
    check_same_shape(img.shape, img2.shape)
    first, second = reorder_image(img, input_order), reorder_image(img2, input_order)
    height, width = first.shape[:2]
    check_crop_border(crop_border, height, width)
    inner = slice(crop_border, height - crop_border), slice(crop_border, width - crop_border)
    return first[inner], second[inner]
