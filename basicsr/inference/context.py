"""How much context a network needs around a tile: measured, on the network itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basicsr.inference.pooling import PoolingOverImage
from basicsr.inference.tiling import Region
from basicsr.utils.hardware import is_out_of_memory

# Ten times below what tiles may differ from the whole, for a probe is smaller than the images to come.
_TOLERANCE = 1e-4
# Windows or halvings deep inside a network may want larger steps than it says.
_LARGER_STEP = 64

Network = Callable[[Tensor], Tensor]


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


def measure_context(network: Network, channels: int, scale: int, device: torch.device, multiple: int) -> Context:
    """The context after which a tile's output, float32 in eval mode, no longer differs from the whole image's.

    Averages over the whole input are given to it, and `multiple` is known to suit its tiles.
    """
    larger = math.lcm(multiple, _LARGER_STEP)
    attempts = [(multiple, 32), (multiple, 64), (larger, _LARGER_STEP), (multiple, 128)]
    best = None
    for step, reach in attempts:
        try:
            with _exact_convolutions():
                found = _probe(network, channels, scale, device, step, reach)
        except Exception as error:
            if best is None or not is_out_of_memory(error):
                raise
            break  # a smaller probe's answer is the best there is
        best = found if best is None or found.error < best.error else best
        if found.is_enough:
            break
    assert best is not None
    return best


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """On CUDA, PyTorch convolves float32 in TF32: its rounding would hide how the influence fades."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def _probe(network: Network, channels: int, scale: int, device: torch.device, multiple: int, reach: int) -> Context:
    """Measures at most `reach` pixels far, or a multiple more."""
    reach = math.ceil(reach / multiple) * multiple
    # An odd number of steps: so a network that wants twice the multiple, or more, shows it.
    start = reach if reach // multiple % 2 else reach + multiple
    image = _random_image(channels, start + 3 * reach).to(device)
    # One tile inside, and one that ends where the image does, as it may be extended there.
    tiles = [Region(start, start, end, end) for end in (start + 2 * reach, start + 3 * reach)]
    errors = _errors_by_distance(network, image, scale, tiles, multiple)[:reach]
    # Rounding differs with the size of the input, and hides what is smaller.
    enough = max(_TOLERANCE, 2 * errors[-1].item())
    distance = int((errors > enough).sum())
    overlap = math.ceil(distance / 8) * 8
    return Context(overlap, multiple, errors[min(overlap, len(errors) - 1)].item())


def _errors_by_distance(network: Network, image: Tensor, scale: int, tiles: Sequence[Region], multiple: int) -> Tensor:
    """Entry d: the largest difference to the whole among pixels at least d from a tile's cut edges."""
    side = image.shape[-1]
    whole = Region(0, 0, side, side)
    with PoolingOverImage(whole, whole, (side, side), multiple) as pooling:
        expected = network(image)
    known = pooling.gathered.means()
    largest = torch.zeros(side)
    for tile in tiles:
        with PoolingOverImage(tile, tile, (side, side), multiple, known):
            output = network(image[(..., *tile.slices)])
        error = (output - expected[(..., *tile.scaled(scale).slices)]).float().abs().amax((0, 1))
        # One figure for each pixel of the tile's input: the largest of those it became.
        error = nn.functional.max_pool2d(error[None], scale)[0].cpu()
        position = torch.arange(tile.height)
        inwards = position if tile.bottom == side else torch.minimum(position, tile.height - 1 - position)
        distance = torch.minimum(inwards[:, None], inwards[None, :])
        largest.scatter_reduce_(0, distance.flatten(), error.flatten(), "amax")
    return largest.flip(0).cummax(0).values.flip(0)


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
