"""Lets basicsr 1.4.2 be imported beside a newer torchvision, or one without compiled operators."""

from __future__ import annotations

import importlib
import sys
import types

import torch


def prepare_torchvision() -> None:
    """For before basicsr's import."""
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
    functional = importlib.import_module("torchvision.transforms.functional")
    moved = types.ModuleType("torchvision.transforms.functional_tensor")
    moved.__dict__["rgb_to_grayscale"] = functional.rgb_to_grayscale
    sys.modules[moved.__name__] = moved
