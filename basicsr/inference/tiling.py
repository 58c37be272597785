"""Where tiles lie: each is a core, which it alone writes, and the context around it that the network sees too."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, in pixels; `bottom` and `right` lie outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Indices of rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def scaled(self, factor: int) -> Region:
        """The same rectangle of the image enlarged `factor` times."""
        return Region(self.top * factor, self.left * factor, self.bottom * factor, self.right * factor)

    def within(self, outer: Region) -> Region:
        """The same rectangle, counted from the upper left corner of `outer`."""
        return Region(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)


def cut_into_cores(region: Region, tile: int | None) -> Iterator[Region]:
    """Cuts a rectangle into ones of nearly equal size, at most `tile` a side, row by row; None leaves it whole."""
    rows, columns = _cuts(region.top, region.bottom, tile), _cuts(region.left, region.right, tile)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield Region(top, left, bottom, right)


def with_context(core: Region, height: int, width: int, overlap: int, multiple: int = 1) -> Region:
    """A core with at least `overlap` pixels around it, as far as the image of this size goes.

    The region begins at multiples of `multiple`, and ends at them or with the image: so attention windows lie in it
    as in the whole image, and a network that extends images to full windows does it where it does it to the whole.
    """
    top, bottom = _extend(core.top, core.bottom, height, overlap, multiple)
    left, right = _extend(core.left, core.right, width, overlap, multiple)
    return Region(top, left, bottom, right)


def _cuts(start: int, end: int, tile: int | None) -> list[int]:
    count = 1 if tile is None else math.ceil((end - start) / tile)
    return [start + (end - start) * index // count for index in range(count + 1)]


def _extend(start: int, end: int, length: int, overlap: int, multiple: int) -> tuple[int, int]:
    start = max(start - overlap, 0) // multiple * multiple
    end = min(math.ceil((end + overlap) / multiple) * multiple, length)
    if end - start < multiple:  # what is left of the last window may be too little to extend by reflection
        start = max(start - multiple, 0)
    return start, end
