"""PSNR and SSIM by basicsr 1.4.2, in numpy."""

from __future__ import annotations

import importlib
import time

import numpy as np


class PlainMetrics:
    """A pair of images.

    Args:
        path: an .npz file of `img` and `img2`, uint8 (H, W, 3) BGR.
        crop_border: pixels left out at each edge.
        threads: that OpenCV may use.
    """

    def __init__(self, path: str, crop_border: int, threads: int) -> None:
        with np.load(path) as content:
            self._img, self._img2 = content["img"], content["img2"]
        self._border = crop_border
        self._metrics = importlib.import_module("basicsr.metrics")
        importlib.import_module("cv2").setNumThreads(threads)

    def figures(self) -> dict[str, float]:
        """PSNR in dB and SSIM, on Y."""
        arguments = {"crop_border": self._border, "test_y_channel": True}
        return {
            "psnr": float(self._metrics.calculate_psnr(self._img, self._img2, **arguments)),
            "ssim": float(self._metrics.calculate_ssim(self._img, self._img2, **arguments)),
        }

    def run(self, repeats: int) -> float:
        """Seconds for both figures, on average."""
        started = time.perf_counter()
        for _ in range(repeats):
            self.figures()
        return (time.perf_counter() - started) / repeats
