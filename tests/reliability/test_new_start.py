"""--auto_resume begins anew only where no run has saved anything; else it says what is missing, and touches nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.training import changed, told, without_teacher

from basicsr.engine.logs.run_log import launched_by_us
from basicsr.engine.resuming import newer_that_are_gone
from basicsr.train import train_pipeline
from basicsr.utils.errors import CheckpointError


def relink(path: Path, target: str) -> None:
    shutil.rmtree(path)
    path.symlink_to(target)


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def empty(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path)
        path.mkdir()


def only(run: Path, *names: str) -> None:
    """What is left of a run's folder; its training states are an empty folder."""
    for path in run.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "training_states").mkdir(exist_ok=True)


def unsaved_status(run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running", "checkpoint": None, "iteration": 0}))


# What becomes of the folder of a run that has saved 2.state, and what the refusal says.
LOST: dict[str, tuple[Callable[[Path], object], str]] = {
    "states: a dangling link": (
        lambda run: relink(run / "training_states", "/nowhere/states"),
        "a link to /nowhere/st",
    ),
    "states: a link to itself": (lambda run: relink(run / "training_states", "training_states"), "symbolic links"),
    "states: a file": (lambda run: replace_by_file(run / "training_states"), r"training_states \(Not a directory\)"),
    "states: not mounted": (lambda run: empty(run / "training_states"), r"\(models/net_g_2.pth; "),
    "states: removed": (lambda run: shutil.rmtree(run / "training_states"), r"\(models/net_g_2.pth; "),
    "states and models: not mounted": (
        lambda run: empty(run / "training_states", run / "models"),
        r"\(status.json says that 2.state was saved\)",
    ),
    "states and models: removed": (lambda run: only(run, "status.json"), "status.json says that 2.state was saved"),
    "models: a dangling link": (
        lambda run: (empty(run / "training_states"), relink(run / "models", "/nowhere")),
        r"models \(it is a link to /nowhere",
    ),
    "models alone: a dangling link": (
        lambda run: relink(run / "models", "/nowhere"),
        r"models \(it is a link to /nowhere",
    ),
    "only weights are left": (lambda run: only(run, "models"), "models/net_g_2.pth"),
    "only the last weights are left": (
        lambda run: (only(run, "models"), [file.unlink() for file in (run / "models").glob("net_?_[0-9]*.pth")]),
        "models/net_g_latest.pth",
    ),
    "only the log is left": (
        lambda run: only(run, *[file.name for file in run.glob("*.log")]),
        r"train_tiny_\S+.log is there, status.json is not",
    ),
    "only the history is left": (lambda run: only(run, "history.jsonl"), "history.jsonl is there, status.json is not"),
    "the status is damaged": (
        lambda run: (only(run, "status.json"), (run / "status.json").write_text('{"state": "run')),
        "status.json cannot be read",
    ),
    "the record is damaged": (
        lambda run: (only(run, "record.json"), (run / "record.json").write_text("[1]")),
        "record.json cannot be read",
    ),
    "it went on once": (
        lambda run: (only(run, "record.json"), (run / "record.json").write_text('{"starts": [{"iteration": 2}]}')),
        "record.json says that it went on from iteration 2",
    ),
    "only what was set aside is left": (
        lambda run: (only(run), (run / "superseded").mkdir()),
        r"\(superseded\)",
    ),
    "all but the curves": (lambda run: shutil.rmtree(run), "tb_logger/tiny has its curves"),
    "the curves and a mount point": (lambda run: empty(run), "tb_logger/tiny has its curves"),
    "the run: a dangling link": (lambda run: relink(run, "/nowhere"), "tiny is a link to /nowhere, which is not there"),
    "the run: a link to itself": (lambda run: relink(run, "tiny"), "tiny is a link to tiny, which is not there"),
    "the run: a file": (lambda run: replace_by_file(run), r"cannot read \S+ \(Not a directory\)"),
    "experiments: a dangling link": (lambda run: relink(run.parent, "/nowhere"), "experiments is a link to /nowhere"),
}

# What a run leaves that was stopped before its first checkpoint: it begins anew, asked by nobody.
NOTHING_SAVED: dict[str, Callable[[Path], object]] = {
    "while it was running": lambda run: (
        unsaved_status(run),
        [file.unlink() for file in (run / "models").glob("net_?_[0-9l]*")],
        empty(run / "training_states"),
    ),
    "before it ran": lambda run: (only(run, "tiny.yml", "record.json"), (run / "models").mkdir()),
    "as its folders were made": lambda run: (only(run), (run / "training_states").rmdir(), (run / "models").mkdir()),
    "of another run's state": lambda run: (
        unsaved_status(run),
        (run / "record.json").write_text('{"starts": [{"iteration": 2}]}'),
        empty(run / "models", run / "training_states"),
    ),
    "with nothing but a folder": lambda run: (only(run), (run / "training_states").rmdir()),
}


@pytest.fixture
def options(mcadkd):
    return without_teacher(mcadkd, train__total_iter=2, val__val_freq=2, logger={"use_tb_logger": True})


@pytest.fixture
def finished(options, tmp_path) -> Path:
    """The folder of experiments of a run that has saved 2.state."""
    train_pipeline(options, root=tmp_path)
    (tmp_path / "experiments").rename(tmp_path / "kept")
    return tmp_path / "kept"


def tree(root: Path) -> list[str]:
    return sorted(f"{path} {os.lstat(path).st_size}" for path in root.rglob("*") if not path.is_dir())


def test_where_a_run_has_saved_it_does_not_begin_anew(finished, options, tmp_path):
    for name, (lose, said) in LOST.items():
        shutil.copytree(finished, tmp_path / "experiments")
        lose(tmp_path / "experiments/tiny")
        before = tree(tmp_path)
        with pytest.raises(CheckpointError, match=said) as caught:
            train_pipeline(options, root=tmp_path, auto_resume=True)
        line = str(caught.value)
        assert "\n" not in line and ("without --auto_resume" in line or "mount its disk" in line), (name, line)
        assert tree(tmp_path) == before, name
        experiments = tmp_path / "experiments"
        experiments.unlink() if experiments.is_symlink() else shutil.rmtree(experiments)


def test_where_none_was_saved_it_begins_anew_by_itself(finished, options, tmp_path):
    for name, lose in NOTHING_SAVED.items():
        shutil.copytree(finished, tmp_path / "experiments")
        lose(tmp_path / "experiments/tiny")
        shutil.rmtree(tmp_path / "tb_logger")
        result = train_pipeline(options, root=tmp_path, auto_resume=True)
        assert result.iteration == 2 and (result.folder / "training_states/2.json").exists(), name
        renamed = name != "with nothing but a folder"  # that may be a link, or where a disk is mounted
        assert len(list((tmp_path / "experiments").glob("tiny_archived_*"))) == renamed, name
        shutil.rmtree(tmp_path / "experiments")


@pytest.mark.long
def test_the_command_ends_with_code_4_and_goes_on_when_the_disk_is_back(finished, options, tmp_path):
    finished.rename(tmp_path / "experiments")
    states = tmp_path / "experiments/tiny/training_states"
    states.rename(tmp_path / "disk")
    states.mkdir()
    code, errors = told(options, tmp_path, auto_resume=True)
    assert code == 4 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: ") and "a run was there (models/net_g_2.pth; " in errors
    states.rmdir()
    states.symlink_to(tmp_path / "disk")
    assert train_pipeline(changed(options, train__total_iter=3), root=tmp_path, auto_resume=True).iteration == 3


def test_a_restart_by_torchrun_does_not_guess_whose_run_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert not launched_by_us(tmp_path)
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read \S+status.json"):
        launched_by_us(tmp_path)


def test_the_newest_states_are_gone_and_an_older_one_is_there(finished, tmp_path):
    folder, states = finished / "tiny", finished / "tiny/training_states"
    said = "status.json says that 2.state was saved, which is not there; using 1.state; 1 iterations redone"
    assert newer_that_are_gone(folder, 1) == [] == newer_that_are_gone(folder, 2)
    (states / "2.state").unlink()
    assert newer_that_are_gone(folder, 1) == [], "of what is damaged others tell"
    (states / "2.json").unlink()
    assert newer_that_are_gone(folder, 1) == [said]
    for text in ("[]", '{"checkpoint": 5}', '{"checkpoint": "x.state"}', "{"):
        (folder / "status.json").write_text(text)
        assert newer_that_are_gone(folder, 1) == []


def test_a_state_that_is_a_link_to_itself_is_not_there(options, tmp_path):
    loop = tmp_path / "2.state"
    loop.symlink_to(loop)
    with pytest.raises(CheckpointError, match=r"resume_state \S+2\.state does not exist; saved states: none"):
        train_pipeline(changed(options, path={"resume_state": str(loop)}), root=tmp_path)
