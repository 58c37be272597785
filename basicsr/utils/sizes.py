"""Bytes that tensors take."""

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
