"""What metrics share: the order of dimensions, the border, the luma channel, and sums over blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from basicsr.utils.color_util import bgr2ycbcr, luma_of_bgr
from basicsr.utils.errors import AssertedDataError, DataError, OptionsError

Image = npt.NDArray[Any]
Plane = npt.NDArray[np.floating[Any]]
Precision = type[np.float32] | type[np.float64]

SSIM_WINDOW = 11  # pixels a side
SSIM_SIGMA = 1.5  # of its Gaussian weights, pixels

# About how many numbers a block has: the few arrays of this size that are worked on together stay in the processor's
# caches, and a block is large beside the rows that neighbours both read. Below it threads cost more than they give.
_BLOCK = 2**17
_FEWEST_ROWS = 32


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


def check_ssim_window(height: int, width: int, crop_border: int) -> None:
    """Raises DataError where what `crop_border` left is smaller than SSIM's window."""
    if min(height, width) < SSIM_WINDOW:
        raise DataError(
            f"crop_border {crop_border} leaves {height} x {width} pixels; SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW}"
        )


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


class Scratch:
    """Arrays of one thread by their names, used again for each block: fresh memory costs as much as the arithmetic."""

    def __init__(self, dtype: Precision) -> None:
        self._dtype = dtype
        self._held: dict[str, Plane] = {}

    def __call__(self, name: str, shape: tuple[int, ...]) -> Plane:
        """An uninitialised array, which the next call with this name overwrites."""
        size = math.prod(shape)
        if name not in self._held or self._held[name].size < size:
            self._held[name] = np.empty(size, self._dtype)
        return self._held[name][:size].reshape(shape)


# Of two blocks, both (h, w) or (h, w, C), which it may overwrite.
Measure = Callable[[Plane, Plane, Scratch], float]


def total_over_rows(
    first: Image,
    second: Image,
    on_luma: bool,
    measure: Measure,
    *,
    overlap: int = 0,
    dtype: Precision = np.float64,
    in_threads: bool = False,
) -> float:
    """The sum of `measure` over blocks of rows of two images (H, W, C), or of their Y, which share `overlap` rows.

    Blocks depend on the size alone and are added in their order: the total is that of one thread, to the last bit.
    """
    height, width, channels = first.shape
    blocks = _blocks(height - overlap, width * (1 if on_luma else channels))
    totals = [0.0] * len(blocks)
    threads = min(torch.get_num_threads(), len(blocks)) if in_threads else 1

    def work(thread: int) -> None:
        scratch = Scratch(dtype)
        for index in range(thread, len(blocks), threads):
            rows = slice(blocks[index].start, blocks[index].stop + overlap)
            one = _as_plane(first[rows], on_luma, "first", scratch)
            other = _as_plane(second[rows], on_luma, "second", scratch)
            totals[index] = measure(one, other, scratch)

    if threads == 1:
        work(0)
    else:
        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(work, thread) for thread in range(1, threads)]
            work(0)
            for other in others:
                other.result()
    return float(sum(totals))


def _blocks(rows: int, row_size: int) -> list[range]:
    """Rows 0...rows - 1 in nearly equal parts: one, or an even number, as that of threads mostly is."""
    size = rows * row_size
    count = 1 if size <= _BLOCK else 2 * math.ceil(size / (2 * _BLOCK))
    step = max(_FEWEST_ROWS, math.ceil(rows / count))
    return [range(top, min(top + step, rows)) for top in range(0, rows, step)]


def _as_plane(block: Image, on_luma: bool, name: str, scratch: Scratch) -> Plane:
    """(h, w, C) of any type as floats (h, w, C), or (h, w) where there is one channel or luma is asked for."""
    converted = scratch("colours" if on_luma else name, block.shape)
    np.copyto(converted, block)
    if on_luma:
        return np.asarray(cv2.transform(converted, luma_of_bgr(), scratch(name, block.shape[:2])))
    return converted[..., 0] if block.shape[2] == 1 else converted
