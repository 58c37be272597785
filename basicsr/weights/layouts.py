"""Which of our networks a state dict is, by keys and shapes alone: each network says so itself."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from basicsr.archs.recognition import Recognised
from basicsr.utils.registry import ARCH_REGISTRY


def recognise(state: Mapping[str, Tensor]) -> Recognised | None:
    """Says which of our networks a state dict (without prefixes such as `module.`) belongs to; None if to none.

    No two networks take the same weights, so their order does not matter. Raises UnsupportedWeights where the layout is
    known, but our network cannot do what the weights hold.
    """
    for _, network in ARCH_REGISTRY:
        try:
            found = network.from_published(state) if hasattr(network, "from_published") else None
        except (KeyError, IndexError, ZeroDivisionError, RuntimeError):
            continue  # keys alike, shapes unlike any network's
        if found is not None:
            return found
    return None
