"""Means over the whole image inside a network that sees it in tiles.

Run on a tile, channel attention would average over the tile alone. Here averages are gathered over the cores of all
tiles, and in the next pass over the image every tile is given those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr.inference.tiling import Region

_aten = torch.ops.aten
_POOLINGS = (_aten.adaptive_avg_pool2d.default, _aten._adaptive_avg_pool2d.default)
# Networks may extend what they see to multiples of their own, up to this.
_LARGEST_STEP = 64
# How many times larger than the tile a network's features may be.
_RATIOS = tuple(Fraction(1, step) for step in range(1, 33)) + tuple(Fraction(step) for step in range(2, 9))

Means = Sequence[Tensor | None]
"""float64 (C,) of each average, in the network's order; None where it is unknown."""


@dataclass
class ImageMeans:
    """What a network averages, of a tile or of several."""

    # Of each average, in the network's order: float64 (C,) and how many pixels; None if it cannot be gathered.
    sums: list[tuple[Tensor, int] | None] = field(default_factory=list)
    followed: bool = True  # False if tiles kept averages of their own

    def plus(self, other: ImageMeans) -> ImageMeans:
        """The averages over both."""
        if len(self.sums) != len(other.sums):
            return ImageMeans([], False)
        sums: list[tuple[Tensor, int] | None] = []
        followed = self.followed and other.followed
        for one, more in zip(self.sums, other.sums, strict=True):
            if one is None or more is None or one[0].shape != more[0].shape:
                sums.append(None)
                followed &= one is None and more is None
            else:
                sums.append((one[0] + more[0], one[1] + more[1]))
        return ImageMeans(sums, followed)

    def means(self) -> Means:
        """The averages to give to every tile."""
        return [None if entry is None else entry[0] / entry[1] for entry in self.sums]


class PoolingOverImage(TorchDispatchMode):
    """While a network runs on a tile: gathers its averages over the core, and replaces them by `known` means.

    The tile is `region` of an image of this size and contains `core`; regions begin at multiples of `multiple`.
    """

    def __init__(self, core: Region, region: Region, size: tuple[int, int], multiple: int, known: Means = ()) -> None:
        super().__init__()
        self.gathered = ImageMeans()
        self._core, self._region, self._size, self._known = core, region, size, known
        self._steps = _divisors(math.lcm(multiple, _LARGEST_STEP))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        x = _averaged(func, args)
        if x is None:
            return result
        index = len(self.gathered.sums)
        ratio = self._ratio(x.shape[2], x.shape[3]) if x.shape[0] == 1 else None
        if ratio is None:
            self.gathered.sums.append(None)
            # One pixel is its own mean.
            self.gathered.followed &= x.shape[0] != 1 or x.shape[2:].numel() == 1
            return result
        rows = _along(self._core.top, self._core.bottom, self._region.top, ratio, self._size[0])
        columns = _along(self._core.left, self._core.right, self._region.left, ratio, self._size[1])
        core = x[0, :, rows, columns]
        self.gathered.sums.append((core.sum((1, 2), dtype=torch.float64), core.shape[1] * core.shape[2]))
        known = self._known[index] if index < len(self._known) else None
        return result if known is None or len(known) != x.shape[1] else known.to(result).view(result.shape)

    def _ratio(self, height: int, width: int) -> Fraction | None:
        """How many times larger features are than the tile, extended to multiples of any step; None if they are not."""
        # Of an extended tile several may fit: 80 pixels sixteen times smaller are 75 fifteen times. Networks halve.
        other = None
        for step in self._steps:
            extended = [-(-side // step) * step for side in (self._region.height, self._region.width)]
            ratio = Fraction(height, extended[0])
            if ratio == Fraction(width, extended[1]) and ratio in _RATIOS:
                if (ratio.numerator * ratio.denominator).bit_count() == 1:
                    return ratio
                other = other or ratio
        return other


def _along(start: int, end: int, origin: int, ratio: Fraction, size: int) -> slice:
    # Beyond the image's end lies what the network extended it by, which it averages too.
    last = None if end == size else int(end * ratio) - int(origin * ratio)
    return slice(int(start * ratio) - int(origin * ratio), last)


@cache
def _divisors(number: int) -> tuple[int, ...]:
    return tuple(divisor for divisor in range(1, number + 1) if number % divisor == 0)


def _averaged(func: Any, args: Any) -> Tensor | None:
    """The features (B, C, H, W) that an operator averages over H and W; None for any other operator."""
    if func in _POOLINGS and list(args[1]) == [1, 1]:
        return args[0]
    if func is _aten.mean.dim and args[0].dim() == 4 and {axis % 4 for axis in args[1] or ()} == {2, 3}:
        return args[0]
    return None
