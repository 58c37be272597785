"""Image files of every dialect, written by libraries that do not read them here, with the pixels they hold.

For scripts/image_matrix.py and the tests.
"""

from __future__ import annotations

from collections.abc import Iterator

from dialects.base import Dialect
from dialects.others import bmps, jpegs, pngs, ppms, webps
from dialects.tiff import odd_tiffs, tiffs, tiffs_of_others


def all_dialects() -> Iterator[Dialect]:
    """All of them."""
    for makers in (tiffs, odd_tiffs, tiffs_of_others, pngs, jpegs, webps, bmps, ppms):
        yield from makers()
