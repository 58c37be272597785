"""Which sample comes when: a function of the seed and the global position, without state.

Position g = ((iteration * accumulate + micro) * world_size + rank) * batch_size + k counts all samples of a
run over all ranks; with N images, pass p = g // N takes them in the order permutation(seed, p). Where the batch
changes in the course of a run, each stage goes on counting where the one before it ended.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

from basicsr.utils import randomness


@dataclass(frozen=True)
class SampleKey:
    """Which image to load, the seed of its random choices, and the side of the HR patch (None: the dataset decides)."""

    index: int
    seed: int
    gt_size: int | None = None


@dataclass(frozen=True)
class Stage:
    """Some iterations with `batch_size` images to a batch of one rank, and HR patches of side `gt_size` if given."""

    iterations: int
    batch_size: int
    gt_size: int | None = None


class Stages:
    """The stages of a run, one after another; the last one lasts to its end. All ranks' batches make an iteration."""

    def __init__(self, stages: Sequence[Stage], batches_per_iteration: int) -> None:
        self._stages = tuple(stages)
        self._of_one = [stage.batch_size * batches_per_iteration for stage in stages]  # samples to an iteration
        self._starts, self._samples = [0], [0]
        for stage, of_one in zip(self._stages[:-1], self._of_one, strict=False):
            self._starts.append(self._starts[-1] + stage.iterations)
            self._samples.append(self._samples[-1] + stage.iterations * of_one)

    @property
    def change(self) -> bool:
        """Whether the batch size changes."""
        return len(set(self._of_one)) > 1

    def at(self, iteration: int) -> Stage:
        """The stage of an iteration, counted from 0."""
        return self._stages[bisect_right(self._starts, iteration) - 1]

    def samples_before(self, iteration: int) -> int:
        """How many samples all ranks take in the iterations from 0 to before `iteration`."""
        number = bisect_right(self._starts, iteration) - 1
        return self._samples[number] + (iteration - self._starts[number]) * self._of_one[number]

    def iterations_for(self, samples: int) -> int:
        """How many iterations it takes until that many samples were taken."""
        number = bisect_right(self._samples, samples) - 1
        return self._starts[number] + math.ceil((samples - self._samples[number]) / self._of_one[number])


@dataclass(eq=False, kw_only=True)
class KeySampler(Sampler[list[SampleKey]]):
    """Yields the keys of one batch after another, for one rank, from `start_iteration` to the run's end.

    Attributes:
        num_samples: number of images N.
        batch_size: images to a batch of one rank; the stages of a run whose batches change.
        seed: the run's manual seed.
        rank: this process's number.
        world_size: number of processes.
        start_iteration: iterations already done.
        total_iterations: iterations of the whole run.
        accumulate: batches to an iteration.
        shuffle: take each pass in an order of its own; otherwise in the dataset's.
    """

    num_samples: int
    batch_size: int | Sequence[Stage]
    seed: int
    rank: int = 0
    world_size: int = 1
    start_iteration: int = 0
    total_iterations: int
    accumulate: int = 1
    shuffle: bool = True

    def __post_init__(self) -> None:
        size = self.batch_size
        stages = [Stage(self.total_iterations, size)] if isinstance(size, int) else size
        self.stages = Stages(stages, self.world_size * self.accumulate)

    def __len__(self) -> int:
        return max(self.total_iterations - self.start_iteration, 0) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for iteration in range(self.start_iteration, self.total_iterations):
            stage = self.stages.at(iteration)
            first = self.stages.samples_before(iteration)
            for micro in range(self.accumulate):
                start = first + (micro * self.world_size + self.rank) * stage.batch_size
                yield [self.key(position, stage.gt_size) for position in range(start, start + stage.batch_size)]

    def key(self, position: int, gt_size: int | None = None) -> SampleKey:
        """The sample at a global position."""
        number_of_pass, place = divmod(position, self.num_samples)
        if self.shuffle:
            place = int(_permutation(self.seed, number_of_pass, self.num_samples)[place])
        return SampleKey(place, randomness.sample_seed(self.seed, position), gt_size)


@lru_cache(maxsize=4)
def _permutation(seed: int, number_of_pass: int, num_samples: int) -> np.ndarray:
    return randomness.generator(randomness.sample_seed(seed, number_of_pass), "sample order").permutation(num_samples)
