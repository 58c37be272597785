"""Several sets of training images: which one an iteration takes, and all as one dataset.

An iteration's images, over all micro-batches and ranks, are of one set, so that sets with and without HR images do not
meet in a batch. Which set it is follows from the seed and the iteration: every block of iterations has its share of
each, in an order drawn for the block. A set's own samples follow each other as if there were no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from basicsr.data.base import SampleKey
from basicsr.data.sampling import KeySampler
from basicsr.utils import randomness

_BLOCK = 64


class SeveralSets(Dataset[Any]):
    """Datasets one after the other, by name; a sample's index counts through all of them."""

    def __init__(self, sets: Mapping[str, Dataset[Any]]) -> None:
        self.sets = dict(sets)

    def __len__(self) -> int:
        return sum(map(_length, self.sets.values()))

    def __getitem__(self, index: int) -> Any:
        start, dataset = located(self, index)
        return dataset[index - start]


def sets_of(dataset: Dataset[Any]) -> dict[int, Dataset[Any]]:
    """The datasets that a training set consists of, itself or several, by the index of each one's first sample."""
    found, start = dict[int, Dataset[Any]](), 0
    for one in dataset.sets.values() if isinstance(dataset, SeveralSets) else (dataset,):
        found[start] = one
        start += _length(one)
    return found


def located(dataset: Dataset[Any], index: int) -> tuple[int, Dataset[Any]]:
    """The dataset that has sample `index`, behind the index of its first one."""
    if not isinstance(dataset, SeveralSets):
        return 0, dataset
    return next((start, one) for start, one in reversed(sets_of(dataset).items()) if start <= index)


def _length(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def shares_of(given: Sequence[float | None], counts: Sequence[int]) -> list[Fraction]:
    """The share of the iterations that each set has: as given, the rest by the numbers of images."""
    # By its decimal digits: the float 0.1 is a fraction of large numbers.
    shares = [None if share is None else Fraction(repr(share)) for share in given]
    rest = 1 - sum(share for share in shares if share is not None)
    images = sum(count for share, count in zip(shares, counts, strict=True) if share is None)
    return [
        rest * Fraction(count, images) if share is None else share for share, count in zip(shares, counts, strict=True)
    ]


class Mixture:
    """Which set each iteration takes; `shares` are positive and add up to 1."""

    def __init__(self, shares: Sequence[Fraction], seed: int) -> None:
        self.shares, self._seed = tuple(shares), seed

    def set_of(self, iteration: int) -> int:
        """The number of the set whose images iteration `iteration`, from 0, takes."""
        return int(_order(self.shares, self._seed, iteration // _BLOCK)[iteration % _BLOCK])

    def counts(self, iteration: int) -> list[int]:
        """How many iterations before `iteration` take each set."""
        block, place = divmod(iteration, _BLOCK)
        begun = np.bincount(_order(self.shares, self._seed, block)[:place], minlength=len(self.shares))
        return [before + int(since) for before, since in zip(_spread(self.shares, block * _BLOCK), begun, strict=True)]


def _spread(shares: Sequence[Fraction], iterations: int) -> list[int]:
    """Whole numbers of iterations near their shares; as `iterations` grow, none of them falls."""
    counts, left, rest = list[int](), iterations, Fraction(1)
    for share in shares[:-1]:
        counts.append(int(left * share / rest))
        left, rest = left - counts[-1], rest - share
    return [*counts, left]


@lru_cache(maxsize=64)
def _order(shares: Sequence[Fraction], seed: int, block: int) -> np.ndarray:
    """The sets of a block's iterations."""
    ends = (_spread(shares, number * _BLOCK) for number in (block, block + 1))
    counts = [after - before for before, after in zip(*ends, strict=True)]
    generator = randomness.generator(randomness.sample_seed(seed, block), "order of training sets")
    return generator.permutation(np.repeat(np.arange(len(shares)), counts))


class MixedSampler(Sampler[list[SampleKey]]):
    """As a `KeySampler` of several sets: each of `parts` has the keys of one, `whole` counts the samples of all."""

    def __init__(self, whole: KeySampler, parts: Sequence[KeySampler], mixture: Mixture) -> None:
        self.whole, self._parts, self.mixture = whole, parts, mixture
        *self._starts, self.num_samples = np.cumsum([0, *(part.num_samples for part in parts)]).tolist()

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for iteration in range(self.whole.start_iteration, self.whole.total_iterations):
            number = self.mixture.set_of(iteration)
            before = self._samples_before(number, iteration)
            for keys in self._parts[number].batches(iteration, before):
                yield [replace(key, index=key.index + self._starts[number]) for key in keys]

    def _samples_before(self, number: int, iteration: int) -> int:
        """How many samples all ranks take of a set in the iterations from 0 to before `iteration`."""
        return sum(
            (self.mixture.counts(end)[number] - self.mixture.counts(start)[number]) * samples
            for start, end, samples in self.whole.stages_before(iteration)
        )
