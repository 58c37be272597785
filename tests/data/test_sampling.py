from __future__ import annotations

from basicsr.data.base import SampleKey
from basicsr.data.sampling import KeySampler


def keys(**changes) -> list[SampleKey]:
    settings = {"num_samples": 7, "batch_size": 4, "seed": 3, "total_iterations": 6, **changes}
    return [key for batch in KeySampler(**settings) for key in batch]


def test_each_pass_takes_every_image_once_in_an_order_of_its_own():
    indices = [key.index for key in keys(batch_size=7)]
    passes = [indices[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(entry) == list(range(7)) for entry in passes)
    assert len({tuple(entry) for entry in passes}) > 4


def test_seeds_differ_between_samples_and_orders_between_runs():
    assert len({key.seed for key in keys()}) == 24
    assert [key.index for key in keys(seed=4)] != [key.index for key in keys()]


def test_a_resumed_run_continues_the_same_sequence():
    for start in range(7):
        assert keys(start_iteration=start) == keys()[4 * start :]


def test_ranks_share_the_batches_of_one_process():
    ranks = [
        list(KeySampler(num_samples=7, batch_size=2, seed=3, rank=rank, world_size=2, total_iterations=6))
        for rank in (0, 1)
    ]
    merged = [key for first, second in zip(*ranks, strict=True) for key in [*first, *second]]
    assert merged == keys()


def test_accumulated_batches_share_the_batches_of_one_iteration():
    assert keys(batch_size=2, accumulate=2) == keys()
    assert keys(batch_size=2, accumulate=2, start_iteration=3) == keys(start_iteration=3)
    assert (
        len(KeySampler(num_samples=7, batch_size=2, seed=3, start_iteration=3, total_iterations=6, accumulate=2)) == 6
    )


def test_without_shuffling_the_datasets_order_is_kept():
    assert [key.index for key in keys(shuffle=False)] == [position % 7 for position in range(24)]


def test_a_finished_run_has_nothing_left():
    assert keys(start_iteration=6) == []
    assert len(KeySampler(num_samples=7, batch_size=4, seed=3, start_iteration=9, total_iterations=6)) == 0
