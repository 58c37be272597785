"""Data that fail in mid-training end the run on all ranks, after what was done is saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.training import (
    changed,
    checkpoint_of,
    differences,
    finish,
    run_as_command,
    run_ranks,
    start,
    told,
    told_by_ranks,
    train_rank_all,
)

from basicsr.data.sampling import KeySampler


def image_at(options: dict, position: int) -> Path:
    """The HR image of the sample at a global position."""
    images = sorted(Path(options["datasets"]["train"]["dataroot_gt"]).iterdir())
    sampler = KeySampler(num_samples=len(images), batch_size=1, seed=options["manual_seed"], total_iterations=9)
    return images[sampler.key(position).index]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_damaged_image_on_one_rank_ends_both_after_saving(mcadkd, tmp_path, workers):
    options = changed(
        mcadkd,
        train__total_iter=4,
        val__val_freq=4,
        datasets__train__check_images="none",
        datasets__train__num_worker_per_gpu=workers,
    )
    # Samples 4 to 7 are those of the second iteration; 6 and 7 are rank 1's.
    image = image_at(options, 6)
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    run_ranks(told_by_ranks, 2, options, str(tmp_path), {})
    first, second = ((tmp_path / f"told.{rank}").read_text() for rank in (0, 1))
    assert first.startswith("3\n") and second.startswith("3\n")
    line = first.splitlines()[-1]
    assert line.startswith(f"[rank 0] error: [rank 1] cannot read image {image}: the file is truncated")
    assert line.endswith("; saved 1.state")
    assert "Traceback" not in first + second
    status = json.loads((tmp_path / "experiments/tiny/status.json").read_text())
    assert (status["state"], status["exit_code"], status["checkpoint"]) == ("failed", 3, "1.state")
    image.write_bytes(whole)
    run_ranks(train_rank_all, 2, [options], str(tmp_path / "whole"))
    run_ranks(told_by_ranks, 2, options, str(tmp_path), {"auto_resume": True})
    # Two ranks against two ranks: sums are taken in the same order.
    ends = (checkpoint_of(root / "experiments/tiny", 4) for root in (tmp_path / "whole", tmp_path))
    assert differences(*ends) == []


def test_a_bad_first_batch_ends_the_run_before_it_begins(mcadkd, tmp_path):
    options = changed(mcadkd, datasets__train__check_images="none")
    image = image_at(options, 0)
    image.write_bytes(image.read_bytes()[:-20])
    code, errors = told(options, tmp_path)
    assert code == 3
    assert f"error: cannot read image {image}: the file is truncated" in errors.splitlines()[-1]
    assert "saved" not in errors.splitlines()[-1]


def test_a_worker_killed_for_want_of_memory_costs_no_iteration(mcadkd, tmp_path):
    options = changed(
        mcadkd,
        train__total_iter=100_000,
        val__val_freq=100_000,
        logger__save_checkpoint_freq=100_000,
        logger__print_freq=2,
        datasets__train__num_worker_per_gpu=1,
    )
    process = start(run_as_command, options, str(tmp_path), str(tmp_path / "errors"), {})
    history = tmp_path / "experiments/tiny/history.jsonl"
    while process.is_alive() and not (history.exists() and '"iter": 4' in history.read_text()):
        time.sleep(0.01)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert children
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.join()
    assert process.exitcode == 6
    line = (tmp_path / "errors").read_text().splitlines()[-1]
    assert line.startswith("error: a data worker was lost")
    (state,) = (tmp_path / "experiments/tiny/training_states").glob("*.state")
    assert line.endswith(f"; saved {state.name}")
    done = changed(options, train__total_iter=int(state.stem) + 2, logger__print_freq=2)
    assert differences(finish(done, tmp_path / "whole"), finish(done, tmp_path)) == []
