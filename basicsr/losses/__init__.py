"""Losses on images: pixel, perceptual and adversarial.

`build_loss` makes the loss that an options block names. The classes and functions that BasicSR users import
from here are found on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_HOMES = {
    "L1Loss": "basic_loss",
    "MSELoss": "basic_loss",
    "CharbonnierLoss": "basic_loss",
    "WeightedTVLoss": "basic_loss",
    "l1_loss": "basic_loss",
    "mse_loss": "basic_loss",
    "charbonnier_loss": "basic_loss",
    "weighted_tv_loss": "basic_loss",
    "PerceptualLoss": "perceptual_loss",
    "GANLoss": "gan_loss",
    "adversarial_loss": "gan_loss",
    "r1_penalty": "gan_loss",
    "gradient_penalty_loss": "gan_loss",
}


def build_loss(opt: Mapping[str, Any]) -> nn.Module:
    """Builds the loss that `opt['type']` names from the remaining keys; `opt` itself is left as it is.

    Raises:
        OptionsError: `type` is missing or unknown, or a key does not fit the loss.
    """
    from basicsr.utils.registry import LOSS_REGISTRY

    loss: nn.Module = LOSS_REGISTRY.build(opt)
    return loss


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
