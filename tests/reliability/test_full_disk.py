"""A full disk, a limit on files, a folder that cannot be written: one line, and the last checkpoint stays."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.training import changed, differences, finish

from basicsr.engine.checkpoint import CheckpointFolder

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "basicsr/train.py")


def can_mount() -> bool:
    """Whether a file system can be mounted in a namespace of our own."""
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")


def in_namespace(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs a shell script that may mount things."""
    command = ["unshare", "-rm", "bash", "-c", script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def said(done: subprocess.CompletedProcess) -> list[str]:
    """What a command said, but for what is odd about the options."""
    return [line for line in done.stderr.strip().splitlines() if "options.yml:" not in line]


def written(options: dict, folder: Path) -> str:
    file = folder / "options.yml"
    file.write_text(yaml.safe_dump(options))
    return f"OMP_NUM_THREADS=1 {sys.executable} {TRAIN} -opt {file}"


@pytest.fixture
def options(mcadkd):
    """A run of 8 iterations whose checkpoints, one after each, take about 330 kB."""
    return changed(
        mcadkd,
        network_g={**mcadkd["network_g"], "num_feat": 16},
        logger__save_checkpoint_freq=1,
        path={"allow_random_teacher": True, "experiments_root": "disk/experiments"},
    )


@needs_mount
def test_a_disk_too_small_for_a_checkpoint_is_told_at_the_start(options, tmp_path):
    done = in_namespace(f"mkdir disk; mount -t tmpfs -o size=100k tmpfs disk; {written(options, tmp_path)}", tmp_path)
    assert done.returncode == 4
    (line,) = said(done)
    told = r"error: cannot save a checkpoint in disk/experiments/tiny: needs \d+ kB, \d+ kB free; last good: none"
    assert re.fullmatch(told, line)


@needs_mount
def test_a_disk_that_fills_up_ends_the_run_and_keeps_the_last_checkpoint(options, tmp_path):
    script = f"""mkdir disk; mount -t tmpfs -o size=1400k tmpfs disk; {written(options, tmp_path)}
        code=$?; cp -r disk/experiments kept; cat disk/experiments/tiny/status.json; exit $code"""
    done = in_namespace(script, tmp_path)
    assert done.returncode == 4
    assert re.search(
        r"WARNING: the run's checkpoints need \S+ MB, \d+ kB each, and \S+ MB are free: free space", done.stderr
    )
    failure = re.search(
        r"error: cannot save (\d+)\.state: needs \d+ kB, \d+ k?B free; last good: (\d+)\.state$", done.stderr.strip()
    )
    assert failure, done.stderr
    assert "Traceback" not in done.stderr
    failed, last = map(int, failure.groups())
    assert last == failed - 1 >= 1
    assert not list((tmp_path / "kept").rglob("*.tmp"))
    checkpoint, remarks = CheckpointFolder(tmp_path / "kept/tiny").latest()
    assert checkpoint is not None
    assert (checkpoint.iteration, remarks) == (last, [])
    (tmp_path / "disk").rmdir()
    shutil.move(tmp_path / "kept", tmp_path / "disk/experiments")
    roomy = changed(options, path__experiments_root="disk/experiments")
    expected = finish(changed(roomy, path__experiments_root="experiments"), tmp_path / "whole")
    resumed = finish_there(roomy, tmp_path)
    assert differences(expected, resumed) == []


def finish_there(options: dict, root: Path) -> dict:
    """Goes on with the run below disk/ and returns its last checkpoint."""
    (root / "experiments").symlink_to(root / "disk/experiments")
    return finish(options, root)


def test_a_limit_on_the_size_of_files_is_told(options, tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 64; {written(options, tmp_path)}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 4
    last = done.stderr.strip().splitlines()[-1]
    told = r"error: cannot save 1\.state: needs \d+ kB, .* free, but a quota or a limit on the size of files is reached"
    assert re.match(told, last), last
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "disk").rglob("*.tmp"))


@needs_mount
def test_a_folder_that_cannot_be_written_is_told_before_training(options, tmp_path):
    script = f"mkdir disk; mount --bind disk disk; mount -o remount,ro,bind disk; {written(options, tmp_path)}"
    done = in_namespace(script, tmp_path)
    assert done.returncode == 4
    assert said(done) == ["error: cannot write disk/experiments: Read-only file system"]


def test_a_file_in_the_place_of_the_folder_is_told(options, tmp_path):
    (tmp_path / "disk").write_text("no folder")
    done = subprocess.run(["bash", "-c", written(options, tmp_path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 4
    assert said(done) == ["error: cannot write disk/experiments: Not a directory"]


@pytest.mark.long
@needs_mount
def test_curves_that_cannot_be_written_cost_no_training(options, tmp_path):
    options["logger"]["use_tb_logger"] = True
    script = f"""mkdir -p disk/experiments/tb_logger; mount -t tmpfs -o size=8k tmpfs disk/experiments/tb_logger
        {written(options, tmp_path)}"""
    done = in_namespace(script, tmp_path)
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "TensorBoard" in line]
    assert warning.endswith("cannot write TensorBoard's files: No space left on device; training goes on without them")
    assert "Traceback" not in done.stderr and "End of training after 8 iterations" in done.stderr


@pytest.mark.long
@needs_mount
@pytest.mark.parametrize("folder", ["models", "training_states"])
def test_folders_that_can_only_be_read_are_told_before_a_run_goes_on(options, tmp_path, folder):
    finish(changed(options, path__experiments_root="experiments", train__total_iter=2), tmp_path)
    (tmp_path / "experiments").rename(tmp_path / "moved")
    (tmp_path / "disk").mkdir()
    (tmp_path / "moved").rename(tmp_path / "disk/experiments")
    place = f"disk/experiments/tiny/{folder}"
    script = f"""mount --bind {place} {place}; mount -o remount,ro,bind {place}
        {written(options, tmp_path)} --auto_resume"""
    done = in_namespace(script, tmp_path)
    assert done.returncode == 4, done.stderr
    (line,) = said(done)
    told = Path("disk/experiments/tiny", folder)
    assert line == f"error: cannot write {told}: Read-only file system"


@pytest.mark.long
@needs_mount
def test_a_history_that_cannot_be_written_ends_the_run_after_saving(options, tmp_path):
    """Checkpoints are on another disk than the history, which is full soon."""
    options = changed(options, logger__save_checkpoint_freq=1000, logger__print_freq=1, train__total_iter=2)
    finish(changed(options, path__experiments_root="experiments"), tmp_path)
    options = changed(options, train__total_iter=100_000, val__val_freq=100_000)
    script = f"""mkdir -p disk/experiments/tiny
        mount -t tmpfs -o size=140k tmpfs disk/experiments/tiny; cp -r experiments/tiny/*.* disk/experiments/tiny
        for part in models training_states; do mkdir disk/experiments/tiny/$part
            mount --bind experiments/tiny/$part disk/experiments/tiny/$part; done
        {written(options, tmp_path)} --auto_resume"""
    done = in_namespace(script, tmp_path)
    assert done.returncode == 4, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    told = re.fullmatch(r"error: cannot write .*history\.jsonl: No space left on device; saved (\d+)\.state", last)
    assert told, last
    checkpoint, _ = CheckpointFolder(tmp_path / "experiments/tiny").latest()
    assert checkpoint is not None and checkpoint.iteration == int(told[1])
