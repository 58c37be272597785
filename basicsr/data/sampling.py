"""Which sample comes when: a function of the seed and the global position, without state.

Position g = ((iteration * accumulate + micro) * world_size + rank) * batch_size + k counts all samples of a
run over all ranks; with N images, pass p = g // N takes them in the order permutation(seed, p).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from basicsr.utils import randomness


@dataclass(frozen=True)
class SampleKey:
    """Which image to load, and the seed of every random choice about it."""

    index: int
    seed: int


class KeySampler(Sampler[list[SampleKey]]):
    """Yields the keys of one batch after another, for one rank, from `start_iteration` to the run's end.

    Args:
        num_samples: number of images N.
        batch_size: images to a batch of one rank.
        seed: the run's manual seed.
        rank: this process's number.
        world_size: number of processes.
        start_iteration: iterations already done.
        total_iterations: iterations of the whole run.
        accumulate: batches to an iteration.
        shuffle: take each pass in an order of its own; otherwise in the dataset's.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_iteration: int = 0,
        total_iterations: int,
        accumulate: int = 1,
        shuffle: bool = True,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first_batch = start_iteration * accumulate
        self.last_batch = total_iterations * accumulate
        self.shuffle = shuffle

    def __len__(self) -> int:
        return max(self.last_batch - self.first_batch, 0)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for batch in range(self.first_batch, self.last_batch):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield [self.key(position) for position in range(start, start + self.batch_size)]

    def key(self, position: int) -> SampleKey:
        """The sample at a global position."""
        number_of_pass, place = divmod(position, self.num_samples)
        if self.shuffle:
            place = int(_permutation(self.seed, number_of_pass, self.num_samples)[place])
        return SampleKey(place, randomness.sample_seed(self.seed, position))


@lru_cache(maxsize=4)
def _permutation(seed: int, number_of_pass: int, num_samples: int) -> np.ndarray:
    return randomness.generator(randomness.sample_seed(seed, number_of_pass), "sample order").permutation(num_samples)
