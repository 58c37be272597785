"""Functions of an image and its ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.metrics.traits import better_direction, bound_metric, prepare_metrics
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METRIC_REGISTRY

__all__ = ["better_direction", "bound_metric", "calculate_metric", "prepare_metrics"]


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
    """Finds any registered metric, such as `calculate_psnr`, as BasicSR's files import them."""
    try:
        if name.startswith("calculate_"):
            return METRIC_REGISTRY.get(name)
    except OptionsError as error:
        raise AttributeError(str(error)) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
