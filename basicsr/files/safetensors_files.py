"""Reads safetensors files: a header in JSON, then the numbers. What the header says is checked before any are read."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from basicsr.files.stored_zip import Refused
from basicsr.files.tensor_pickles import DTYPES, MAX_DIMENSIONS, MAX_TENSORS
from basicsr.files.torch_files import opened
from basicsr.utils.errors import CheckpointError

MAX_HEADER_BYTES = 32 << 20
_KINDS = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{"BF16": "bfloat16", "BOOL": "bool", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors on the CPU, and what the header says beside them.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    with opened(path) as (file, size):
        try:
            return _load(file, size)
        except (ValueError, RecursionError, RuntimeError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise CheckpointError(
                f"checkpoint {path} was not loaded: it is damaged or no safetensors file ({reason})"
            ) from error


def _load(file: BinaryIO, size: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise Refused("its header is longer than it")
    if length > MAX_HEADER_BYTES:
        raise Refused(f"its header has {length} bytes, more than the {MAX_HEADER_BYTES} that are read")
    header = json.loads(file.read(length), object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    if not isinstance(header, dict):
        raise Refused("its header is no mapping")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refused("its __metadata__ is no mapping of text")
    entries = sorted((_entry(name, value) for name, value in header.items()), key=lambda entry: entry[3:])
    end = 0
    for name, _, _, begin, stop in entries:
        if begin != end:
            raise Refused(f"the numbers of {name[:100]!r} overlap others, or others are missing")
        end = stop
    if end != size - 8 - length:
        raise Refused("it ends too early or too late")
    if len(entries) > MAX_TENSORS:
        raise Refused(f"it has more than {MAX_TENSORS} tensors")
    return {name: _tensor(file, dtype, shape, stop - begin) for name, dtype, shape, begin, stop in entries}, metadata


def _entry(name: str, value: Any) -> tuple[str, torch.dtype, list[int], int, int]:
    match value:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(stop)]}:
            numbers = [*shape, begin, stop]
        case _:
            raise Refused(f"it does not say where {name[:100]!r} is")
    if kind not in _KINDS or _KINDS[kind] not in DTYPES:
        raise Refused(f"{name[:100]!r} has numbers of the type {kind[:20]!r}, which are not read")
    if len(shape) > MAX_DIMENSIONS or not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise Refused(f"{name[:100]!r} has no shape")
    dtype = DTYPES[_KINDS[kind]]
    if math.prod(shape) * dtype.itemsize != stop - begin:
        raise Refused(f"{name[:100]!r} has another number of bytes than its shape says")
    return name, dtype, shape, begin, stop


def _tensor(file: BinaryIO, dtype: torch.dtype, shape: list[int], size: int) -> Tensor:
    content = torch.empty(size, dtype=torch.uint8)
    view: Any = content.numpy()
    if size and file.readinto(view) != size:  # type: ignore[attr-defined]
        raise Refused("it ends too early")
    if sys.byteorder == "big":
        content = content.view(-1, dtype.itemsize // (2 if dtype.is_complex else 1)).flip(1).flatten()
    return content.view(dtype).reshape(shape)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise Refused("its header has a name twice")
    return content


def _no_constant(name: str) -> None:
    raise Refused(f"its header has {name}")
