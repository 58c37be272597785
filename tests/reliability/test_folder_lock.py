"""One program to a folder, by whatever path it is reached and on whatever disk."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from support.training import changed

from basicsr.engine import run_folder
from basicsr.engine.run_folder import FolderLock
from basicsr.train import train_pipeline
from basicsr.utils.errors import CheckpointError
from basicsr.utils.logger import get_root_logger


def from_another_process(folder: Path, *, then_die: bool = False) -> str:
    """What another process gets that asks for a folder: '' where it is let in."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lock = FolderLock(folder, "trains there")
            if not then_die:
                lock.close()
            answer = ""
        except CheckpointError as error:
            answer = str(error)
        except BaseException as error:
            answer = f"traceback: {error!r}"
        os.write(writer, answer.encode())
        if then_die:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return answer


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Nobody here holds a lock that is about to be freed."""
    monkeypatch.setattr(run_folder, "_SECONDS", 0.05)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "disk/experiments/run"
    folder.mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/run").symlink_to(folder)
    (tmp_path / "links/experiments").symlink_to(tmp_path / "disk/experiments")
    return folder


PATHS = {
    "itself": "disk/experiments/run",
    "a link to it": "links/run",
    "a link to its parent": "links/experiments/run",
    "a way around": "disk/../disk/experiments/../experiments/run",
}


@pytest.mark.parametrize("ours, theirs", [(PATHS["itself"], path) for path in PATHS.values()])
def test_two_paths_of_one_folder_are_one_folder(run, tmp_path, ours, theirs):
    lock = FolderLock(tmp_path / ours, "trains there")
    told = from_another_process(tmp_path / theirs)
    assert told == (
        f"{tmp_path / theirs} is in use: process {os.getpid()} on {socket.gethostname()} trains there; wait for it,"
        " stop it, or give another name"
    )
    assert from_another_process(run.with_name("other")) == ""
    lock.close()
    assert not list(run.parent.rglob(".*"))
    assert from_another_process(tmp_path / theirs) == ""


def test_a_folder_that_is_made_and_one_that_is_renamed(tmp_path):
    folder = tmp_path / "experiments/run"
    lock = FolderLock(folder, "trains there")
    assert "is in use" in from_another_process(folder)
    folder.mkdir()
    lock.take_inside()
    lock.take_inside()
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere/moved")  # the same folder by a path that no link leads to
    assert "is in use" in from_another_process(moved)
    lock.close()
    assert from_another_process(moved) == ""
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]


def test_a_bind_mount_of_a_folder_is_that_folder(run, tmp_path):
    mount = tmp_path / "mount/point"
    mount.mkdir(parents=True)
    lock = FolderLock(run, "trains there")
    script = (
        f"mount --bind {run} {mount} && python3 -c 'import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX |"
        f" fcntl.LOCK_NB)' {mount}/.lock"
    )
    mounted = subprocess.run(["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True)
    lock.close()
    if "mount" in mounted.stderr:
        pytest.skip(f"no mounts here: {mounted.stderr[:100]}")
    assert "BlockingIOError" in mounted.stderr


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_where_the_disk_knows_no_locks_their_existence_is_the_lock(run, tmp_path, monkeypatch, number, caplog):
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    lock = FolderLock(run, "trains there")
    told = from_another_process(tmp_path / "links/run")
    assert f"is in use: process {os.getpid()} on {socket.gethostname()} trains there; " in told
    assert told.endswith(f"if it has gone, remove {run.parent}/.run.lock.held")
    lock.close()
    assert not list(run.parent.rglob(".*.held"))
    assert from_another_process(run, then_die=True) == ""
    assert (run.parent / ".run.lock.held").exists()
    with monkeypatch.context() as patch:
        patch.setattr(get_root_logger(), "handlers", [caplog.handler])
        FolderLock(run, "trains there").close()
    assert "took over the lock of process" in caplog.text
    (run.parent / ".run.lock.held").write_text("4711\nanother.host\n")  # nobody here can know whether it lives
    told = from_another_process(run)
    assert "is in use: process 4711 on another.host trains there" in told and "if it has gone, remove" in told


def test_a_process_that_was_killed_holds_nothing(run):
    assert from_another_process(run, then_die=True) == ""
    FolderLock(run, "trains there").close()


def test_links_that_lead_nowhere_are_told_and_nothing_is_made(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments/run").symlink_to(tmp_path / "unmounted/run")
    (tmp_path / "experiments/loop").symlink_to(tmp_path / "experiments/loop")
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted/experiments")
    for folder, link in {
        "experiments/run": "experiments/run",
        "experiments/loop": "experiments/loop",
        "gone/run": "gone",
    }.items():
        with pytest.raises(CheckpointError, match=rf"{tmp_path / link} is a link to .*, which is not there; mount"):
            FolderLock(tmp_path / folder, "trains there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experiments", "gone"]


def test_curves_that_two_folders_of_experiments_share_belong_to_one_run(mcadkd, tmp_path):
    curves = tmp_path / "disk/tb_logger"
    curves.mkdir(parents=True)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone/tb_logger").symlink_to(curves)
    with FolderLock(curves / "tiny", "trains there"):
        for log in ({"use_tb_logger": True}, {"use_tb_logger": False}):
            with pytest.raises(
                CheckpointError, match=r"clone/tb_logger/tiny is in use: process \d+ on \S+ trains there"
            ):
                train_pipeline(changed(mcadkd, logger=log), root=tmp_path / "clone")
            (curves / "tiny").mkdir(exist_ok=True)  # it would be renamed
    assert [path.name for path in (tmp_path / "clone").iterdir()] == ["tb_logger"]
