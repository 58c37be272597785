"""LR images whose pixels are computed after their batch was handed over, on the device of the training.

The worker draws what is random, as a function of the sample's seed. All these tensors of a batch travel as one, in one
piece of shared memory, and are copied to the device at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch

from basicsr.data.degradations.base import SplitDegradation, one_thread
from basicsr.data.transforms import Coins, turned_tensor

_ALIGNMENT = 64

_Empty = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]


@dataclass(frozen=True)
class Unfinished:
    """What is left to do for the LR image of a sample: a step, what was drawn for it, and the turning after it."""

    step: SplitDegradation
    drawn: Any
    coins: Coins


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the one that has the numbers of a batch: from which byte on."""

    start: int
    shape: torch.Size
    dtype: torch.dtype


def packed(samples: Sequence[Unfinished], empty: _Empty) -> tuple[torch.Tensor, tuple[Unfinished, ...]]:
    """All that was drawn in one tensor of bytes, and the samples with places in it instead of tensors."""
    tensors: list[tuple[int, torch.Tensor]] = []
    end = 0

    def placed(tensor: torch.Tensor) -> Place:
        nonlocal end
        place = Place(end, tensor.shape, tensor.dtype)
        tensors.append((end, tensor))
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return place

    rest = tuple(_mapped(sample, torch.Tensor, placed) for sample in samples)
    numbers = empty((end,), np.dtype(np.uint8))
    for start, tensor in tensors:
        numbers[start : start + tensor.nbytes] = tensor.contiguous().view(-1).numpy().view(np.uint8)
    return torch.from_numpy(numbers), rest


def finished(images: torch.Tensor, numbers: torch.Tensor, samples: Sequence[Unfinished]) -> torch.Tensor:
    """The LR images (B, C, h, w) of HR images with margins, float32 in [0, 1], on their device, to the bit as a worker
    makes them on the CPU."""

    def found(place: Place) -> torch.Tensor:
        end = place.start + place.shape.numel() * place.dtype.itemsize
        return numbers[place.start : end].view(place.dtype).view(place.shape)

    with one_thread():
        made = [
            turned_tensor(sample.step.finish(image.contiguous(), _mapped(sample.drawn, Place, found)), sample.coins)
            for image, sample in zip(images, samples, strict=True)
        ]
    return torch.stack(made)


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """A value, whose entries of a kind, in dataclasses and tuples at any depth, are replaced."""
    if isinstance(value, kind):
        return function(value)
    if type(value) is tuple:
        return tuple(_mapped(entry, kind, function) for entry in value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _mapped(getattr(value, field.name), kind, function) for field in fields(value)}
        return replace(value, **changed)
    return value
