"""Self-ensemble: the average over the eight flips and rotations of an image (the "+" in EDSR+)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from basicsr.inference.tiling import Region


@dataclass(frozen=True)
class View:
    """One of the eight ways to look at an image: its rows reversed, its columns reversed, then both axes swapped."""

    flip_rows: bool = False
    flip_columns: bool = False
    swap_axes: bool = False

    def of(self, image: Tensor) -> Tensor:
        """(..., H, W) to (..., H, W) or, with swapped axes, (..., W, H)."""
        image = image.flip(self._flipped()) if self._flipped() else image
        return image.transpose(-1, -2) if self.swap_axes else image

    def back(self, image: Tensor) -> Tensor:
        """Undoes `of`."""
        image = image.transpose(-1, -2) if self.swap_axes else image
        return image.flip(self._flipped()) if self._flipped() else image

    def of_region(self, region: Region, height: int, width: int) -> Region:
        """Where the view of an image of this size shows `region` of the image."""
        top, bottom = _mirrored(region.top, region.bottom, height, self.flip_rows)
        left, right = _mirrored(region.left, region.right, width, self.flip_columns)
        return Region(left, top, right, bottom) if self.swap_axes else Region(top, left, bottom, right)

    def region_back(self, region: Region, height: int, width: int) -> Region:
        """Which part of an image of this size its view shows in `region`: undoes `of_region`."""
        rows, columns = (region.top, region.bottom), (region.left, region.right)
        rows, columns = (columns, rows) if self.swap_axes else (rows, columns)
        top, bottom = _mirrored(*rows, height, self.flip_rows)
        left, right = _mirrored(*columns, width, self.flip_columns)
        return Region(top, left, bottom, right)

    def _flipped(self) -> list[int]:
        return [axis for axis, flipped in ((-2, self.flip_rows), (-1, self.flip_columns)) if flipped]


AS_IT_IS = View()
EIGHT_VIEWS = tuple(
    View(rows, columns, swap) for swap in (False, True) for rows in (False, True) for columns in (False, True)
)


def self_ensemble(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wraps `run`, a map of images (B, C, H, W), so that it is averaged, in float32, over the eight views."""

    def averaged(image: Tensor) -> Tensor:
        total = EIGHT_VIEWS[0].back(run(EIGHT_VIEWS[0].of(image))).float()
        for view in EIGHT_VIEWS[1:]:
            total = total + view.back(run(view.of(image))).float()
        return total / len(EIGHT_VIEWS)

    return averaged


def _mirrored(start: int, end: int, length: int, flipped: bool) -> tuple[int, int]:
    return (length - end, length - start) if flipped else (start, end)
