"""Which of several training sets an iteration takes, and the samples that it takes of it."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from basicsr.data.base import SampleKey
from basicsr.data.mixing import MixedSampler, Mixture, SeveralSets, located, shares_of
from basicsr.data.sampling import KeySampler, Stage


def test_shares_are_as_given_and_the_rest_by_the_numbers_of_images():
    assert shares_of([None, None, None], [1, 2, 7]) == [Fraction(1, 10), Fraction(1, 5), Fraction(7, 10)]
    assert shares_of([None, 0.1, None], [30, 5, 10]) == [Fraction(27, 40), Fraction(1, 10), Fraction(9, 40)]
    assert shares_of([0.3, 0.7], [1, 1]) == [Fraction(3, 10), Fraction(7, 10)]


@pytest.mark.parametrize(
    "shares", [(0.5, 0.5), (0.9, 0.1), (0.001, 0.999), (0.2, 0.013, 0.787), (0.01,) * 99 + (0.01,)]
)
def test_every_stretch_has_its_share_and_counts_are_those_of_the_iterations(shares):
    exact = shares_of(list(shares), [1] * len(shares))
    mixture = Mixture(exact, seed=3)
    taken: Counter[int] = Counter()
    for iteration in range(1500):
        assert mixture.counts(iteration) == [taken[number] for number in range(len(shares))]
        taken[mixture.set_of(iteration)] += 1
        if iteration % 64 == 63:  # at the end of a block no set is more than rounding away
            away = [abs(taken[number] - (iteration + 1) * share) for number, share in enumerate(exact)]
            assert max(away) < len(shares)


def test_the_order_depends_on_the_seed_and_has_no_period():
    orders = [[Mixture([Fraction(1, 2)] * 2, seed).set_of(iteration) for iteration in range(640)] for seed in (3, 4)]
    assert orders[0] != orders[1]
    for every in (2, 4, 8, 100):  # else each line of the log would be of one set
        assert {orders[0][iteration] for iteration in range(0, 640, every)} == {0, 1}


def keys_of(start: int = 0, rank: int = 0, ranks: int = 1, **changes: Any) -> list[list[SampleKey]]:
    settings: dict[str, Any] = {"batch_size": 3, "accumulate": 2, "total_iterations": 40, **changes}
    place = {"rank": rank, "world_size": ranks, "start_iteration": start}
    parts = [KeySampler(num_samples=count, seed=seed, **place, **settings) for count, seed in ((7, 5), (4, 6))]
    whole = KeySampler(num_samples=11, seed=5, **place, **settings)
    return list(MixedSampler(whole, parts, Mixture(shares_of([None, 0.4], [7, 4]), 5)))


STAGES = [Stage(9, 3, 8), Stage(20, 2, 12), Stage(99, 4, 16)]


@pytest.mark.parametrize("batch", [3, STAGES])
def test_a_sets_samples_follow_each_other_as_without_others(batch):
    for number, (first, count) in enumerate(((0, 7), (7, 4))):
        own = [key for batch_of in keys_of(batch_size=batch) for key in batch_of if first <= key.index < first + count]
        alone = KeySampler(num_samples=count, seed=5 + number, batch_size=1, total_iterations=len(own))
        expected = [key for keys in alone for key in keys]
        assert [(key.index - first, key.seed) for key in own] == [(key.index, key.seed) for key in expected]
    for batch_of in keys_of(batch_size=batch):
        assert len({key.index < 7 for key in batch_of}) == 1, "a batch is of one set"


@pytest.mark.parametrize("batch", [3, STAGES])
def test_resuming_and_ranks_change_no_sample(batch):
    whole = keys_of(batch_size=batch)
    for start in (1, 9, 29, 39):
        assert keys_of(start, batch_size=batch) == whole[2 * start :]
    twice = batch * 2 if isinstance(batch, int) else [Stage(s.iterations, s.batch_size * 2, s.gt_size) for s in batch]
    one = keys_of(batch_size=twice)
    ranks = [keys_of(rank=rank, ranks=2, batch_size=batch) for rank in (0, 1)]
    assert [[*first, *second] for first, second in zip(*ranks, strict=True)] == one


def test_an_index_counts_through_all_sets():
    sets = {"train": "abc", "train_2": "d", "train_3": "ef"}
    several = SeveralSets(sets)  # type: ignore[arg-type]
    assert len(several) == 6 and [several[index] for index in range(6)] == list("abcdef")
    assert located(several, 3) == (3, "d") and located(several, 5) == (4, "ef")
