"""Peak signal-to-noise ratio and structural similarity, with BasicSR's figures, of arrays and of batches of tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch

from basicsr.metrics.metric_util import Image, NoFigureWarning, check_crop_border, check_same_shape, comparable_pair
from basicsr.utils.color_util import luma_of_bgr, rgb2ycbcr_pt
from basicsr.utils.errors import DataError
from basicsr.utils.ranges import Border
from basicsr.utils.registry import METRIC_REGISTRY

Plane = npt.NDArray[np.floating[Any]]
Precision = type[np.float32] | type[np.float64]

SSIM_WINDOW = 11  # pixels a side
_SIGMA = 1.5  # of its Gaussian weights, pixels
_MARGIN = SSIM_WINDOW // 2

# About how many numbers a block has: the few arrays of this size that are worked on together stay in the processor's
# caches, and a block is large beside the rows that neighbours both read. Below it threads cost more than they give.
_BLOCK = 2**17
_FEWEST_ROWS = 32


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
    squared_error = _total_over_rows(first, second, on_luma, _squared_error)
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
        _check_ssim_window(first.shape[0], first.shape[1], crop_border)
    except DataError as error:
        warnings.warn(str(error), NoFigureWarning, stacklevel=2)
        return math.nan
    on_luma = test_y_channel and first.shape[2] == 3
    dtype: Precision = np.float32 if on_luma else np.float64
    similarity = _total_over_rows(
        first, second, on_luma, _similarity, overlap=2 * _MARGIN, dtype=dtype, in_threads=True
    )
    pixels = (first.shape[0] - 2 * _MARGIN) * (first.shape[1] - 2 * _MARGIN)
    return similarity / (pixels if on_luma else pixels * first.shape[2])


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
    first, second = _level_pair(img, img2, crop_border, test_y_channel, round_to_8_bits)
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
    first, second = _level_pair(img, img2, crop_border, test_y_channel, round_to_8_bits)
    _check_ssim_window(first.shape[-2], first.shape[-1], crop_border)
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


def _check_ssim_window(height: int, width: int, crop_border: int) -> None:
    """Raises DataError where what `crop_border` left is smaller than SSIM's window."""
    if min(height, width) < SSIM_WINDOW:
        raise DataError(
            f"crop_border {crop_border} leaves {height} x {width} pixels; SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW}"
        )


def _squared_error(first: Plane, second: Plane, scratch: _Scratch) -> float:
    difference = np.subtract(first, second, out=first)
    return float(np.square(difference, out=difference).sum())


def _similarity(first: Plane, second: Plane, scratch: _Scratch) -> float:
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


def _window_moments(block: Plane, means: Plane, scratch: _Scratch) -> tuple[Plane, Plane]:
    """Gaussian-weighted mean and variance around each pixel, for the h - 10 rows that have whole windows.

    The block's mean is subtracted first: a small difference of large squares would be a rough variance. `block` is
    overwritten, `means` receives the result; the five columns at each side mean nothing.
    """
    kernel = cv2.getGaussianKernel(SSIM_WINDOW, _SIGMA)
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


class _Scratch:
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


_Measure = Callable[[Plane, Plane, _Scratch], float]


def _total_over_rows(
    first: Image,
    second: Image,
    on_luma: bool,
    measure: _Measure,
    *,
    overlap: int = 0,
    dtype: Precision = np.float64,
    in_threads: bool = False,
) -> float:
    """The sum of `measure` over blocks of rows of two images (H, W, C), or of their Y, which share `overlap` rows.

    `measure` may overwrite the blocks, (h, w) or (h, w, C). They depend on the size alone and are added in order: the
    total is that of one thread, to the last bit.
    """
    height, width, channels = first.shape
    rows = height - overlap
    size = rows * width * (1 if on_luma else channels)
    # One block, or an even number, as that of threads mostly is.
    count = 1 if size <= _BLOCK else 2 * math.ceil(size / (2 * _BLOCK))
    step = max(_FEWEST_ROWS, math.ceil(rows / count))
    blocks = [slice(top, min(top + step, rows) + overlap) for top in range(0, rows, step)]
    totals = [0.0] * len(blocks)
    threads = min(torch.get_num_threads(), len(blocks)) if in_threads else 1

    def work(thread: int) -> None:
        scratch = _Scratch(dtype)
        for index in range(thread, len(blocks), threads):
            one = _as_plane(first[blocks[index]], on_luma, "first", scratch)
            other = _as_plane(second[blocks[index]], on_luma, "second", scratch)
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


def _as_plane(block: Image, on_luma: bool, name: str, scratch: _Scratch) -> Plane:
    """(h, w, C) of any type as floats (h, w, C), or (h, w) where there is one channel or luma is asked for."""
    converted = scratch("colours" if on_luma else name, block.shape)
    np.copyto(converted, block)
    if on_luma:
        return np.asarray(cv2.transform(converted, luma_of_bgr(), scratch(name, block.shape[:2])))
    return converted[..., 0] if block.shape[2] == 1 else converted


def _level_pair(
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
    if images.device.type == "cpu" and not images.requires_grad:
        kernel = cv2.getGaussianKernel(SSIM_WINDOW, _SIGMA)
        planes = images.flatten(0, 1).numpy()
        means = [cv2.sepFilter2D(plane, -1, kernel, kernel)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] for plane in planes]
        return torch.from_numpy(np.stack(means)).unflatten(0, images.shape[:2])
    weights = [math.exp(-((k - _MARGIN) ** 2) / (2 * _SIGMA**2)) for k in range(SSIM_WINDOW)]
    for dim in (2, 3):
        size = images.shape[dim] - SSIM_WINDOW + 1
        mean = torch.zeros_like(images.narrow(dim, 0, size))
        for shift, weight in enumerate(weights):
            mean.add_(images.narrow(dim, shift, size), alpha=weight / sum(weights))
        images = mean
    return images
