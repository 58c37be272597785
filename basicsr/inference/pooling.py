"""Means over the whole image inside a network that sees it in tiles.

A network with channel attention averages its features over all they cover. Run on a tile, it would average over the
tile, and each tile would be processed differently. Here these averages are gathered over the cores of all tiles, and
in the next pass over the image every tile is given those of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr.inference.tiling import Region

_aten = torch.ops.aten
_POOLINGS = (_aten.adaptive_avg_pool2d.default, _aten._adaptive_avg_pool2d.default)
# How many times larger than the tile a network's features may be.
_RATIOS = tuple(Fraction(1, step) for step in range(1, 33)) + tuple(Fraction(step) for step in range(2, 9))


@dataclass
class ImageMeans:
    """What one pass over an image gathers: for each pooling, in the order the network comes by them."""

    sums: list[Tensor] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, other: ImageMeans) -> None:
        """Adds what a tile gathered."""
        if not self.sums:
            self.sums, self.counts = [torch.zeros_like(total) for total in other.sums], [0] * len(other.counts)
        for total, more in zip(self.sums, other.sums, strict=True):
            total += more
        self.counts = [count + more for count, more in zip(self.counts, other.counts, strict=True)]

    def means(self) -> list[Tensor]:
        """float64 (C,) of each pooling."""
        return [total / count for total, count in zip(self.sums, self.counts, strict=True)]


class PoolingOverImage(TorchDispatchMode):
    """While a network runs on a tile: gathers over its core what it averages, and gives it known means instead.

    Args:
        core: the pixels that count.
        region: those that the network sees, core and context, of the same image.
        size: height and width of that image.
        multiple: of which the network extends what it sees to multiples.
        known: the means of the whole image, in the network's order; None leaves it those of the region.
    """

    def __init__(
        self, core: Region, region: Region, size: tuple[int, int], multiple: int, known: list[Tensor] | None
    ) -> None:
        super().__init__()
        self.gathered = ImageMeans()
        self._core, self._region, self._size, self._multiple, self._known = core, region, size, multiple, known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        x = _averaged(func, args)
        slices = None if x is None else self._core_of(x)
        if x is None or slices is None:
            return func(*args, **(kwargs or {}))
        core = x[(0, slice(None), *slices)]
        self.gathered.sums.append(core.sum((1, 2), dtype=torch.float64))
        self.gathered.counts.append(core.shape[1] * core.shape[2])
        result = func(*args, **(kwargs or {}))
        if self._known is None:
            return result
        return self._known[len(self.gathered.sums) - 1].to(result).view(result.shape)

    def _core_of(self, x: Tensor) -> tuple[slice, slice] | None:
        """Where in features (1, C, H, W) the core is; None where they are no map of the tile."""
        if x.shape[0] != 1:
            return None
        height, width = self._region.height, self._region.width
        for multiple in (1, self._multiple):
            padded = -(-height // multiple) * multiple, -(-width // multiple) * multiple
            ratio = Fraction(x.shape[2], padded[0])
            if ratio == Fraction(x.shape[3], padded[1]) and ratio in _RATIOS:
                rows = self._along(self._core.top, self._core.bottom, self._region.top, ratio, self._size[0])
                columns = self._along(self._core.left, self._core.right, self._region.left, ratio, self._size[1])
                return rows, columns
        return None

    @staticmethod
    def _along(start: int, end: int, origin: int, ratio: Fraction, size: int) -> slice:
        # Beyond the image's end lies what the network extended it by, which it averages too.
        last = None if end == size else int(end * ratio) - int(origin * ratio)
        return slice(int(start * ratio) - int(origin * ratio), last)


def _averaged(func: Any, args: Any) -> Tensor | None:
    """The features (B, C, H, W) that an operator averages over H and W; None for any other operator."""
    if func in _POOLINGS and list(args[1]) == [1, 1]:
        return args[0]
    if func is _aten.mean.dim and args[0].dim() == 4 and {axis % 4 for axis in args[1] or ()} == {2, 3}:
        return args[0]
    return None
