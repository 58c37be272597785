"""Which samples a batch has, as a function of the seed and the global position, without state.

Position g = ((iteration * accumulate + micro) * world_size + rank) * batch_size + k counts all samples of a run over
all ranks; with N images, pass p = g // N takes them in the order permutation(seed, p); sample_order.py has that of
folders with weights. Where the batch changes in the course of a run, each stage goes on counting where the one before
it ended.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from basicsr.data.base import SampleKey
from basicsr.data.sample_order import SampleOrder
from basicsr.data.storage import Share
from basicsr.utils import randomness


@dataclass(frozen=True)
class Stage:
    """Some iterations with `batch_size` images to a batch of one rank, and HR patches of side `gt_size` if given."""

    iterations: int
    batch_size: int
    gt_size: int | None = None


@dataclass(eq=False, kw_only=True)
class KeySampler(Sampler[list[SampleKey]]):
    """Yields the keys of one batch after another, for one rank, from `start_iteration` to the run's end.

    `batch_size` is that of one rank, or the stages of a run whose batches change; the last one lasts to its end. An
    iteration has `accumulate` batches of each rank. Without `shuffle`, passes are in the dataset's order. `shares` are
    those of folders with weights.
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
    shares: Sequence[Share] = ()

    def __post_init__(self) -> None:
        self._order = SampleOrder(self.num_samples, self.seed, self.shuffle, self.shares)
        self.samples_per_pass = self._order.length
        size = self.batch_size
        self._stages = [Stage(self.total_iterations, size)] if isinstance(size, int) else list(size)
        self._of_one = [stage.batch_size * self.world_size * self.accumulate for stage in self._stages]  # iteration
        self._starts, self._samples = [0], [0]
        for stage, of_one in zip(self._stages[:-1], self._of_one, strict=False):
            self._starts.append(self._starts[-1] + stage.iterations)
            self._samples.append(self._samples[-1] + stage.iterations * of_one)
        self.changes = len(set(self._of_one)) > 1  # the batch size

    def samples_before(self, iteration: int) -> int:
        """How many samples all ranks take in the iterations from 0 to before `iteration`."""
        number = bisect_right(self._starts, iteration) - 1
        return self._samples[number] + (iteration - self._starts[number]) * self._of_one[number]

    def iterations_for(self, samples: int) -> int:
        """How many iterations it takes until that many samples were taken."""
        number = bisect_right(self._samples, samples) - 1
        return self._starts[number] + math.ceil((samples - self._samples[number]) / self._of_one[number])

    def __len__(self) -> int:
        return max(self.total_iterations - self.start_iteration, 0) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for iteration in range(self.start_iteration, self.total_iterations):
            yield from self.batches(iteration, self.samples_before(iteration))

    def batches(self, iteration: int, first: int) -> Iterator[list[SampleKey]]:
        """The batches of an iteration whose samples, over all ranks, begin at position `first`."""
        stage = self._stages[bisect_right(self._starts, iteration) - 1]
        for micro in range(self.accumulate):
            start = first + (micro * self.world_size + self.rank) * stage.batch_size
            yield [self.key(position, stage.gt_size) for position in range(start, start + stage.batch_size)]

    def stages_before(self, iteration: int) -> Iterator[tuple[int, int, int]]:
        """The stages until `iteration`: from which iteration, to which, and the samples of each over all ranks."""
        ends = [*self._starts[1:], iteration]
        for start, end, samples in zip(self._starts, ends, self._of_one, strict=True):
            if start < iteration:
                yield start, min(end, iteration), samples

    def key(self, position: int, gt_size: int | None = None) -> SampleKey:
        """The sample at a global position."""
        return SampleKey(self._order.index(position), randomness.sample_seed(self.seed, position), gt_size)
