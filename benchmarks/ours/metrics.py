"""PSNR and SSIM as validation measures them."""

from __future__ import annotations

import time

import cv2
import numpy as np
import torch

from basicsr.metrics import calculate_metric


class PlainMetrics:
    """PSNR and SSIM on Y in float64, each step written out: what stands in for a missing reference.

    Args:
        path: an .npz file of `img` and `img2`, uint8 (H, W, 3) BGR.
        crop_border: pixels left out at each edge.
        threads: of OpenCV.
    """

    def __init__(self, path: str, crop_border: int, threads: int) -> None:
        cv2.setNumThreads(threads)
        with np.load(path) as content:
            self._images = [content["img"], content["img2"]]
        self._border = crop_border

    def figures(self) -> dict[str, float]:
        """PSNR in dB and SSIM."""
        first, second = (_luma(image, self._border) for image in self._images)
        psnr = 10 * np.log10(255.0**2 / np.mean((first - second) ** 2))
        return {"psnr": float(psnr), "ssim": float(_ssim(*(_luma(image, self._border) for image in self._images)))}

    def run(self, repeats: int) -> float:
        """Seconds for both figures, on average."""
        return _seconds(self, repeats)


class Metrics:
    """A pair of images.

    Args:
        path: an .npz file of `img` and `img2`, uint8 (H, W, 3) BGR.
        crop_border: pixels left out at each edge.
        threads: of OpenCV and PyTorch.
    """

    def __init__(self, path: str, crop_border: int, threads: int) -> None:
        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        with np.load(path) as content:
            self._images = {"img": content["img"], "img2": content["img2"]}
        self._blocks = {
            name: {"type": f"calculate_{name}", "crop_border": crop_border, "test_y_channel": True}
            for name in ("psnr", "ssim")
        }

    def figures(self) -> dict[str, float]:
        """PSNR in dB and SSIM, on Y."""
        return {name: float(calculate_metric(self._images, block)) for name, block in self._blocks.items()}

    def run(self, repeats: int) -> float:
        """Seconds for both figures, on average."""
        return _seconds(self, repeats)


def _seconds(side: PlainMetrics | Metrics, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        side.figures()
    return (time.perf_counter() - started) / repeats


def _luma(image: np.ndarray, border: int) -> np.ndarray:
    """Y in [16, 235], rounded to whole grey levels nowhere, inside the border: float64 (H, W)."""
    inner = image[border:-border, border:-border].astype(np.float64)
    return inner @ np.array([24.966, 128.553, 65.481]) / 255 + 16


def _ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean SSIM (Wang et al., 2004) of windows 11 x 11 that lie inside."""
    kernel = cv2.getGaussianKernel(11, 1.5)
    window = np.outer(kernel, kernel)

    def mean(image: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.filter2D(image, -1, window))[5:-5, 5:-5]

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_first, mean_second = mean(first), mean(second)
    variance_first, variance_second = mean(first**2) - mean_first**2, mean(second**2) - mean_second**2
    covariance = mean(first * second) - mean_first * mean_second
    numerator = (2 * mean_first * mean_second + c1) * (2 * covariance + c2)
    return np.mean(numerator / ((mean_first**2 + mean_second**2 + c1) * (variance_first + variance_second + c2)))
