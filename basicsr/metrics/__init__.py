"""Functions of an image and its ground truth; BasicSR's names are imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from basicsr.metrics.traits import better_direction, bound_metric, prepare_metrics

__all__ = ["better_direction", "bound_metric", "calculate_metric", "prepare_metrics"]

_HOMES = {
    "calculate_psnr": "psnr_ssim",
    "calculate_ssim": "psnr_ssim",
    "calculate_psnr_pt": "psnr_ssim_pt",
    "calculate_ssim_pt": "psnr_ssim_pt",
    "calculate_lpips": "perceptual",
    "calculate_dists": "perceptual",
    "calculate_niqe": "perceptual",
    "calculate_pyiqa": "perceptual",
}


def calculate_metric(data: Mapping[str, Any], opt: Mapping[str, Any]) -> Any:
    """Evaluates the metric `opt['type']` on `data`, usually {'img': ..., 'img2': ...}; `opt` is not changed.

    Args:
        data: uint8 (H, W, 3) arrays in BGR; for a metric whose parameter `img` is annotated `torch.Tensor`, tensors
            (B, C, H, W) in RGB and [0, 1].
        opt: `type` and the metric's own arguments; its key `better` is not passed on.

    Raises:
        OptionsError: `type` is missing or unknown, or a key does not fit the metric.
        DataError: the metric is not defined for these images.
    """
    return bound_metric(opt, data)(data)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
