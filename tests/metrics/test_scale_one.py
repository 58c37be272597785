"""Tasks at scale 1, such as denoising: RGB, no border, and an input that counts as the bicubic row."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from basicsr.test import test_pipeline as evaluate_file


def test_the_bicubic_row_is_the_input_compared_in_rgb_up_to_the_edge(tmp_path, image_pairs):
    gt, lq = image_pairs(scale=1, count=2, size=24)
    noisy = cv2.imread(str(lq / "img001x1.png"))
    noisy[0, 0] ^= 8  # a pixel in the corner, which a border would hide
    cv2.imwrite(str(lq / "img001x1.png"), noisy)
    cv2.imwrite(str(lq / "img000x1.png"), cv2.imread(str(gt / "img000.png")))
    names = ("calculate_psnr", "calculate_psnr_pt", "calculate_ssim", "calculate_ssim_pt")
    options = {
        "name": "denoising",
        "scale": 1,
        "num_gpu": 0,
        "datasets": {
            "val": {
                "name": "noisy",
                "type": "PairedImageDataset",
                "dataroot_gt": str(gt),
                "dataroot_lq": str(lq),
                "filename_tmpl": "{}x1",
            }
        },
        "networks": {"input": {"type": "bicubic"}},
        "val": {"metrics": {name: {"type": name} for name in names}},
        "report": {"html": False, "plots": False, "speed": False},
    }
    results = evaluate_file(options, root=tmp_path)
    equal, changed = results.scales[0].rows[0].evaluations["noisy"].values
    assert equal.tolist() == [math.inf, math.inf, pytest.approx(1), pytest.approx(1)]
    expected = peak_signal_noise_ratio(cv2.imread(str(gt / "img001.png")), noisy)
    assert np.isfinite(expected)
    assert changed[:2].tolist() == pytest.approx([expected, expected], abs=1e-9)
    assert changed[2] == pytest.approx(changed[3], abs=1e-9)
