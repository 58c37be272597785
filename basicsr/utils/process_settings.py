"""What a process sets for itself: how threads wait, what keeps freed memory, which signals stop it.

Imported before PyTorch, which reads some of it once, when it is imported: so this file imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping

# How often libgomp's threads ask for work before they sleep. Its default, 300,000, slows small networks several times
# where other programs use the processor; without any spinning, threads wake too late and a small network's step takes
# up to 1.6 times as long on idle cores.
THREAD_VARIABLES = {"GOMP_SPINCOUNT": "10000"}
_POLICY = "OMP_WAIT_POLICY"

_STOP_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU", "SIGBREAK")
# Windows lacks some of them, other systems lack SIGBREAK.
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in _STOP_NAMES if hasattr(signal, name))
"""Ctrl+C, a request of a scheduler or of `kill`, a closed terminal, a reached limit of processor time."""

_MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**31 - 1
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
_LARGEST_OF_OLD = 32 << 20  # bytes, which older versions refuse to exceed


def shorten_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets waiting threads sleep soon, here and in children, unless the user decides; for before PyTorch's import."""
    for name, value in THREAD_VARIABLES.items():
        if _POLICY not in environment:
            environment.setdefault(name, value)


def num_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_ignored(number: signal.Signals) -> bool:
    """Whether the process was started with this signal ignored: by `nohup`, or in the background of a shell."""
    return signal.getsignal(number) is signal.SIG_IGN


def return_freed_memory() -> None:
    """Gives free pages back to the system; by itself glibc returns only those at the heap's end."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def keep_freed_memory(block: int = _LARGEST, end: int = _LARGEST) -> bool:
    """Lets glibc reuse freed tensors instead of mapping zeroed pages anew, a tenth of a training step at HR resolution.

    Blocks of up to `block` bytes are kept, and `end` bytes at the end of the heap. True if that was set.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, block) or mallopt(_M_MMAP_THRESHOLD, min(block, _LARGEST_OF_OLD))
    return bool(mallopt(_M_TRIM_THRESHOLD, end) and kept)


def end_with_parent(parent: int) -> None:
    """Has Linux kill this process when the process `parent`, which started it, ends; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
