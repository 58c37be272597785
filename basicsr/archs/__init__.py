"""Networks, one file each: tensors in, tensors out. `build_network` makes one from its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def build_network(opt: Mapping[str, Any]) -> nn.Module:
    """Builds the network that `opt['type']` names from the other keys; raises OptionsError where one does not fit."""
    from basicsr.utils.registry import ARCH_REGISTRY

    return ARCH_REGISTRY.build(opt)
