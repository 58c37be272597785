"""Losses on images: pixel, perceptual and adversarial; `build_loss` makes the one that an options block names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# What BasicSR's users import from here, found on first use, so that importing the package costs nothing.
_NAMES = {
    "basic_loss": "L1Loss MSELoss CharbonnierLoss WeightedTVLoss l1_loss mse_loss charbonnier_loss weighted_tv_loss"
    " PerceptualLoss",
    "gan_loss": "GANLoss r1_penalty gradient_penalty_loss",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}


def build_loss(opt: Mapping[str, Any]) -> nn.Module:
    """Builds the loss that `opt['type']` names from the other keys; raises OptionsError where one does not fit."""
    from basicsr.utils.registry import LOSS_REGISTRY

    loss: nn.Module = LOSS_REGISTRY.build(opt)
    return loss


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
