"""Bicubic shrinking as MATLAB does it, by which the benchmarks' LR images are made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from basicsr.data.degradations.base import Degradation
from basicsr.data.degradations.steps import as_eight_bits, order, within
from basicsr.utils.matlab_functions import imresize_integer, shrink_window
from basicsr.utils.ranges import Scale, ShrinkFactor
from basicsr.utils.registry import DEGRADATION_REGISTRY, Conflict


@DEGRADATION_REGISTRY.register()
class MatlabBicubic(Degradation):
    """Shrinks by MATLAB's `imresize`, to the bit as scripts/data/generate_lr.py does; whole numbers stay such.

    Numbers with a fraction are clipped to [0, 1].

    Args:
        scale: filled in: how many times smaller LR images are.
    """

    shrinks = True

    def __init__(self, *, scale: Scale) -> None:
        self.factor, self.margin = scale, 2 * scale

    @staticmethod
    def is_random(options: Mapping[str, Any]) -> bool:
        """See `Degradation`."""
        return False

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        if image.strides[2] < 0:  # a view of RGB as BGR, whose memory is read in its order
            return shrink_window(image[..., ::-1], self.factor, origin)[..., ::-1]
        lr = shrink_window(image, self.factor, origin)
        return lr.clip(0, 1) if lr.dtype == np.float32 else lr  # the kernel overshoots at edges


@DEGRADATION_REGISTRY.register()
class RandomBicubic(Degradation):
    """Shrinks by MATLAB's bicubic by a random factor, then resizes to the LR size: LR images of several sharpnesses.

    The network's scale stays what it is. A factor above the scale loses detail that LR images of this size could show;
    one below it is an intermediate size. Both images are rounded to 8 bits, as if they were stored.

    Args:
        scale: filled in: how many times smaller LR images are.
        factors: limits of how many times smaller the first image is, 1 or more.
    """

    shrinks = True

    def __init__(self, *, scale: Scale, factors: tuple[ShrinkFactor, ShrinkFactor]) -> None:
        self.factor, self._factors = scale, factors
        # Kernels reach two pixels: the first one's of the shrunk image, the second one's of the smaller of its images.
        self.margin = math.ceil((2 * factors[1] + 2 * max(scale, factors[1])) / scale) * scale

    @staticmethod
    def conflicts(factors: Sequence[float]) -> Iterator[Conflict]:
        """See `find_problems`."""
        return order("factors", factors)

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        factor = float(rng.uniform(*self._factors))
        small = imresize_integer(np.ascontiguousarray(as_eight_bits(image)), 1 / factor)
        back = factor / self.factor
        made = small if back == 1 else imresize_integer(small, back)
        height, width = (side // self.factor for side in image.shape[:2])
        return within(made[:height, :width], self.margin // self.factor)
