"""A run that is cut off and continued equals the run that never was, bit for bit."""

from __future__ import annotations

import os
import random
import signal

import pytest
from support.training import changed, differences, finish, start, train


@pytest.mark.parametrize(("workers", "amp"), [(1, "none"), (0, "bf16")])
def test_killed_ten_times_ends_bitwise_equal(mcadkd, tmp_path, workers, amp):
    options = changed(
        mcadkd,
        train__total_iter=60,
        logger__save_checkpoint_freq=7,
        val__val_freq=20,
        amp=amp,
        channels_last=amp == "bf16",
        datasets__train__num_worker_per_gpu=workers,
    )
    expected = finish(options, tmp_path / "whole")
    generator = random.Random(11)
    kills, runs = 0, 1
    while kills < 10:
        process = start(train, options, str(tmp_path / f"killed_{runs}"))
        process.join(generator.uniform(0.2, 1.2))
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            runs += 1
    for run in range(1, runs + 1):
        assert differences(expected, finish(options, tmp_path / f"killed_{run}")) == []


def test_a_bit_of_difference_would_be_seen(mcadkd, tmp_path):
    expected = finish(mcadkd, tmp_path / "one")
    other = finish(changed(mcadkd, manual_seed=4), tmp_path / "two")
    assert any(found.startswith("/g/params") for found in differences(expected, other))
