"""Runs a network on one image: whole or in tiles, once or in its eight views."""

from __future__ import annotations

import gc
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from basicsr.files.images import tensor2img
from basicsr.inference.tiling import (
    AS_IT_IS,
    EIGHT_VIEWS,
    ImageMeans,
    Means,
    PoolingOverImage,
    PoolingUnseen,
    Region,
    View,
    cut_into_cores,
    measure_context,
    multiple_of,
    of_size,
    with_context,
)
from basicsr.utils.errors import MachineError, NonFiniteError, OptionsError, is_out_of_memory
from basicsr.utils.precision import Precision

_LOGGER = logging.getLogger("basicsr")
_SMALLEST_TILE = 32
_MOST_PASSES = 10
_OVERLAP_OF_ONE_SIZE = 32
_ALLOWED_DIFFERENCE = 1e-3
# Convergence tolerance of the passes; in low precision, what rounding changes.
_SETTLED = {"none": 1e-5, "fp16": 2e-3, "bf16": 8e-3}
_SAMPLED = 8  # of outputs, every 8th pixel of every 8th row is remembered from pass to pass


class ImageRunner:
    """Runs a network, (1, C, h, w) in [0, 1] to (1, C, sh, sw), on images, one at a time, in eval mode.

    In tiles, results are those of the whole image within 1e-3, in float32. Where the network averages over its whole
    input (channel attention), several passes are made over the image, until the averages are those of all tiles
    together. The device holds one tile at a time. When memory runs out, tiles are halved, for later images too.

    Args:
        network: on `device`; its modes stay as they are.
        scale: s.
        device: where it runs.
        tile: largest side of a tile's core in pixels of the input; None runs images whole while memory lasts.
        tile_overlap: pixels that a tile sees beyond its core; None measures what the network needs.
        self_ensemble: average over the eight flips and rotations.
        precision: None for float32.
        multiple: tiles begin at multiples of it; None takes the network's window size, if it has one.
        only_size: the one height and width that the network takes, in tiles of it; smaller ones it extends itself.
        follows_pooling: whether PyTorch runs the network, so that averages over its whole input are seen.
        report: receives warnings.
        progress: called after each tile with the numbers of tiles done and of all in this pass over the image.
    """

    def __init__(
        self,
        network: nn.Module,
        scale: int,
        device: torch.device,
        *,
        tile: int | None = None,
        tile_overlap: int | None = None,
        self_ensemble: bool = False,
        precision: Precision | None = None,
        multiple: int | None = None,
        only_size: tuple[int, int] | None = None,
        follows_pooling: bool = True,
        report: Callable[[str], None] = _LOGGER.warning,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._network, self._name = network, getattr(network, "architecture", type(network).__name__)
        self._scale, self._device = scale, device
        self._tile, self._overlap = tile, tile_overlap
        self._views: Sequence[View] = EIGHT_VIEWS if self_ensemble else (AS_IT_IS,)
        self._precision = precision or Precision(device.type)
        self._multiple = multiple or multiple_of(network)
        self._watch = PoolingOverImage if follows_pooling else PoolingUnseen
        self._only_size = only_size
        if only_size is not None:
            self._fit_tiles(min(only_size))
        self._warned, self._report, self._progress = False, report, progress

    def _fit_tiles(self, side: int) -> None:
        """Sets overlap and tile for a network of one size, whose context cannot be measured on others."""
        if self._overlap is None:
            self._overlap = min(_OVERLAP_OF_ONE_SIZE, side // 4)
        most = side - 2 * self._overlap - 2 * (self._multiple - 1)
        if most < 1:
            raise OptionsError(
                f"tile_overlap {self._overlap}: {self._name} takes images of {side} pixels a side only, so give less"
                f" than {side // 2}"
            )
        self._tile = min(self._tile or most, most)

    def _fits(self, height: int, width: int) -> bool:
        """Whether a network of one size takes the image whole, in every view."""
        if self._only_size is None:
            return False
        sizes = [(width, height) if view.swap_axes else (height, width) for view in self._views]
        return all(side <= most for size in sizes for side, most in zip(size, self._only_size, strict=True))

    def __call__(self, lq: Tensor) -> Tensor:
        """Runs the network on (1, C, h, w) in [0, 1] on any device; float32 (1, C, sh, sw) on the CPU, not clipped.

        Raises:
            OptionsError: the network enlarges by another factor.
            MachineError: there is not enough memory for the smallest tiles, or for the result.
        """
        canvas: Any = None
        height, width = lq.shape[-2] * self._scale, lq.shape[-1] * self._scale
        for core, output in self._outputs(lq):
            if output.shape[-2:] == (height, width):
                canvas = output
                continue
            if canvas is None:
                canvas = _allocate(torch.empty, (1, output.shape[1], height, width), torch.float32)
            canvas[(..., *core.slices)] = output
        return canvas

    def to_array(self, lq: Tensor, dtype: Any) -> np.ndarray:
        """As a call, rounded to (sh, sw, C) of np.uint8 or np.uint16; floats are never all in memory.

        Raises:
            NonFiniteError: the network's output is not finite.
        """
        canvas: Any = None
        height, width = lq.shape[-2] * self._scale, lq.shape[-1] * self._scale
        for core, output in self._outputs(lq):
            if not torch.isfinite(output).all():
                raise NonFiniteError(
                    f"{self._name} puts out numbers that are not finite: its weights are damaged, or the precision is"
                    " too low for it; use float32"
                )
            if canvas is None:
                canvas = _allocate(np.empty, (height, width, output.shape[1]), dtype)
            pixels = tensor2img(output, rgb2bgr=False, out_type=dtype)
            canvas[core.slices] = pixels.reshape(core.height, core.width, -1)
        return canvas

    @torch.no_grad()
    def _outputs(self, lq: Tensor) -> Iterator[tuple[Region, Tensor]]:
        """Core by core, in pixels of the output, the float32 (1, C, h, w) there; at every pass over the image."""
        cores = list(cut_into_cores(Region(0, 0, *lq.shape[-2:]), None if self._fits(*lq.shape[-2:]) else self._tile))
        means: list[Means] = [()] * len(self._views)
        settling = _Settling(_SETTLED[self._precision.amp])
        with evaluating(self._network):
            for _ in range(_MOST_PASSES):
                done: list[Region] = []
                gathered: list[ImageMeans] = []
                for core, output, found in self._each(lq, cores, means):
                    done.append(core)
                    if gathered:
                        found = [one.plus(more) for one, more in zip(gathered, found, strict=True)]
                    gathered = found
                    settling.note(core, output)
                    yield core.scaled(self._scale), output
                if not all(total.followed for total in gathered):
                    self._warn_that_tiles_differ("averages over the whole image in a way that tiles cannot follow")
                cores, means = done, [total.means() for total in gathered]
                if all(mean is None for view in means for mean in view) or settling.is_over():
                    return
        if settling.change > max(_ALLOWED_DIFFERENCE, settling.tolerance):
            self._report(
                f"{self._name} averages over the whole image, and after {_MOST_PASSES} passes its output still changed"
                f" by {settling.change:.1g}: use larger tiles"
            )

    def _each(
        self, lq: Tensor, cores: Iterable[Region], means: Sequence[Means]
    ) -> Iterator[tuple[Region, Tensor, list[ImageMeans]]]:
        """Core by core, its output and each view's averages over it; smaller cores where memory runs out."""
        pending, done = deque(cores), 0
        while pending:
            result = None
            try:
                result = self._run_core(lq, pending[0], means)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if result is None:  # not in the handler, where the error still holds what was allocated
                self._shrink(lq)
                pending = deque(part for core in pending for part in cut_into_cores(core, self._tile))
            else:
                done += 1
                self._progress(done, done + len(pending) - 1)
                yield (pending.popleft(), *result)

    def _run_core(self, lq: Tensor, core: Region, means: Sequence[Means]) -> tuple[Tensor, list[ImageMeans]]:
        """The average over the views, float32 (1, C, h, w) on the CPU; and what each averaged, unless it was whole."""
        height, width = lq.shape[-2:]
        total, gathered = None, []
        for view, known in zip(self._views, means, strict=True):
            size = (width, height) if view.swap_axes else (height, width)
            seen = view.of_region(core, height, width)
            if seen == Region(0, 0, *size):
                with self._precision.autocast():
                    output = self._at_its_scale(view.of(lq)).float()
                gathered.append(ImageMeans())
            else:
                region = with_context(seen, *size, *self._context(lq.shape[1]))
                if self._only_size is not None:
                    region = of_size(region, *size, self._only_size, self._multiple)
                tile = view.of(lq[(..., *view.inverse.of_region(region, *size).slices)])
                with self._watch(seen, region, size, self._multiple, known) as pooling, self._precision.autocast():
                    output = self._at_its_scale(tile).float()
                output = output[(..., *seen.within(region).scaled(self._scale).slices)]
                gathered.append(pooling.gathered)
            output = view.inverse.of(output)
            total = output if total is None else total + output
        assert total is not None
        return (total if len(self._views) == 1 else total / len(self._views)).cpu(), gathered

    def _at_its_scale(self, tile: Tensor) -> Tensor:
        """Runs the network on its device; raises OptionsError if it enlarges by another factor."""
        output = self._network(tile.to(self._device))
        (height, width), (new_height, new_width) = tile.shape[-2:], output.shape[-2:]
        if (new_height, new_width) != (height * self._scale, width * self._scale):
            raise OptionsError(
                f"{self._name} makes {new_width}x{new_height} pixels of {width}x{height}, which is not scale"
                f" {self._scale}: give its own scale, or another network"
            )
        return output

    def _context(self, channels: int) -> tuple[int, int]:
        """Overlap, and multiple; measured where it was left open."""
        if self._overlap is None:
            found = measure_context(
                self._at_its_scale, channels, self._scale, self._device, self._multiple, self._watch
            )
            self._overlap, self._multiple = found.overlap, found.multiple
            if not found.is_enough:
                self._warn_that_tiles_differ(
                    f"sees further than the {found.overlap} pixels around a tile",
                    f"; those of a small image of noise do by {found.error:.1g} of white",
                )
        return self._overlap, self._multiple

    def _warn_that_tiles_differ(self, why: str, by_how_much: str = "") -> None:
        """Once for all images."""
        if not self._warned:
            self._warned = True
            self._report(f"{self._name} {why}: results in tiles may differ from those of the whole image{by_how_much}")

    def _shrink(self, lq: Tensor) -> None:
        """Halves the tiles; raises MachineError if they cannot be smaller."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        longer = max(lq.shape[-2:])
        whole = self._tile is None or self._tile >= longer
        tile = longer if self._tile is None else min(self._tile, longer)
        given = "the whole image" if whole else f"tiles of {tile}"
        if tile <= _SMALLEST_TILE:
            raise MachineError(
                f"out of memory on {self._device} with {given}, and smaller ones do not help: close other programs,"
                " use another device or a smaller network, or set tile_overlap lower"
            )
        self._tile = max(tile // 2, _SMALLEST_TILE)
        self._report(f"out of memory with {given}: going on with tiles of {self._tile}")


class _Settling:
    """Whether passes over an image still change the output by more than `tolerance`, seen on some of its pixels.

    `change` is the change by the last pass, infinite after the first one.
    """

    def __init__(self, tolerance: float) -> None:
        self.change = math.inf
        self.tolerance = tolerance
        self._samples: dict[Region, Tensor] = {}
        self._moved: list[float] = []

    def note(self, core: Region, output: Tensor) -> None:
        """Compares a core's output with that of the last pass."""
        sample = output[..., ::_SAMPLED, ::_SAMPLED].clone()
        before = self._samples.get(core)
        self._moved.append(math.inf if before is None else (sample - before).abs().max().item())
        self._samples[core] = sample

    def is_over(self) -> bool:
        """Ends a pass; True if all further ones would change less than the tolerance."""
        before, self.change, self._moved = self.change, max(self._moved), []
        if math.isinf(self.change):
            return False
        # The next change is as much smaller than this one as this one is than the one before.
        rate = 1.0 if math.isinf(before) or self.change > before else self.change / max(before, 1e-12)
        return self.change * rate <= self.tolerance


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network in eval mode, then each of its modules back as it was."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _allocate(empty: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> Any:
    """Memory for a result; raises MachineError if there is not enough."""
    try:
        return empty(shape, dtype=dtype)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        height, width = shape[-2:] if empty is torch.empty else shape[:2]
        raise MachineError(
            f"there is no memory for the result of {width}x{height} pixels: use smaller images"
        ) from error
