"""MATLAB's bicubic shrinking, by which the benchmarks' LR images are made."""

from __future__ import annotations

import numpy as np

from basicsr.data.degradations.base import Degradation
from basicsr.utils.matlab_functions import shrink_window
from basicsr.utils.ranges import Scale
from basicsr.utils.registry import DEGRADATION_REGISTRY


@DEGRADATION_REGISTRY.register()
class MatlabBicubic(Degradation):
    """Shrinks by MATLAB's `imresize`, to the bit as scripts/data/generate_lr.py does; whole numbers stay such.

    Args:
        scale: filled in: how many times smaller LR images are.
    """

    shrinks = True

    def __init__(self, *, scale: Scale) -> None:
        self.factor, self.margin = scale, 2 * scale

    def __call__(self, image: np.ndarray, origin: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """See `Degradation`."""
        if image.strides[2] < 0:  # a view of RGB as BGR, whose memory is read in its order
            return shrink_window(image[..., ::-1], self.factor, origin)[..., ::-1]
        return shrink_window(image, self.factor, origin)
