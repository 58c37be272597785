"""Numbers of bytes: of tensors, and as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def size_of(content: Any) -> int:
    """Bytes of the tensors in nested dicts and lists, about what a file of them takes."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(size_of(value) for value in content.values())
    return sum(size_of(value) for value in content) if isinstance(content, (list, tuple)) else 0


def readable(size: int) -> str:
    """A number of bytes as people read it: '480 MB'."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 10 * factor else f"{size / factor:.0f} {unit}"
    return f"{size} B"
