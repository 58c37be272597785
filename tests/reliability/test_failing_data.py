"""Data that fail in mid-training end the run on all ranks, after what was done is saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

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
from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.files.run_history import read_history
from basicsr.train import train_pipeline
from basicsr.utils.errors import OptionsError


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


def endless_run_with_a_worker(options: dict, tmp_path: Path) -> tuple[dict, Any, list[int]]:
    """A run that has done four iterations: its options, its process and that of its worker."""
    options = changed(
        options,
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
    return options, process, [int(child) for child in children]


def assert_saved_and_goes_on(options: dict, tmp_path: Path, line: str) -> None:
    """`line` ends with the checkpoint, from which the run ends as one that was not stopped."""
    (state,) = (tmp_path / "experiments/tiny/training_states").glob("*.state")
    assert line.endswith(f"; saved {state.name}")
    done = changed(options, train__total_iter=int(state.stem) + 2, logger__print_freq=2)
    assert differences(finish(done, tmp_path / "whole"), finish(done, tmp_path)) == []


def test_a_worker_killed_for_want_of_memory_costs_no_iteration(mcadkd, tmp_path):
    options, process, children = endless_run_with_a_worker(mcadkd, tmp_path)
    for child in children:
        os.kill(child, signal.SIGKILL)
    process.join()
    assert process.exitcode == 6
    line = (tmp_path / "errors").read_text().splitlines()[-1]
    assert line.startswith("error: a data worker was lost")
    assert_saved_and_goes_on(options, tmp_path, line)


@pytest.mark.long
def test_a_run_whose_worker_stands_still_saves_when_it_is_asked_to_stop(mcadkd, tmp_path):
    options, process, children = endless_run_with_a_worker(mcadkd, tmp_path)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 75
    line = (tmp_path / "errors").read_text().splitlines()[-1]
    assert line.startswith("preempted while it waited for data; go on with --auto_resume")
    assert_saved_and_goes_on(options, tmp_path, line)


def damage(options: dict, *positions: int) -> list[str]:
    """Truncates the HR images of the samples at these positions; their paths, sorted."""
    images = sorted({image_at(options, position) for position in positions})
    for image in images:
        image.write_bytes(image.read_bytes()[:-20])
    return [str(image) for image in images]


@pytest.mark.parametrize("check", ["none", "headers"])
def test_bad_images_that_may_be_skipped_are_listed_and_the_run_repeats(mcadkd, tmp_path, check):
    options = changed(
        mcadkd, datasets__train__check_images=check, datasets__train__skip_bad_images=2, logger__print_freq=1
    )
    paths = damage(options, 3, 9)
    code, errors = told(options, tmp_path)
    assert code == 0, errors
    lines = sorted((tmp_path / "experiments/tiny/skipped_images.txt").read_text().splitlines())
    assert [line.split(": ")[0] for line in lines] == paths
    assert all("truncated" in line for line in lines)
    assert all(f"left out: {line}" in errors for line in lines)
    expected = checkpoint_of(tmp_path / "experiments/tiny", 8)
    (tmp_path / "experiments/tiny/training_states/8.json").unlink()
    half = changed(options, datasets__train__batch_size_per_gpu=1)
    run_ranks(told_by_ranks, 2, half, str(tmp_path), {"auto_resume": True})
    assert (tmp_path / "told.0").read_text().startswith("0\n")
    resumed = checkpoint_of(tmp_path / "experiments/tiny", 8)["g"]["params"]
    for name, weight in expected["g"]["params"].items():
        assert resumed[name] == pytest.approx(weight.numpy(), abs=1e-4), "the same samples, sums in another order"
    assert sorted((tmp_path / "experiments/tiny/skipped_images.txt").read_text().splitlines()) == lines


def two_apart(options: dict) -> tuple[int, int]:
    """The first of two samples of which neither is taken in the other's place, and the second."""
    first = image_at(options, 0).name
    names = [path.name for path in sorted(Path(options["datasets"]["train"]["dataroot_gt"]).iterdir())]
    for position in range(1, len(names)):
        steps = (names.index(image_at(options, position).name) - names.index(first)) % len(names)
        if steps not in (1, len(names) - 1):
            return 0, position
    raise AssertionError("there are only neighbours")


@pytest.mark.parametrize("check", ["none", "headers"])
def test_more_bad_images_than_allowed_end_the_run(mcadkd, tmp_path, check):
    options = changed(
        mcadkd, datasets__train__check_images=check, datasets__train__skip_bad_images=1, logger__print_freq=1
    )
    paths = damage(options, *two_apart(options))
    code, errors = told(options, tmp_path)
    assert code == 3
    if check == "headers":
        assert "error: 2 of 7 images of dataset train cannot be used:" in errors
        assert all(path in errors for path in paths)
        assert not (tmp_path / "experiments").exists()
    else:
        last = errors.splitlines()[-1]
        assert last.startswith("error: 2 training images cannot be used, skip_bad_images allows 1; they are listed in")
        assert last.endswith(".state") and "skipped_images.txt; saved " in last


