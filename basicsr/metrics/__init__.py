"""Functions of an image and its ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.metrics.traits import better_direction, bound_metric, prepare_metrics
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METRIC_REGISTRY

__all__ = ["better_direction", "bound_metric", "calculate_metric", "prepare_metrics"]


def calculate_metric(data: Mapping[str, Any], opt: Mapping[str, Any]) -> Any:
    """Evaluates the metric `opt['type']` with its own arguments in `opt` on `data`, {'img': ..., 'img2': ...}.

    Images are uint8 (H, W, 3) in BGR, or for metrics of tensors (B, C, H, W) in RGB and [0, 1]. Raises OptionsError if
    `opt` does not fit the metric, DataError if it is not defined for these images.
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
