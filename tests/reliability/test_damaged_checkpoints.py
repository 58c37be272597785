"""A checkpoint is whole or not there, and one that is damaged is never used."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import changed, checkpoint_of, differences, finish, start, told

from basicsr.engine.checkpoint import CheckpointFolder
from basicsr.engine.resuming import _choose
from basicsr.files import atomic_files
from basicsr.utils.errors import CheckpointError

CONTENT = {5: 1.0, 10: 2.0}
"""Iterations of the checkpoints that tests make, and the value that all their tensors hold."""


def save(root: Path, iteration: int, value: float, keep: int | None = None) -> None:
    tensors = {"weight": torch.full((40, 50), value), "count": torch.tensor(iteration)}
    state = {"terms": dict(tensors), "optimizers": {"g": {"state": {0: dict(tensors)}}}, "best": {}}
    networks = {"g": {"params": dict(tensors), "params_ema": dict(tensors)}, "d": {"params": dict(tensors)}}
    CheckpointFolder(root, keep).save(iteration, networks, state)


def newest(root: Path) -> tuple[int, float, list[str]]:
    """Iteration of the checkpoint that a resume takes, the one value that is everywhere in it, and the remarks."""
    checkpoint, remarks = CheckpointFolder(root).latest()
    assert checkpoint is not None
    weights = [
        checkpoint.networks["g"]["params"]["weight"],
        checkpoint.networks["g"]["params_ema"]["weight"],
        checkpoint.networks["d"]["params"]["weight"],
        checkpoint.state["terms"]["weight"],
        checkpoint.state["optimizers"]["g"]["state"][0]["weight"],
    ]
    (value,) = {float(value) for weight in weights for value in weight.unique()}
    return checkpoint.iteration, value, remarks


def flip(file: Path, generator: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    file.write_bytes(content)


def cut(file: Path, generator: random.Random) -> None:
    os.truncate(file, generator.randrange(file.stat().st_size))


@pytest.mark.parametrize("damage", [flip, cut])
def test_200_damages_are_all_found_and_the_checkpoint_before_is_used(tmp_path, damage):
    for iteration, value in CONTENT.items():
        save(tmp_path / "run", iteration, value)
    files = [file for folder in ("models", "training_states") for file in (tmp_path / "run" / folder).glob("*10.*")]
    assert len(files) == 4, "student, discriminator, state, manifest"
    generator = random.Random(7)
    hit = {file.suffix: 0 for file in files}
    for _ in range(200):
        file = generator.choice(files)
        whole = file.read_bytes()
        damage(file, generator)
        iteration, value, remarks = newest(tmp_path / "run")
        if file.suffix == ".json" and iteration == 10:
            # A bit of a name or blank may not matter; what was read must then be right all the same.
            assert (value, remarks) == (CONTENT[10], [])
        else:
            assert (iteration, value) == (5, CONTENT[5])
            assert remarks[0].startswith("10.state is ") and remarks[0].endswith("; using 5.state; 5 iterations redone")
        hit[file.suffix] += 1
        file.write_bytes(whole)
    assert min(hit.values()) > 20


def test_damage_in_each_file_is_told_in_the_promised_words(tmp_path):
    for iteration, value in CONTENT.items():
        save(tmp_path, iteration, value)
    for file, told_of in (("training_states/10.state", ""), ("models/net_g_10.pth", " of models/net_g_10.pth")):
        whole = (tmp_path / file).read_bytes()
        flip(tmp_path / file, random.Random(1))
        assert newest(tmp_path)[2] == [f"10.state is damaged (SHA-256{told_of}); using 5.state; 5 iterations redone"]
        (tmp_path / file).write_bytes(whole)


STEPS = ("open", "fsync", "replace", "unlink")
ALL_STEPS = (*STEPS, "write", "flush", "mkdir", "close", "fstat", "stat")


def killed_at(step: int, steps: tuple[str, ...], root: str, iteration: int, value: float, keep: int | None) -> None:
    """Saves, and is killed before the given one of all steps that touch a file; ends well where there are fewer."""
    left = step

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        if event == "c_call" and argument.__name__ in steps:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)
    save(Path(root), iteration, value, keep)


@pytest.mark.parametrize(("iteration", "keep"), [(10, 1), (5, None)], ids=["new", "same again"])
def test_killed_between_any_two_steps_of_writing_one_checkpoint_is_whole(tmp_path, iteration, keep):
    _kill_in_a_process_without_threads(tmp_path, iteration, keep, STEPS)


@pytest.mark.long
@pytest.mark.parametrize(("iteration", "keep"), [(10, 1), (5, None), (10, None)])
def test_killed_before_every_single_call_that_touches_a_file(tmp_path, iteration, keep):
    _kill_in_a_process_without_threads(tmp_path, iteration, keep, ALL_STEPS)


def _kill_in_a_process_without_threads(*arguments: Any) -> None:
    process = start(_kill_at_each_step, *arguments)
    process.join()
    assert process.exitcode == 0


def _kill_at_each_step(tmp_path: Path, iteration: int, keep: int | None, steps: tuple[str, ...]) -> None:
    save(tmp_path / "before", 5, 1.0)
    outcomes = []
    for step in range(1000):
        root = tmp_path / "run"
        shutil.copytree(tmp_path / "before", root)
        child = os.fork()
        if child == 0:
            killed_at(step, steps, str(root), iteration, 3.0, keep)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        found = newest(root)
        assert found in ((5, 1.0, []), (iteration, 3.0, [])), f"killed at step {step}: {found}"
        outcomes.append(found[1])
        folder = CheckpointFolder(root, keep)
        folder.tidy(found[0])
        assert not list(root.rglob(".*")), "nothing is left of what was not finished"
        assert newest(root) == found
        save(root, 15, 4.0, keep)
        assert newest(root) == (15, 4.0, [])
        shutil.rmtree(root)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert outcomes == sorted(outcomes) and len(set(outcomes)) == 2, "first the old one, then the new one"
    assert outcomes.count(1.0) > 5


def test_checkpoints_after_the_one_resumed_do_not_push_out_newer_ones(tmp_path):
    for iteration in (5, 10, 15):
        save(tmp_path, iteration, 1.0)
    for damaged in (10, 15):
        flip(tmp_path / f"training_states/{damaged}.state", random.Random(1))
    folder = CheckpointFolder(tmp_path, keep=2)
    assert newest(tmp_path)[0] == 5
    remarks = folder.tidy(5)
    assert [remark.split(" ")[0] for remark in remarks] == ["15.state", "10.state"]
    assert sorted(path.name for path in (tmp_path / "superseded/models").iterdir()) == [
        f"net_{label}_{iteration}.pth" for label in "dg" for iteration in (10, 15)
    ]
    save(tmp_path, 7, 2.0, keep=2)
    save(tmp_path, 9, 3.0, keep=2)
    assert newest(tmp_path) == (9, 3.0, [])
    assert sorted(path.name for path in (tmp_path / "training_states").glob("*.state")) == ["7.state", "9.state"]


def test_a_run_with_a_damaged_newest_checkpoint_redoes_its_iterations_bitwise(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=6, logger__save_checkpoint_freq=2, val__val_freq=6)
    expected = finish(options, tmp_path)
    experiment = tmp_path / "experiments/tiny"
    flip(experiment / "models/net_d_6.pth", random.Random(3))
    cut(experiment / "training_states/4.state", random.Random(3))
    code, errors = told(options, tmp_path, auto_resume=True)
    assert code == 0
    lines = [
        "6.state is damaged (SHA-256 of models/net_d_6.pth); using 2.state; 4 iterations redone",
        "4.state is damaged (SHA-256); using 2.state; 2 iterations redone",
        "Resumed 2.state at iteration 2 (epoch 0, batch 2/4)",
    ]
    assert [line for line in lines if line not in errors] == []
    assert differences(expected, checkpoint_of(experiment, 6)) == []


def test_where_no_checkpoint_is_intact_the_run_does_not_begin_anew(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=2, logger__save_checkpoint_freq=2, val__val_freq=2)
    finish(options, tmp_path)
    flip(tmp_path / "experiments/tiny/training_states/2.state", random.Random(3))
    code, errors = told(options, tmp_path, auto_resume=True)
    assert code == 4
    assert "is intact: 2.state is damaged (SHA-256); start anew without --auto_resume" in errors
    assert (tmp_path / "experiments/tiny/training_states/2.json").exists()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_saving_again_under_one_number_may_fail_after_the_commit(tmp_path, monkeypatch, kind):
    save(tmp_path, 5, 1.0)

    def fail(folder: Path) -> None:
        raise kind(errno.EIO, "no luck")

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, CheckpointError)):
        patch.setattr(atomic_files, "sync_folder", fail)  # called when the manifest has its name
        save(tmp_path, 5, 2.0)
    assert newest(tmp_path) == (5, 2.0, [])
    CheckpointFolder(tmp_path).tidy(5)
    assert newest(tmp_path) == (5, 2.0, [])


def test_files_of_the_users_own_are_left_alone(tmp_path):
    save(tmp_path, 4, 1.0, keep=2)
    own = [tmp_path / "models/net_g_good_4.pth", tmp_path / "models/.notes.tmp", tmp_path / "models/.cache.tmp/x"]
    own[2].parent.mkdir()
    for file in own:
        file.write_text("mine")
    for iteration in (5, 6):
        save(tmp_path, iteration, 1.0, keep=2)
    CheckpointFolder(tmp_path, 2).tidy(6)
    assert [file.read_text() for file in own] == ["mine"] * 3
    assert not (tmp_path / "models/net_g_4.pth").exists()


def test_a_prune_that_was_killed_is_finished_by_the_next(tmp_path):
    save(tmp_path, 4, 1.0, keep=2)
    for name in ("models/net_g_4.pth", "training_states/4.state"):
        (tmp_path / name).unlink()
    for iteration in (5, 6):
        save(tmp_path, iteration, 1.0, keep=2)
    assert not [file for file in tmp_path.rglob("*4.*") if file.is_file()]


def test_what_was_set_aside_can_be_resumed_and_links_to_checkpoints_too(tmp_path):
    for iteration in (5, 10):
        save(tmp_path / "run", iteration, 1.0)
    CheckpointFolder(tmp_path / "run").tidy(5)
    assert newest(tmp_path / "run/superseded") == (10, 1.0, [])
    (tmp_path / "link.state").symlink_to(tmp_path / "run/training_states/5.state")

    class Paths:
        resume_state = str(tmp_path / "link.state")

    class Chosen:
        path = Paths

    checkpoint, _ = _choose(Chosen, auto_resume=False)  # type: ignore[arg-type]
    assert checkpoint is not None and checkpoint.iteration == 5


def test_the_best_weights_belong_to_the_course_that_goes_on(mcadkd, tmp_path):
    options = changed(mcadkd, train__total_iter=8, val__val_freq=4)
    finish(options, tmp_path)
    best = tmp_path / "experiments/tiny/models/net_g_best.pth"
    assert torch.load(best, weights_only=True)["training"]["iteration"] == 8
    state = str(tmp_path / "experiments/tiny/training_states/4.state")
    worse = changed(options, path__resume_state=state, train__optim_g__lr=0.9)
    code, errors = told(worse, tmp_path, allow_config_change=True)
    assert code == 0, errors
    content = torch.load(best, weights_only=True)
    record = torch.load(tmp_path / "experiments/tiny/training_states/8.state", weights_only=True)["best"]
    assert content["training"]["iteration"] == record["val"]["psnr"]["iteration"] == 4


def test_what_was_set_aside_stays_when_its_number_comes_again(tmp_path):
    for value in (1.0, 2.0):
        save(tmp_path, 5, value)
        save(tmp_path, 10, value)
        CheckpointFolder(tmp_path).tidy(5)
    assert newest(tmp_path / "superseded") == (10, 1.0, [])
    assert newest(tmp_path / "superseded_2") == (10, 2.0, [])