def test_an_image_that_was_mended_does_not_count_any_more(mcadkd, tmp_path):
    options = changed(mcadkd, datasets__train__skip_bad_images=1, train__total_iter=4, val__val_freq=4)
    image = Path(damage(options, 3)[0])
    assert told(options, tmp_path)[0] == 0
    assert (tmp_path / "experiments/tiny/skipped_images.txt").read_text().count("\n") == 1
    twin = image_at(options, 4)
    image.write_bytes(twin.read_bytes())
    mended = changed(options, datasets__train__skip_bad_images=0, train__total_iter=8)
    code, errors = told(mended, tmp_path, auto_resume=True, allow_config_change=True)
    assert code == 0, errors


def test_a_validation_that_fails_costs_no_iteration(mcadkd, tmp_path):
    options = changed(mcadkd, datasets__val__check_images="none", val__val_freq=3, logger__save_checkpoint_freq=6)
    image = next(Path(options["datasets"]["val"]["dataroot_gt"]).iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    run_ranks(told_by_ranks, 2, options, str(tmp_path), {})
    first, second = ((tmp_path / f"told.{rank}").read_text() for rank in (0, 1))
    assert first.startswith("3\n") and second.startswith("3\n")
    assert f"cannot read image {image}: the file is truncated" in first.splitlines()[-1]
    assert "Traceback" not in first + second
    image.write_bytes(whole)
    run_ranks(told_by_ranks, 2, options, str(tmp_path), {"auto_resume": True})
    again = (tmp_path / "told.0").read_text()
    assert again.startswith("0\n") and "Resumed 3.state" in again
    metrics = [
        entry for entry in read_history(tmp_path / "experiments/tiny/history.jsonl") if "metrics/val/psnr" in entry
    ]
    assert [entry["iter"] for entry in metrics] == [3, 6, 8]


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_error_of_a_datasets_own_keeps_its_traceback_and_costs_no_iteration(mcadkd, tmp_path, world_size):
    options = changed(mcadkd, train__total_iter=6, val__val_freq=6)
    options["datasets"]["train"] |= {"type": "FailsLate", "call": 6, "rank": world_size - 1}  # of the third iteration
    if world_size == 1:
        code, errors = told(options, tmp_path)
        assert code == 1
    else:
        run_ranks(told_by_ranks, 2, options, str(tmp_path), {})
        first, errors = ((tmp_path / f"told.{rank}").read_text() for rank in (0, 1))
        assert first.startswith("1\n") and "[rank 1] RuntimeError: " in first.splitlines()[-1]
        assert "Traceback" not in first and errors.startswith("1\n")
    assert "ZeroDivisionError" in errors and "Traceback" in errors
    assert [file.name for file in (tmp_path / "experiments/tiny/training_states").glob("*.state")] == ["2.state"]


@pytest.mark.parametrize("check", [pytest.param("none", marks=pytest.mark.long), "headers"])
def test_an_image_that_is_mended_while_the_run_is_stopped_stays_left_out(mcadkd, tmp_path, check):
    options = changed(
        mcadkd, datasets__train__check_images=check, datasets__train__skip_bad_images=2, logger__save_checkpoint_freq=4
    )
    image = Path(damage(options, 3)[0])
    good = image_at(options, 4).read_bytes()
    train_pipeline(options, root=tmp_path / "whole")
    expected = checkpoint_of(tmp_path / "whole/experiments/tiny", 8)
    begun = changed(options, train__total_iter=4, val__val_freq=4)
    train_pipeline(begun, root=tmp_path)
    image.write_bytes(good)
    train_pipeline(options, root=tmp_path, auto_resume=True)
    (log,) = (tmp_path / "experiments/tiny").glob("*.log")
    assert f"WARNING: left out still, as before 4.state: {image}: " in log.read_text()
    found = checkpoint_of(tmp_path / "experiments/tiny", 8)
    assert differences(expected["g"]["params"], found["g"]["params"]) == []
    assert list(found["state"]["skipped"].values()) == list(expected["state"]["skipped"].values())
    old = CheckpointFolder(tmp_path / "experiments/tiny")
    saved = old.load(old.states / "4.state")
    without = {key: value for key, value in saved.state.items() if key not in ("skipped", "format", "iteration")}
    old.save(4, saved.networks, without)  # as versions before saved it: it goes on, and cannot know
    (old.states / "8.json").unlink()
    assert train_pipeline(options, root=tmp_path, auto_resume=True).iteration == 8


def test_other_images_than_were_skipped_make_another_experiment(mcadkd, tmp_path):
    options = changed(mcadkd, datasets__train__skip_bad_images=2, train__total_iter=2, val__val_freq=2)
    first, second = two_apart(options)
    skipped = damage(options, first)[0]
    train_pipeline(options, root=tmp_path)
    longer = changed(options, train__total_iter=3)
    other = image_at(options, second)
    whole = other.read_bytes()
    damage(options, second)
    with pytest.raises(OptionsError, match=rf"training images: cannot be used any more: {other}: "):
        train_pipeline(longer, root=tmp_path, auto_resume=True)
    other.write_bytes(whole)
    Path(skipped).write_bytes(whole)
    none = changed(longer, datasets__train__skip_bad_images=0)
    with pytest.raises(OptionsError, match=rf"training images: left out until now: {skipped}: "):
        train_pipeline(none, root=tmp_path, auto_resume=True)
    assert train_pipeline(none, root=tmp_path, auto_resume=True, allow_config_change=True).iteration == 3
