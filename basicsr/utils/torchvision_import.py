"""The one place that imports torchvision, which spandrel and pyiqa import, too."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from basicsr.utils.errors import MachineError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> Any:
    """Imports torchvision, or its CUDA build beside a CPU PyTorch, for which it declares operators.

    Models and weights work then, `torchvision.ops.nms` does not. Raises MachineError where it cannot be imported.
    """
    try:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
        return importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        raise MachineError(
            f"torchvision does not import ({str(error).splitlines()[0]}); reinstall it with torch: bash install.sh"
        ) from error
