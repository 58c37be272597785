"""Where tiles lie in an image, and in its eight views.

A tile is a core, which it alone writes, and the context around it that the network sees too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from torch import Tensor


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
    for (top, bottom), (left, right) in product(pairwise(rows), pairwise(columns)):
        yield Region(top, left, bottom, right)


def with_context(core: Region, height: int, width: int, overlap: int, multiple: int = 1) -> Region:
    """A core and at least `overlap` pixels around it, to multiples, as attention windows lie, or the image's end."""
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


@dataclass(frozen=True)
class View:
    """One of the eight views of an image: its rows reversed, its columns reversed, then both axes swapped."""

    flip_rows: bool = False
    flip_columns: bool = False
    swap_axes: bool = False

    def of(self, image: Tensor) -> Tensor:
        """(..., H, W) to (..., H, W) or, with swapped axes, (..., W, H)."""
        image = self._flip(image)
        return image.transpose(-1, -2) if self.swap_axes else image

    def back(self, image: Tensor) -> Tensor:
        """Undoes `of`."""
        return self._flip(image.transpose(-1, -2) if self.swap_axes else image)

    def of_region(self, region: Region, height: int, width: int) -> Region:
        """Where the view of an image of this size shows `region` of the image."""
        return _swapped(self._mirrored(region, height, width), self.swap_axes)

    def region_back(self, region: Region, height: int, width: int) -> Region:
        """Undoes `of_region`: which part of an image of this size its view shows in `region`."""
        return self._mirrored(_swapped(region, self.swap_axes), height, width)

    def _flip(self, image: Tensor) -> Tensor:
        axes = [axis for axis, flipped in ((-2, self.flip_rows), (-1, self.flip_columns)) if flipped]
        return image.flip(axes) if axes else image

    def _mirrored(self, region: Region, height: int, width: int) -> Region:
        top, left, bottom, right = region.top, region.left, region.bottom, region.right
        if self.flip_rows:
            top, bottom = height - bottom, height - top
        if self.flip_columns:
            left, right = width - right, width - left
        return Region(top, left, bottom, right)


def _swapped(region: Region, swap: bool) -> Region:
    return Region(region.left, region.top, region.right, region.bottom) if swap else region


AS_IT_IS = View()
EIGHT_VIEWS = tuple(View(rows, columns, swap) for swap, rows, columns in product((False, True), repeat=3))
"""Their average is the self-ensemble, the "+" in EDSR+."""
