"""Leaves that import no other package of basicsr, and the names that BasicSR offers here, found on first use."""

from __future__ import annotations

import importlib
from typing import Any

from basicsr.utils.aliases import NAMES

__all__ = list(NAMES)


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *NAMES])
