"""Reads safetensors files by their own library, which checks shapes and places; size and doubles are checked here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor

from basicsr.files.safe_pickles import Refused
from basicsr.files.torch_files import MAX_TENSORS, opened

MAX_HEADER_BYTES = 32 << 20


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors on the CPU, and what the header says beside them.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with opened(path) as (file, size):
        return read_safetensors(file, size)


def read_safetensors(file: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `load_safetensors`, from an open file; raises Refused and whatever damaged files lead to."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise Refused(f"it is damaged or no safetensors file (its header has {length} bytes)")
    header = json.loads(file.read(length), object_pairs_hook=_without_doubles)
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise Refused(f"it is damaged or no safetensors file (its header lists no tensors, or more than {MAX_TENSORS})")
    file.seek(0)
    return safetensors.torch.load(file.read(size)), header.get("__metadata__") or {}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise Refused("it is damaged or no safetensors file (its header has a name twice)")
    return content
