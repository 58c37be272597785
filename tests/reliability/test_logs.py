"""Logs of a run that was killed and resumed: no step twice, and one log file that goes on."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.training import changed, finish, run_ranks, start, told, train, train_rank_all

from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.files.run_history import read_history


def events(folder: Path) -> Counter:
    """How often each figure and step stands in the files themselves, whatever a viewer hides of them."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: Counter = Counter()
    for path in folder.glob("events*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            found.update((value.tag, event.step) for value in event.summary.value)
    return found


def kill_after(options: dict, root: Path, text: str) -> None:
    process = start(train, options, str(root))
    history = root / "experiments/tiny/history.jsonl"
    while process.is_alive() and not (history.exists() and text in history.read_text()):
        time.sleep(0.001)
    process.kill()
    process.join()


@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_three_times_no_step_is_there_twice(mcadkd, tmp_path, world_size):
    options = changed(
        mcadkd,
        train__total_iter=16,
        val__val_freq=5,
        logger__print_freq=1,
        logger__save_checkpoint_freq=4,
        logger__use_tb_logger=True,
    )
    finish(options, tmp_path / "whole")
    expected = events(tmp_path / "whole/tb_logger/tiny")
    killed = tmp_path / "killed"
    for text in ('"iter": 6', '"iter": 7', '"iter": 14'):
        kill_after(options, killed, text)
    torn = max((killed / "tb_logger/tiny").glob("events*"), key=lambda path: path.stat().st_mtime)
    with open(torn, "ab") as file:
        file.write(b"\x20\0\0\0\0\0\0\0half of an eve")
    if world_size == 1:
        finish(options, killed)
    else:
        half = changed(options, datasets__train__batch_size_per_gpu=1)
        run_ranks(train_rank_all, 2, [half], str(killed))
    found = events(killed / "tb_logger/tiny")
    ours = {key: count for key, count in found.items() if not key[0].startswith(("options/", "_hparams_"))}
    theirs = {key: count for key, count in expected.items() if not key[0].startswith(("options/", "_hparams_"))}
    assert ours == theirs
    assert set(found.values()) == {1}
    iterations = [entry["iter"] for entry in read_history(killed / "experiments/tiny/history.jsonl")]
    assert iterations == [entry["iter"] for entry in read_history(tmp_path / "whole/experiments/tiny/history.jsonl")]


def test_a_validation_that_is_made_up_for_is_logged_once(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=4, val__val_freq=4, logger__use_tb_logger=True)
    finish(options, tmp_path)
    state = tmp_path / "experiments/tiny/training_states/4.state"
    content = torch.load(state, weights_only=True)
    networks = {
        label: torch.load(tmp_path / f"experiments/tiny/models/net_{label}_4.pth", weights_only=True) for label in "gd"
    }
    # As it is where the run is killed after the metrics were logged, and before that was saved.
    void = {key: value for key, value in content.items() if key not in ("format", "iteration")}
    CheckpointFolder(tmp_path / "experiments/tiny").save(4, networks, {**void, "validation_due": True})
    finish(options, tmp_path)
    found = events(tmp_path / "tb_logger/tiny")
    assert set(found.values()) == {1}
    history = read_history(tmp_path / "experiments/tiny/history.jsonl")
    metrics = [entry for entry in history if "metrics/val/psnr" in entry]
    assert [entry["iter"] for entry in metrics] == [4]


def test_the_log_file_goes_on(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=4, val__val_freq=4)
    finish(options, tmp_path)
    code, _ = told(changed(options, train__total_iter=8), tmp_path, auto_resume=True)
    assert code == 0
    (log,) = (tmp_path / "experiments/tiny").glob("*.log")
    lines = log.read_text().splitlines()
    for number, text in ((1, "End of training after 4"), (1, "Resumed 4.state"), (1, "End of training after 8")):
        assert sum(text in line for line in lines) == number


def test_damage_and_pipes_among_a_runs_files_do_not_keep_it_from_going_on(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=4, val__val_freq=4, logger__print_freq=1, logger__use_tb_logger=True)
    finish(options, tmp_path)
    folder, curves = tmp_path / "experiments/tiny", tmp_path / "tb_logger/tiny"
    history = folder / "history.jsonl"
    lines = history.read_text().splitlines(keepends=True)
    history.write_text("".join([*lines[:2], "\x00\x00{\n", *lines[2:]]))
    for name in ("record.json", "wandb.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    os.mkfifo(folder / "train_tiny_99991231_235959.log")
    os.mkfifo(curves / "events.out.tfevents.9999999999.pipe")
    code, errors = told(changed(options, train__total_iter=6), tmp_path, auto_resume=True)
    assert code == 0, errors
    assert "history.jsonl has 1 damaged lines, the first is line 3; it goes on without them" in errors
    assert "events.out.tfevents.9999999999.pipe: it is no file but a pipe; steps in it may be logged twice" in errors
    assert "Traceback" not in errors
    iterations = [entry["iter"] for entry in read_history(history) if "losses/l_pix" in entry]
    assert iterations == [1, 2, 3, 4, 5, 6]
