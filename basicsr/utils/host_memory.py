"""How the C library hands out the memory of tensors on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST = 2**31 - 1
_MOST_OF_OLD = 32 << 20  # bytes, which older versions refuse to exceed


def keep_freed_memory(block: int = MOST, end: int = MOST) -> bool:
    """Lets freed tensors of any size be reused, in place of going back to the system at once.

    glibc maps every large block anew, and the system fills its pages with zeros one after another as they are touched:
    at HR resolution that was a tenth of a whole training step. What is kept is used by the next step. Nothing is
    changed where the user has tuned malloc, nor where the C library is another.

    Args:
        block: bytes, up to which blocks are kept; larger ones are mapped anew.
        end: bytes that are kept at the end of the heap.

    Returns:
        Whether it was set.
    """
    tuned = any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"))
    if tuned or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, block) or mallopt(_M_MMAP_THRESHOLD, min(block, _MOST_OF_OLD))
    return bool(mallopt(_M_TRIM_THRESHOLD, end) and kept)
