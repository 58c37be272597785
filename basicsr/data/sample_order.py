"""In which order a run takes the samples of a dataset: a function of the seed and the global position, without state.

The positions are counted in passes (docs/architecture.md, Randomness). Without weights, a pass takes each of the N
images once, in the order permutation(seed, pass).

Folders with weights: n_f images of weight w_f give x_f = w_f n_f samples to a pass of L = ceil(x_1 + ... + x_F). Where
some x_f is below 1, all are multiplied so that the smallest is 1. Each folder has an endless order of its own, one
permutation of its images after the other, and a pass takes the next ones of each, shuffled. How many of folder f were
taken before pass p is

    B_f(p) - B_(f-1)(p),    B_f(p) = floor(p L (x_1 + ... + x_f) / (x_1 + ... + x_F) + 1/2),

in whole numbers: never more than one off the exact share. So an image of a folder of weight 2 is taken twice as often
as one of weight 1, and images of one folder are taken equally often, within one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np

from basicsr.data.storage import Share, is_weighted
from basicsr.utils import randomness
from basicsr.utils.errors import OptionsError

_LONGEST_PASS = 10_000_000
_MOST_OFTEN = 10_000


class SampleOrder:
    """Which image comes at which position; `length` is the number of samples in a pass.

    Raises OptionsError where weights are so far apart that a pass would be very long.
    """

    def __init__(self, num_images: int, seed: int, shuffle: bool, shares: Sequence[Share] = ()) -> None:
        self._num_images, self._seed, self._shuffle = num_images, seed, shuffle
        self._shares = tuple(shares) if is_weighted(shares) else ()
        self.length = num_images
        if self._shares:
            amounts = [share.count * Fraction(str(share.weight)) for share in self._shares]
            factor = max(1 / min(amounts), Fraction(1))
            self.length = math.ceil(sum(amounts) * factor)
            often = math.ceil(max(Fraction(str(share.weight)) for share in self._shares) * factor)
            if self.length > _LONGEST_PASS or often > _MOST_OFTEN:
                raise OptionsError(
                    f"with these weights a pass has {self.length:,d} samples and takes some images {often:,d} times; at"
                    f" most {_LONGEST_PASS:,d} and {_MOST_OFTEN:,d} are possible: bring the weights closer together"
                )
            self._parts = [sum(amounts[: number + 1]) / sum(amounts) for number in range(len(amounts))]

    def index(self, position: int) -> int:
        """The image at a global position."""
        number_of_pass, place = divmod(position, self.length)
        if self._shares:
            return int(_weighted_pass(self, number_of_pass)[place])
        return int(_permutation(self._seed, number_of_pass, self.length)[place]) if self._shuffle else place

    def pass_indices(self, number_of_pass: int) -> np.ndarray:
        """The images of a pass over folders with weights, in order."""
        taken, after = (self._taken(number) for number in (number_of_pass, number_of_pass + 1))
        pieces, first = [], 0
        for folder, share in enumerate(self._shares):
            for start in range(taken[folder] // share.count * share.count, after[folder], share.count):
                order = np.arange(share.count)
                if self._shuffle:
                    purpose = f"sample order of folder {folder}"
                    order = _order(self._seed, start // share.count, share.count, purpose)
                pieces.append(first + order[max(taken[folder] - start, 0) : after[folder] - start])
            first += share.count
        whole = np.concatenate(pieces)
        return whole[_permutation(self._seed, number_of_pass, self.length)] if self._shuffle else whole

    def _taken(self, passes: int) -> list[int]:
        """How many samples of each folder so many passes take."""
        ends = [0, *(math.floor(passes * self.length * part + Fraction(1, 2)) for part in self._parts)]
        return [end - start for start, end in pairwise(ends)]


def _order(seed: int, number: int, count: int, purpose: str) -> np.ndarray:
    return randomness.generator(randomness.sample_seed(seed, number), purpose).permutation(count)


@lru_cache(maxsize=4)
def _permutation(seed: int, number_of_pass: int, num_samples: int) -> np.ndarray:
    return _order(seed, number_of_pass, num_samples, "sample order")


@lru_cache(maxsize=2)  # a batch may reach into the next pass
def _weighted_pass(order: SampleOrder, number_of_pass: int) -> np.ndarray:
    return order.pass_indices(number_of_pass)
