"""MATLAB's bicubic `imresize`, by which super-resolution makes its low-resolution images.

Per axis, output pixel x (from 1) lies at u = x / s + (1 - 1 / s) / 2 of the input. Its value is the weighted
mean of the pixels i within the kernel, with weights k(u - i) for s >= 1 and s k(s (u - i)) for s < 1
(antialiasing), scaled to sum to 1; k is Keys' cubic kernel with a = -1/2. Borders are mirrored, edge pixels repeated.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np

_KERNEL_WIDTH = 4
# A product such as 49 * (1 / 49) may miss a whole number by rounding; without this, `ceil` could add a pixel.
_ROUNDING_SLACK = 1e-9


def imresize(img: Any, scale: float, antialiasing: bool = True) -> Any:
    """Resizes as MATLAB's `imresize(img, scale)` on a floating-point image: bicubic, without rounding or clipping.

    Args:
        img: a tensor (C, H, W) or (H, W), or an array (H, W, C) or (H, W), of any range.
        scale: factor of height and width; the size becomes (ceil(scale H), ceil(scale W)).
        antialiasing: widen the kernel when shrinking.

    Returns:
        As `img`, float64 if it is, else float32; a tensor on its device, without gradients.
    """
    if isinstance(img, np.ndarray):
        rows = _along(img, 0, scale, antialiasing)
        return _along(rows, 1, scale, antialiasing).astype(np.float64 if img.dtype == np.float64 else np.float32)
    import torch

    pixels = img.detach().cpu().double().numpy()
    rows = _along(pixels, pixels.ndim - 2, scale, antialiasing)
    resized = torch.from_numpy(_along(rows, pixels.ndim - 1, scale, antialiasing))
    return resized.to(img.device, torch.float64 if img.dtype == torch.float64 else torch.float32)


def imresize_integer(img: np.ndarray, scale: float, rounding: Literal["each_pass", "once"] = "each_pass") -> np.ndarray:
    """Resizes an image of integers, (H, W) or (H, W, C) of uint8 or uint16, to one of the same type.

    MATLAB rounds and clips after the rows and after the columns: 'each_pass'; through im2double it rounds 'once'. The
    public benchmarks have both. Halves are rounded upwards.
    """
    rows = _along(img, 0, scale, antialiasing=True)
    if rounding == "each_pass":
        rows = _rounded(rows, img.dtype)
    return _rounded(_along(rows, 1, scale, antialiasing=True), img.dtype).astype(img.dtype)


def shrink_window(img: np.ndarray, factor: int, origin: tuple[int, int]) -> np.ndarray:
    """A window of `imresize_integer(whole, 1 / factor)`, to the bit, from the pixels of the whole image around it.

    Args:
        img: (H, W, C) of the whole image: `factor` times the window, with 2 `factor` pixels more at every edge; beyond
            the whole image's edges mirrored, edge pixels repeated. uint8, uint16, or float32, which is not rounded.
        factor: how many times smaller the window is, at least 2.
        origin: row and column of `img` in the whole image, multiples of `factor`, negative beyond its edges.

    Returns:
        The window, (H / factor - 4, W / factor - 4, C), of the type of `img`.
    """
    for place in origin:
        # Where weights are whole multiples of a power of two, the sums are exact, whatever their order.
        exact = img.dtype != np.float32 and factor & (factor - 1) == 0
        rows = _exactly_shrunk_rows(img, factor) if exact else _shrunk_rows(img, factor, place)
        if rows.ndim == 3 and rows.shape[2] > 4:  # which OpenCV does not transpose
            img = np.ascontiguousarray(rows.swapaxes(0, 1))
        else:
            img = cv2.transpose(rows).reshape(rows.shape[1], rows.shape[0], -1)
    return img


def _shrunk_rows(img: np.ndarray, factor: int, origin: int) -> np.ndarray:
    """The sums in the order in which `_along` has them."""
    first = origin // factor + 2
    positions = np.arange(first + 1, first + len(img) // factor - 3)
    weights, pixels = _weights(positions, 1 / factor, True)
    indices = pixels - 1 - origin
    result = np.zeros((len(weights), *img.shape[1:]))
    for tap in range(weights.shape[1]):
        result += weights[:, tap, None, None] * img[indices[:, tap]]
    return result.astype(img.dtype) if img.dtype == np.float32 else _rounded(result, img.dtype).astype(img.dtype)


def _exactly_shrunk_rows(img: np.ndarray, factor: int) -> np.ndarray:
    height, width, channels = img.shape
    row, taps, count = width * channels, 4 * factor, height // factor - 4
    type_ = np.dtype(np.float32 if img.dtype == np.uint8 and factor <= 4 else np.float64)
    values = np.ascontiguousarray(img, type_)
    step = row * type_.itemsize
    # (count, taps, row), of which each row of the result takes its own taps.
    seen = np.ndarray((count, taps, row), type_, values, factor // 2 * step, (factor * step, step, type_.itemsize))
    sums = np.matmul(_phase(factor, type_), seen)
    # OpenCV rounds halves to even numbers, clips and converts at once; half the sums' smallest step turns them upwards.
    upwards, kind = 1 / (32 * factor**4), cv2.CV_8U if img.dtype == np.uint8 else cv2.CV_16U
    shrunk: np.ndarray = cv2.add(sums, upwards, dtype=kind)  # type: ignore[call-overload]  # OpenCV takes a number, too
    return shrunk.reshape(count, width, channels)


@cache
def _phase(factor: int, type_: np.dtype[Any]) -> np.ndarray:
    """The weights of one output pixel, which are those of all."""
    weights, _ = _weights(np.array([5]), 1 / factor, True)
    return weights[0].astype(type_)


def _rounded(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.floor(np.clip(values, limits.min, limits.max) + 0.5)


def _along(pixels: np.ndarray, axis: int, scale: float, antialiasing: bool) -> np.ndarray:
    """Resizes one axis, in float64."""
    weights, indices = _contributions(pixels.shape[axis], scale, antialiasing)
    moved = np.moveaxis(pixels, axis, 0)
    column = (-1, *(1,) * (moved.ndim - 1))
    result = np.zeros((len(weights), *moved.shape[1:]))
    for tap in range(weights.shape[1]):
        result += weights[:, tap].reshape(column) * moved[indices[:, tap]]
    return np.moveaxis(result, 0, axis)


def _contributions(length: int, scale: float, antialiasing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights and indices of the input pixels that make up each output pixel, both (output length, taps)."""
    positions = np.arange(1, math.ceil(length * scale - _ROUNDING_SLACK) + 1)
    weights, pixels = _weights(positions, scale, antialiasing)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    return weights, mirrored[(pixels - 1) % (2 * length)]


def _weights(positions: np.ndarray, scale: float, antialiasing: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights and input pixels, from 1 and also beyond the edges, of output pixels, from 1."""
    shrink = scale if scale < 1 and antialiasing else 1.0
    width = _KERNEL_WIDTH / shrink
    centres = positions / scale + 0.5 * (1 - 1 / scale)
    pixels = np.floor(centres - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    x = np.abs(shrink * (centres[:, None] - pixels))
    # Keys' kernel
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = shrink * np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.any(weights != 0, axis=0)
    return weights[:, used], pixels[:, used].astype(np.int64)


def enlarging_kernels(scale: int) -> np.ndarray:
    """What `imresize` does at a whole `scale`, as kernels along one axis: float64 (scale, 5).

    Output pixel `scale i + p` is the sum of kernel p times the pixels i - 2 to i + 2.
    """
    middle = 4
    weights, indices = (entry[middle * scale :][:scale] for entry in _contributions(2 * middle + 1, scale, False))
    kernels = np.zeros((scale, 5))
    np.put_along_axis(kernels, indices - middle + 2, weights, axis=1)
    return kernels
