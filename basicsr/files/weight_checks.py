"""What a tensor must be to be a weight: every reader of weights asks here."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from basicsr.utils.errors import CheckpointError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Ends of names that networks learn or measure, and never count: such a tensor of whole numbers is no weight.
_LEARNED = ("weight", "bias", "running_mean", "running_var", "gamma", "beta", "alpha", "table")
_MASK = "mask"  # buffers that are added before a softmax may hold -inf


def check_weights(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], expected: Mapping[str, Tensor] | None = None
) -> None:
    """Checks type and values of each tensor; shapes are compared elsewhere.

    Weights are dense and of 16, 32 or 64 bits, floating point, with finite values as float32. Counters and indices are
    whole numbers.

    Args:
        tensors: by key.
        path: where they are from, for messages.
        expected: the network's own tensors by key, which say what is a weight; without them the names do.

    Raises:
        CheckpointError: names the file, the key and what is wrong with it.
    """
    for key, value in tensors.items():
        wanted = None if expected is None else expected.get(key)
        if fault := _fault(key, value, wanted):
            raise CheckpointError(f"checkpoint {path} was not loaded: its weight '{key}' {fault}")


def check_not_all_zero(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError for a file of zeros, as of a download that set aside its room and no more."""
    weights = [value for value in tensors.values() if value.is_floating_point() and value.numel()]
    if weights and not any(bool(value.any()) for value in weights):
        raise CheckpointError(f"checkpoint {path} was not loaded: all its weights are 0; fetch or copy it again")


def _fault(key: str, value: Tensor, wanted: Tensor | None) -> str | None:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return "is sparse, quantised or without numbers; save the weights as dense float32 tensors"
    kind = str(value.dtype).removeprefix("torch.")
    learned = wanted.is_floating_point() if wanted is not None else key.rpartition(".")[2].endswith(_LEARNED)
    if value.dtype not in _FLOATS:
        if learned or value.is_complex() or value.is_floating_point():
            return f"is {kind}, allowed are float32, float16, bfloat16 and float64; give the file as it was trained"
        return None
    broken = ~torch.isfinite(value.float())  # float64 may be beyond float32
    if key.endswith(_MASK):
        broken &= value != -torch.inf
    if count := int(broken.sum()):
        return f"has {count} of {value.numel()} values that are NaN or infinite; give another file"
    if wanted is not None and not learned and not torch.equal(value, value.round()):
        return f"is {kind} with fractions where the network counts; give another file"
    return None
