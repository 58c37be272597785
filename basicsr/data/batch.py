"""What the loader yields: a batch is collated of samples, handed over by a worker, and moved to the device.

Images of 8 bits travel as uint8, a quarter of float32's bytes, and become float32 where they are used: `Batch.to`.

Workers hand batches over in memory that both sides share and use again and again (`Slots`). PyTorch would make new
shared memory for every tensor, whose pages the system has to find, clear and map on both sides, and pass it through a
socket; that takes longer than reading and turning the patches. A worker fills its slots in turn, and only a slot's
number is sent. A slot is free again when nothing in the training process refers to its batch, however long that is
kept. Where no slot is free, or a batch is larger than one, it goes PyTorch's way.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from basicsr.data.base import Skipped
from basicsr.data.degradations.unfinished import Unfinished, finished, packed
from basicsr.data.teacher_outputs import decode
from basicsr.utils.errors import DataError

_FULL_SCALE = {torch.uint8: 255.0, torch.uint16: 65535.0}
_TENSORS = ("lq", "gt", "sr_teacher", "numbers")

_LARGEST_BATCH = 1 << 25  # bytes of addresses to a slot; memory is taken as far as batches fill them
_MOST_SLOTS = 16
_ALIGNMENT = 64
_numbers = itertools.count()
_all_slots: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()

_Empty = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]
_Layout = tuple[int, torch.Size, tuple[int, ...], torch.dtype]  # where a tensor lies in a slot


@dataclass(frozen=True)
class Batch:
    """Some training samples. Before `to`, images may be uint8 in [0, 255], in any layout, and `sr_teacher` uint16.

    Attributes:
        lq: LR images I_LR, float32 (B, 3, h, w), RGB in [0, 1].
        gt: HR images I_GT, float32 (B, 3, sh, sw); None where the dataset has none.
        lq_paths: file or LMDB key of each LR image.
        gt_paths: likewise of the HR images; empty strings where the dataset names none.
        seeds: int64 (B,), always on the CPU: the seed of each sample, from which its random choices derive.
        skipped: each sample in whose place another one was taken, and why.
        sr_teacher: the teacher's outputs I_T for these images from a cache, float32, shape of `gt`; None without one.
        unfinished: where LR images are made on the device, what is left to do for each. Before `to`, `lq` are HR images
            with the margins that this needs; after it, this is empty.
        numbers: uint8 (n,), the random numbers of `unfinished`; None where that is empty.
    """

    lq: torch.Tensor
    gt: torch.Tensor | None
    lq_paths: tuple[str, ...]
    gt_paths: tuple[str, ...]
    seeds: torch.Tensor
    skipped: tuple[Skipped, ...] = ()
    sr_teacher: torch.Tensor | None = None
    unfinished: tuple[Unfinished, ...] = ()
    numbers: torch.Tensor | None = None

    def to(self, device: torch.device | str, channels_last: bool = False) -> Batch:
        """The batch on `device` in float32, copied without waiting where it is pinned; `channels_last` is a layout.

        Makes LR images that are `unfinished`.
        """
        layout = torch.channels_last if channels_last else torch.contiguous_format

        def moved(name: str, images: torch.Tensor) -> torch.Tensor:
            images = images.to(device, non_blocking=True)
            if name == "numbers":
                return images
            coded = name == "sr_teacher" and images.dtype == torch.uint16
            return in_unit_range(decode(images) if coded else images, layout)

        batch = self._with_tensors(moved)
        if batch.numbers is None:
            return batch
        made = in_unit_range(finished(batch.lq, batch.numbers, batch.unfinished), layout)
        return replace(batch, lq=made, unfinished=(), numbers=None)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by torch's DataLoader."""
        return self._with_tensors(lambda _, tensor: tensor.pin_memory())

    def _with_tensors(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {}
        for name in _TENSORS:
            if (tensor := getattr(self, name)) is not None:
                changed[name] = function(name, tensor)
        return replace(self, **changed)


def collate(
    samples: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    skipped: Sequence[Skipped] = (),
    empty: _Empty = np.empty,
) -> Batch:
    """Stacks dicts of `lq`, and maybe `gt`, `sr_teacher`, paths and `unfinished`.

    Raises DataError where keys or sizes differ.
    """
    lq_paths = tuple(str(sample.get("lq_path", "")) for sample in samples)
    gt_paths = tuple(str(sample.get("gt_path", "")) for sample in samples)
    others = [name for name in ("gt", "sr_teacher") if any(name in sample for sample in samples)]
    images: dict[str, Any] = {name: _stack(name, samples, gt_paths, empty) for name in others}
    left = [sample["unfinished"] for sample in samples if "unfinished" in sample]
    numbers, unfinished = packed(left, empty) if left else (None, ())
    return Batch(
        lq=_stack("lq", samples, lq_paths, empty),
        lq_paths=lq_paths,
        gt_paths=gt_paths,
        seeds=torch.tensor(seeds, dtype=torch.int64),
        skipped=tuple(skipped),
        unfinished=unfinished,
        numbers=numbers,
        **{"gt": None, **images},
    )


def _stack(key: str, samples: Sequence[Mapping[str, Any]], paths: Sequence[str], empty: _Empty) -> torch.Tensor:
    images: list[torch.Tensor] = []
    for sample, path in zip(samples, paths, strict=True):
        image = sample.get(key)
        if not isinstance(image, torch.Tensor) or image.dim() != 3:
            found = f"{image.dim()} dimensions" if isinstance(image, torch.Tensor) else type(image).__name__
            raise DataError(f"'{key}' of sample {path} must be a tensor (C, H, W), got {found}; mend the dataset")
        images.append(image)
        if image.shape != images[0].shape:
            first, other = (" x ".join(map(str, entry.shape)) for entry in (images[0], image))
            raise DataError(
                f"the images of a batch must have one size, got '{key}' {first} ({paths[0]}) and {other} "
                f"({path}); crop them to patches (gt_size) or set batch_size_per_gpu to 1"
            )
    if images[0].is_floating_point() or any(image.dtype != images[0].dtype for image in images):
        return torch.stack([in_unit_range(image) for image in images]).contiguous()
    # The pixels of whole numbers lie side by side, (H, W, C): so each image is copied in one piece, and by numpy, since
    # PyTorch would share so little among threads.
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    stacked = np.stack(arrays, out=empty((len(arrays), *arrays[0].shape), arrays[0].dtype))
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def in_unit_range(images: torch.Tensor, layout: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    """uint8 or uint16 as float32 in [0, 1], to the bit as `to_float32`; floating-point images keep their values."""
    full = _FULL_SCALE.get(images.dtype)
    if full is None:
        return images.contiguous(memory_format=layout)
    # By a tensor on the device: PyTorch multiplies by the reciprocal of a plain number on CUDA, which rounds otherwise.
    return images.to(torch.float32, memory_format=layout).div_(torch.full((), full, device=images.device))


class Slots:
    """The shared memory of a loader's workers, made before they are forked; each has `each` slots, 16 at most."""

    def __init__(self, workers: int, each: int) -> None:
        self._each = min(each, _MOST_SLOTS)
        self._memories = [mmap.mmap(-1, self._each * _LARGEST_BATCH) for _ in range(workers)]
        self.busy = np.frombuffer(mmap.mmap(-1, workers * self._each), np.uint8).reshape(workers, self._each)
        self._owner = os.getpid()
        self.number = next(_numbers)
        _all_slots[self.number] = self

    @classmethod
    def made(cls, workers: int, each: int) -> Slots | None:
        """Slots; None where processes are not forked, or there is no memory for them."""
        if sys.platform != "linux" or workers == 0:
            return None
        try:
            return cls(workers, each)
        except OSError:
            return None

    def take(self, worker: int) -> Slot | None:
        """In a worker: one of its free slots; None where there is none."""
        free = np.flatnonzero(self.busy[worker] == 0)
        return Slot(self, worker, int(free[0])) if len(free) else None

    def memory(self, worker: int, slot: int) -> np.ndarray:
        """The bytes of a slot."""
        return np.frombuffer(self._memories[worker], np.uint8, _LARGEST_BATCH, slot * _LARGEST_BATCH)

    def opened(self, worker: int, slot: int) -> torch.Tensor:
        """In the training process: the memory of a slot, which is free again when all tensors on it have gone."""
        memory = self.memory(worker, slot)
        weakref.finalize(memory, self._free, worker, slot).atexit = False
        return torch.from_numpy(memory)

    def _free(self, worker: int, slot: int) -> None:
        if os.getpid() == self._owner:  # what a forked process lets go of is still in use here
            self.busy[worker, slot] = 0


class Slot:
    """In a worker: a slot while a batch is made in it."""

    def __init__(self, slots: Slots, worker: int, slot: int) -> None:
        self._slots, self._place = slots, (worker, slot)
        self._memory = slots.memory(worker, slot)
        self._end = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """As `np.empty`, in the slot where it has room."""
        start, size = self._end, math.prod(shape) * dtype.itemsize
        if start + size > len(self._memory):
            return np.empty(shape, dtype)
        self._end = start + -(-size // _ALIGNMENT) * _ALIGNMENT
        return self._memory[start : start + size].view(dtype).reshape(shape)

    def filled(self, batch: Batch) -> Batch | BatchInSlot:
        """What to send: the batch in the slot, where all of it lies there or can be copied to it."""
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        layouts = {name: self._layout(tensor) for name, tensor in tensors.items()}
        if None in layouts.values():
            # What lies in the slot already would be written over by the next batch.
            copies: dict[str, Any] = {name: tensors[name].clone() for name, layout in layouts.items() if layout}
            return replace(batch, **copies)
        self._slots.busy[self._place] = 1
        rest = {name: value for name, value in values.items() if name not in tensors}
        return BatchInSlot(self._slots.number, self._place, layouts, rest)

    def _layout(self, tensor: torch.Tensor) -> _Layout | None:
        base = self._memory.ctypes.data
        inside = range(base, base + len(self._memory))
        here = tensor
        if tensor.data_ptr() not in inside:
            room = self.empty((tensor.nbytes,), np.dtype(np.uint8))
            if room.ctypes.data not in inside:
                return None
            here = torch.from_numpy(room).view(tensor.dtype).as_strided(tensor.shape, tensor.stride()).copy_(tensor)
        return here.data_ptr() - base, here.shape, here.stride(), here.dtype


class BatchInSlot:
    """What a worker sends for a batch in a slot; it arrives as a `Batch`."""

    def __init__(self, *description: Any) -> None:
        self._description = description

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, self._description


def _arrived(number: int, place: tuple[int, int], layouts: dict[str, _Layout], rest: dict[str, Any]) -> Batch:
    memory = _all_slots[number].opened(*place)
    tensors: dict[str, Any] = {}
    for name, (offset, shape, strides, dtype) in layouts.items():
        size = math.prod(shape) * dtype.itemsize
        tensors[name] = memory[offset : offset + size].view(dtype).as_strided(shape, strides)
    return Batch(**rest, **tensors)
