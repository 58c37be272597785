"""Running out of memory."""

from __future__ import annotations

import gc

import torch

# PyTorch says it in many ways: its CPU allocator (Linux, Windows), C++, oneDNN, cuBLAS and cuDNN, Apple's GPUs.
_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "out of memory",
    "could not create a memory",
    "could not create a primitive",
    "could not execute a primitive",
    "ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no more memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def free_caches() -> None:
    """Returns memory that is held without being used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
