"""Tiles that a network makes the same of as of the whole image: where they lie, and what they must know of the rest.

A tile is a core, which it alone writes, and the context around it that the network sees too. How much context a network
needs is measured, on the network itself. Of what it averages over the whole image, such as in channel attention, a tile
would see its own mean alone: averages are gathered over the cores of all tiles, and in the next pass over the image
every tile is given those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from basicsr.utils.errors import is_out_of_memory

# Ten times below what tiles may differ from the whole, for a probe is smaller than the images to come.
_TOLERANCE = 1e-4
# Windows or halvings deep inside a network may want larger steps than it says: up to this.
_LARGEST_STEP = 64
# How many times larger than the tile a network's features may be.
_RATIOS = tuple(Fraction(1, step) for step in range(1, 33)) + tuple(Fraction(step) for step in range(2, 9))

_aten = torch.ops.aten
_POOLINGS = (_aten.adaptive_avg_pool2d.default, _aten._adaptive_avg_pool2d.default)

Network = Callable[[Tensor], Tensor]
Means = Sequence[Tensor | None]
"""float64 (C,) of each average, in the network's order; None where it is unknown."""


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


def _cuts(start: int, end: int, tile: int | None) -> list[int]:
    count = 1 if tile is None else math.ceil((end - start) / tile)
    return [start + (end - start) * index // count for index in range(count + 1)]


def with_context(core: Region, height: int, width: int, overlap: int, multiple: int = 1) -> Region:
    """A core and at least `overlap` pixels around it, to multiples, as attention windows lie, or the image's end."""
    top, bottom = _extend(core.top, core.bottom, height, overlap, multiple)
    left, right = _extend(core.left, core.right, width, overlap, multiple)
    return Region(top, left, bottom, right)


def of_size(region: Region, height: int, width: int, exact: tuple[int, int], multiple: int = 1) -> Region:
    """A region of at most `exact` height and width made as large, within the image; smaller where that ends before."""
    top, bottom = _of_length(region.top, height, exact[0], multiple)
    left, right = _of_length(region.left, width, exact[1], multiple)
    return Region(top, left, bottom, right)


def _of_length(start: int, length: int, exact: int, multiple: int) -> tuple[int, int]:
    last = math.ceil(max(length - exact, 0) / multiple) * multiple
    start = min(start, last)
    return start, min(start + exact, length)


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

    @property
    def inverse(self) -> View:
        """The view of this view that shows the image again."""
        return View(self.flip_columns, self.flip_rows, True) if self.swap_axes else self

    def of(self, image: Tensor) -> Tensor:
        """(..., H, W) to (..., H, W) or, with swapped axes, (..., W, H)."""
        axes = [axis for axis, flipped in ((-2, self.flip_rows), (-1, self.flip_columns)) if flipped]
        image = image.flip(axes) if axes else image
        return image.transpose(-1, -2) if self.swap_axes else image

    def of_region(self, region: Region, height: int, width: int) -> Region:
        """Where the view of an image of this size shows `region` of the image."""
        top, left, bottom, right = region.top, region.left, region.bottom, region.right
        if self.flip_rows:
            top, bottom = height - bottom, height - top
        if self.flip_columns:
            left, right = width - right, width - left
        return Region(left, top, right, bottom) if self.swap_axes else Region(top, left, bottom, right)


AS_IT_IS = View()
EIGHT_VIEWS = tuple(View(rows, columns, swap) for swap, rows, columns in product((False, True), repeat=3))
"""Their average is the self-ensemble, the "+" in EDSR+."""


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
        self._largest_step = math.lcm(multiple, _LARGEST_STEP)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        over_all = func in _POOLINGS and list(args[1]) == [1, 1]
        if not over_all and func is _aten.mean.dim:
            over_all = args[0].dim() == 4 and {axis % 4 for axis in args[1] or ()} == {2, 3}
        if not over_all:
            return result
        x: Tensor = args[0]
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
        for step in range(1, self._largest_step + 1):
            if self._largest_step % step:
                continue
            extended = [-(-side // step) * step for side in (self._region.height, self._region.width)]
            ratio = Fraction(height, extended[0])
            if ratio == Fraction(width, extended[1]) and ratio in _RATIOS:
                if (ratio.numerator * ratio.denominator).bit_count() == 1:
                    return ratio
                other = other or ratio
        return other


class PoolingUnseen:
    """In the place of `PoolingOverImage`, for what PyTorch does not run: nothing is gathered or replaced."""

    def __init__(self, *known: Any) -> None:
        self.gathered = ImageMeans()

    def __enter__(self) -> PoolingUnseen:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _along(start: int, end: int, origin: int, ratio: Fraction, size: int) -> slice:
    # Beyond the image's end lies what the network extended it by, which it averages too.
    last = None if end == size else int(end * ratio) - int(origin * ratio)
    return slice(int(start * ratio) - int(origin * ratio), last)


@dataclass(frozen=True)
class Context:
    """What a tile must see beyond its core."""

    overlap: int  # pixels
    multiple: int  # tiles begin at multiples of it
    error: float  # that is left, in [0, 1]

    @property
    def is_enough(self) -> bool:
        """Whether the error is negligible."""
        return self.error <= _TOLERANCE


def multiple_of(network: nn.Module) -> int:
    """The least common multiple of the windows and halvings that a network's modules name; 1 without any."""
    sides = {1}
    for module in network.modules():
        for name in ("window_size", "split_size", "padder_size"):
            value = getattr(module, name, None)
            values = value if isinstance(value, (tuple, list)) else (value,)
            sides.update(side for side in values if isinstance(side, int) and side > 0)
    return math.lcm(*sides)


def measure_context(
    network: Network,
    channels: int,
    scale: int,
    device: torch.device,
    multiple: int,
    watch: type[PoolingOverImage | PoolingUnseen] = PoolingOverImage,
) -> Context:
    """The context after which a tile's output, float32 in eval mode, no longer differs from the whole image's.

    Averages over the whole input are given to it where `watch` sees them, and `multiple` is known to suit its tiles.
    """
    larger = math.lcm(multiple, _LARGEST_STEP)
    best = None
    # On CUDA, PyTorch convolves float32 in TF32: its rounding would hide how the influence fades.
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        for step, reach in ((multiple, 32), (multiple, 64), (larger, 64), (multiple, 128)):
            try:
                found = _probe(network, channels, scale, device, step, reach, watch)
            except Exception as error:
                if best is None or not is_out_of_memory(error):
                    raise
                break  # a smaller probe's answer is the best there is
            best = found if best is None or found.error < best.error else best
            if found.is_enough:
                break
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    assert best is not None
    return best


def _probe(
    network: Network,
    channels: int,
    scale: int,
    device: torch.device,
    multiple: int,
    reach: int,
    watch: type[PoolingOverImage | PoolingUnseen],
) -> Context:
    """Measures at most `reach` pixels far, or a multiple more."""
    reach = math.ceil(reach / multiple) * multiple
    # An odd number of steps: so a network that wants twice the multiple, or more, shows it.
    start = reach if reach // multiple % 2 else reach + multiple
    side = start + 3 * reach
    image, whole = _random_image(channels, side).to(device), Region(0, 0, side, side)
    with watch(whole, whole, (side, side), multiple) as pooling:
        expected = network(image)
    known = pooling.gathered.means()
    largest = torch.zeros(side)  # entry d: the largest difference to the whole at d pixels from a tile's cut edges
    # One tile inside, and one that ends where the image does, as it may be extended there.
    for end in (start + 2 * reach, side):
        tile = Region(start, start, end, end)
        with watch(tile, tile, (side, side), multiple, known):
            output = network(image[(..., *tile.slices)])
        error = (output - expected[(..., *tile.scaled(scale).slices)]).float().abs().amax((0, 1))
        # One figure for each pixel of the tile's input: the largest of those it became.
        error = nn.functional.max_pool2d(error[None], scale)[0].cpu()
        position = torch.arange(tile.height)
        inwards = position if end == side else torch.minimum(position, tile.height - 1 - position)
        distance = torch.minimum(inwards[:, None], inwards[None, :])
        largest.scatter_reduce_(0, distance.flatten(), error.flatten(), "amax")
    errors = largest.flip(0).cummax(0).values.flip(0)[:reach]  # at d pixels or more
    # Rounding differs with the size of the input, and hides what is smaller.
    enough = max(_TOLERANCE, 2 * errors[-1].item())
    overlap = math.ceil(int((errors > enough).sum()) / 8) * 8
    return Context(overlap, multiple, errors[min(overlap, len(errors) - 1)].item())


def _random_image(channels: int, side: int) -> Tensor:
    """Noise of several grains, mixed: flat areas, edges and texture, as strong as they can be; (1, C, side, side)."""
    generator = torch.Generator().manual_seed(0)

    def noise(channels: int, grain: int) -> Tensor:
        coarse = torch.rand(1, channels, -(-side // grain), -(-side // grain), generator=generator)
        return nn.functional.interpolate(coarse, scale_factor=grain)[..., :side, :side]

    image = noise(channels, 1)
    for grain in (2, 4, 8, 16):
        image = torch.where(noise(1, grain) < 0.5, noise(channels, grain), image)
    return image
