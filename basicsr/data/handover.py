"""How worker processes hand batches over: in memory that both sides share and use again and again.

Left to itself, PyTorch makes new shared memory for every tensor, whose pages the system has to find, clear and map on
both sides, and passes it through a socket. That takes longer than reading and turning the patches. Here each worker
has some slots, which it fills in turn, and only a slot's number is sent. A slot is free again when nothing in the
training process refers to the batch that lay in it, however long that is kept. Where no slot is free, or a batch is
larger than one, it goes PyTorch's way.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import sys
import weakref
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from basicsr.data.batch import Batch

_LARGEST_BATCH = 1 << 25  # bytes of addresses to a slot; memory is taken as far as batches fill them
_MOST_SLOTS = 16
_ALIGNMENT = 64
_NAMES = ("lq", "gt", "sr_teacher", "seeds")

_numbers = itertools.count()
_all: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()


class _Layout(NamedTuple):
    """Where a tensor lies in a slot."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, memory: torch.Tensor) -> torch.Tensor:
        """The tensor in the slot of that memory, uint8 (bytes,)."""
        values = memory[self.offset :][: self._bytes].view(self.dtype)
        return values.as_strided(self.shape, self.strides)

    @property
    def _bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Slots:
    """The shared memory of a loader's workers; made before they are forked, of which they inherit it.

    Args:
        workers: how many.
        each: slots to a worker; no more than 16 are made.
    """

    def __init__(self, workers: int, each: int) -> None:
        self._each = min(each, _MOST_SLOTS)
        self._memories = [mmap.mmap(-1, self._each * _LARGEST_BATCH) for _ in range(workers)]
        self._busy = np.frombuffer(mmap.mmap(-1, workers * self._each), np.uint8).reshape(workers, self._each)
        self._owner = os.getpid()
        self.number = next(_numbers)
        _all[self.number] = self

    def take(self, worker: int) -> Slot | None:
        """In a worker: one of its slots that are free; None where there is none."""
        free = np.flatnonzero(self._busy[worker] == 0)
        return Slot(self, worker, int(free[0])) if len(free) else None

    def mark(self, worker: int, slot: int) -> None:
        """In a worker: notes that a slot holds a batch that was sent."""
        self._busy[worker, slot] = 1

    def opened(self, worker: int, slot: int) -> torch.Tensor:
        """In the training process: the memory of a slot, which is free again when all tensors on it have gone."""
        memory = self.memory(worker, slot)
        weakref.finalize(memory, self._free, worker, slot).atexit = False
        return torch.from_numpy(memory)

    def memory(self, worker: int, slot: int) -> np.ndarray:
        """The bytes of a slot."""
        return np.frombuffer(self._memories[worker], np.uint8, _LARGEST_BATCH, slot * _LARGEST_BATCH)

    def _free(self, worker: int, slot: int) -> None:
        if os.getpid() == self._owner:  # what a forked process lets go of is still in use here
            self._busy[worker, slot] = 0


class Slot:
    """In a worker: a slot while a batch is made in it."""

    def __init__(self, slots: Slots, worker: int, slot: int) -> None:
        self._slots, self._worker, self._slot = slots, worker, slot
        self._memory = slots.memory(worker, slot)
        self._end = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """As `np.empty`, in the slot where it has room."""
        start, size = self._end, math.prod(shape) * dtype.itemsize
        if start + size > len(self._memory):
            return np.empty(shape, dtype)
        self._end = start + -(-size // _ALIGNMENT) * _ALIGNMENT
        return self._memory[start : start + size].view(dtype).reshape(shape)

    def filled(self, batch: Batch) -> Batch | HandedOver:
        """What to send: the batch in the slot, where all of it lies there or can be copied to it."""
        tensors = {name: tensor for name in _NAMES if (tensor := getattr(batch, name)) is not None}
        layouts = {name: self._layout(tensor) for name, tensor in tensors.items()}
        placed = {name: layout for name, layout in layouts.items() if layout is not None}
        if len(placed) < len(layouts):
            # What lies in the slot already would be written over by the next batch.
            copies = {name: tensor.clone() for name, tensor in tensors.items() if name in placed}
            return replace(batch, **copies)
        self._slots.mark(self._worker, self._slot)
        return HandedOver((self._slots.number, self._worker, self._slot), placed, batch)

    def _layout(self, tensor: torch.Tensor) -> _Layout | None:
        base = self._memory.ctypes.data
        inside = range(base, base + len(self._memory))
        here = tensor
        if tensor.data_ptr() not in inside:
            room = self.empty((tensor.nbytes,), np.dtype(np.uint8))
            if room.ctypes.data not in inside:
                return None
            here = torch.from_numpy(room).view(tensor.dtype).as_strided(tensor.shape, tensor.stride()).copy_(tensor)
        return _Layout(here.data_ptr() - base, tuple(here.shape), here.stride(), here.dtype)


class HandedOver:
    """A batch in a slot; it arrives as a `Batch`."""

    def __init__(self, place: tuple[int, int, int], layouts: dict[str, _Layout], batch: Batch) -> None:
        self._place, self._layouts = place, layouts
        self._rest = batch.lq_paths, batch.gt_paths, batch.skipped

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self._place, {name: tuple(layout) for name, layout in self._layouts.items()}, self._rest)


def _arrived(place: tuple[int, int, int], layouts: dict[str, tuple[Any, ...]], rest: tuple[Any, ...]) -> Batch:
    number, worker, slot = place
    memory = _all[number].opened(worker, slot)
    tensors = {name: _Layout(*layout).tensor(memory) for name, layout in layouts.items()}
    lq_paths, gt_paths, skipped = rest
    return replace(
        Batch(tensors["lq"], None, lq_paths, gt_paths, tensors["seeds"], skipped),
        gt=tensors.get("gt"),
        sr_teacher=tensors.get("sr_teacher"),
    )


def slots_for(workers: int, each: int) -> Slots | None:
    """Slots for a loader's workers; None where processes are not forked, or there is no memory for them."""
    if sys.platform != "linux" or workers == 0:
        return None
    try:
        return Slots(workers, each)
    except OSError:
        return None
