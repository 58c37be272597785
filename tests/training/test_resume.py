"""A run that is cut off and continued equals the run that never was, bit for bit."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from support.training import changed, differences, finish, start, train


@pytest.mark.parametrize(("workers", "amp"), [(1, "none"), (0, "bf16")])
def test_killed_ten_times_ends_bitwise_equal(mcadkd, tmp_path, workers, amp):
    options = changed(
        mcadkd,
        train__total_iter=60,
        logger__save_checkpoint_freq=3,
        val__val_freq=20,
        amp=amp,
        channels_last=amp == "bf16",
        datasets__train__num_worker_per_gpu=workers,
    )
    expected = finish(options, tmp_path / "whole")
    generator = random.Random(11)
    states = tmp_path / "killed/experiments/tiny/training_states"
    began_at = []
    for _ in range(10):
        began_at.append(newest(states))
        process = start(train, options, str(tmp_path / "killed"))
        while newest(states) == began_at[-1] and process.is_alive():
            time.sleep(0.001)
        process.join(generator.uniform(0, 0.15))  # somewhere in the iterations, the validation or the next saving
        process.kill()
        process.join()
    assert began_at[0] == 0 and began_at == sorted(set(began_at)), (
        "each run but the first resumes what one before saved"
    )
    assert differences(expected, finish(options, tmp_path / "killed")) == []
    assert not list(tmp_path.glob("killed/experiments/*_archived_*"))


def test_methods_with_heads_and_histories_resume_bitwise(mcadkd, tmp_path):
    methods = {
        "hint": {"type": "FitNet", "loss_weight": 1e-4},
        "attention": {"type": "AttentionTransfer"},
        "relations": {"type": "RKD"},
        "affinity": {"type": "FAKD"},
        "mixture": {"type": "MiPKD"},
        "history": {"type": "DCKD", "vqgan_weights": "random", "update_steps": [2]},
        "zooms": {"type": "DUKD"},
    }
    options = changed(
        mcadkd,
        train__distill=methods,
        train__total_iter=9,
        train__accumulate=2,
        datasets__train__batch_size_per_gpu=3,
        logger__save_checkpoint_freq=3,
        val__val_freq=9,
        amp="bf16",
        channels_last=True,
    )
    expected = finish(options, tmp_path / "whole")
    states = tmp_path / "killed/experiments/tiny/training_states"
    for iteration in (3, 6):
        process = start(train, options, str(tmp_path / "killed"))
        while newest(states) < iteration and process.is_alive():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert newest(states) >= iteration
    assert differences(expected, finish(options, tmp_path / "killed")) == []


def newest(states: Path) -> int:
    """Iteration of the newest complete checkpoint; 0 where there is none."""
    return max((int(manifest.stem) for manifest in states.glob("*.json")), default=0)


def test_a_bit_of_difference_would_be_seen(mcadkd, tmp_path):
    expected = finish(mcadkd, tmp_path / "one")
    other = finish(changed(mcadkd, manual_seed=4), tmp_path / "two")
    assert any(found.startswith("/g/params") for found in differences(expected, other))
