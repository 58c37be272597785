"""Ranks that would not do the same are told apart before the first step; nobody waits for one that cannot begin."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.jobs import TRAIN, Job, status_of, torchrun, write_options
from support.training import (
    changed,
    evaluate_different_sets,
    free_port,
    run_ranks,
    told_by_different_ranks,
    told_in_own_folders,
    weights_of_their_own,
)

from basicsr.engine.process import meeting
from basicsr.engine.process.meeting import LaunchedRank, Meeting, Start, read_launched_rank
from basicsr.engine.process.rank_watchdog import Heartbeats, MainThread, this_process
from basicsr.utils.errors import DataError, LostRankError, MachineError, UserError

SOUND = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def outputs(root: Path) -> list[list[str]]:
    """Exit code and lines of both ranks, but for what is odd about the options."""
    told = [(root / f"told.{rank}").read_text().splitlines() for rank in (0, 1)]
    return [[line for line in lines if " WARNING: options" not in line] for lines in told]


def test_other_options_on_a_rank_are_refused_by_key_and_value(mcadkd, tmp_path):
    other = changed(mcadkd, train__optim_g__lr=0.5, logger__print_freq=7)
    run_ranks(told_by_different_ranks, 2, [mcadkd, other], str(tmp_path), {})
    first, second = outputs(tmp_path)
    assert first[:2] == ["2", "[rank 0] error: the ranks do not begin the same run:"]
    assert set(first[2:4]) == {
        f"  logger.print_freq: {mcadkd['logger'].get('print_freq', 100)} on rank 0, 7 on rank 1",
        f"  train.optim_g.lr: {mcadkd['train']['optim_g']['lr']} on rank 0, 0.5 on rank 1",
    }
    assert first[4:] == ["give all of them the same options file, command line, code and packages"]
    assert second == ["2"], "one is enough to tell it"
    assert not (tmp_path / "experiments").exists()


def test_options_that_one_rank_cannot_read_end_both_at_once(mcadkd, tmp_path):
    broken = changed(mcadkd, datasets__val__dataroot_gt=str(tmp_path / "not there"))
    run_ranks(told_by_different_ranks, 2, [mcadkd, broken], str(tmp_path), {})
    first, second = outputs(tmp_path)
    assert first[0] == "2" and first[1].startswith("[rank 0] error: [rank 1] the options: one mistake")
    assert "not there" in first[2] and second == ["2"]


@pytest.mark.parametrize("what", ["train", pytest.param("val", marks=pytest.mark.long)])
def test_images_that_only_one_rank_has_are_told_before_training(mcadkd, tmp_path, what):
    options = changed(mcadkd)
    for role in ("gt", "lq"):
        for root in (tmp_path / "node0", tmp_path / "node1"):
            shutil.copytree(options["datasets"][what][f"dataroot_{role}"], root / role)
        options["datasets"][what][f"dataroot_{role}"] = role
        sorted((tmp_path / "node1" / role).iterdir())[1].unlink()
    run_ranks(told_in_own_folders, 2, options, str(tmp_path), {})
    first, second = outputs(tmp_path)
    count = len(list((tmp_path / "node0/gt").iterdir()))
    assert first[:2] == ["3", "[rank 0] error: the ranks do not work on the same:"]
    called = "training images (train)" if what == "train" else "val"
    assert f"  {called}: images: {count} on rank 0, {count - 1} on rank 1" in first
    assert second == ["3"] and not list(tmp_path.glob("experiments/*"))


def test_an_evaluation_of_sets_that_differ_ends_on_both_ranks(tmp_path):
    run_ranks(evaluate_different_sets, 2, [5, 4], str(tmp_path / "out"))
    told = [(tmp_path / f"out.{rank}").read_text() for rank in (0, 1)]
    assert (
        told
        == ["the ranks evaluate other datasets or by other metrics: rank 0 5 images by psnr; rank 1 4 images by psnr"]
        * 2
    )


def test_weights_that_differ_are_named(tmp_path):
    run_ranks(weights_of_their_own, 2, str(tmp_path / "out"))
    first, second = ((tmp_path / f"out.{rank}").read_text() for rank in (0, 1))
    assert first == second and "  weights: " in first and "same" not in first.splitlines()[1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two': it must be a whole number from 1 to 1000000"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0': it must be"),
        ({"RANK": "2"}, "RANK is '2': it must be a whole number from 0 to 1"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "1.0"}, "RANK is '1.0'"),
        ({"RANK": "\u0661"}, "RANK is"),
        ({"LOCAL_RANK": "9" * 5000}, "LOCAL_RANK is"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999': it must be a whole number from 1 to 65535"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR not set"),
    ],
)
def test_a_launchers_variables_out_of_range_are_named(monkeypatch, changes, told):
    for name, value in {**SOUND, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError) as caught:
        read_launched_rank("pytorch", None)
    assert str(caught.value).startswith((told, f"--launcher pytorch: {told}")) and len(str(caught.value)) < 6000


def test_an_address_that_is_not_known_and_a_port_without_an_answer_are_told_in_bounded_time(monkeypatch):
    monkeypatch.setattr(meeting, "_NAME_SECONDS", 0.0)
    with pytest.raises(MachineError, match=r"MASTER_ADDR is 'no-such-host\.invalid': no machine of this name is known"):
        Meeting(LaunchedRank(1, 1, 2, "no-such-host.invalid", 29500), 60, "")
    with pytest.raises(MachineError, match=r"nobody answered at MASTER_ADDR 127\.0\.0\.1, MASTER_PORT \d+, for 0\.2 s"):
        Meeting(LaunchedRank(1, 1, 2, "127.0.0.1", free_port()), 0.2, "")


class Ranks:
    """Meetings of several ranks in this process, a thread each."""

    def __init__(self, starts: list[Start], size: int | None = None, seconds: float = 20.0) -> None:
        self._port, self._size, self._seconds = free_port(), size or len(starts), seconds
        self.meetings: dict[int, Meeting] = {}
        self.came: dict[int, object] = {}
        threads = [threading.Thread(target=self._meet, args=entry) for entry in enumerate(starts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _meet(self, rank: int, start: Start) -> None:
        place = LaunchedRank(rank, rank, self._size, "127.0.0.1", self._port)
        made = self.meetings[rank] = Meeting(place, self._seconds, "test")
        try:
            self.came[rank] = made.join(start, this_process())
        except UserError as error:
            self.came[rank] = error


def facts(**values: str) -> Start:
    return Start(values, {})


def test_what_differs_is_told_with_the_ranks_that_have_it():
    ranks = Ranks([facts(PyTorch="2.13.0"), facts(PyTorch="2.6.0"), facts(PyTorch="2.13.0")])
    errors = [str(ranks.came[rank]) for rank in range(3)]
    assert errors[0].splitlines()[1] == "  PyTorch: 2.13.0 on ranks 0 and 2, 2.6.0 on rank 1" and len(set(errors)) == 1


def test_a_rank_that_does_not_come_is_named():
    ranks = Ranks([facts(), facts()], size=3, seconds=1.0)
    assert [type(ranks.came[rank]) for rank in (0, 1)] == [LostRankError] * 2
    assert str(ranks.came[0]).startswith("rank 2 of 3 (WORLD_SIZE) did not come within 1 s")


def test_a_rank_that_gives_no_sign_of_life_is_found_and_a_failure_is_heard_of():
    ranks = Ranks([facts(), facts()])
    main = MainThread()
    beats = Heartbeats(ranks.meetings[0], 1.0, main)
    try:
        wait_until(lambda: beats.silent)
        assert beats.silent == [1] and beats.failure is None
        ranks.meetings[1].leave(DataError("a.png is damaged"))
        wait_until(lambda: beats.failure)
        assert beats.failure == (1, 3, "a.png is damaged") and not beats.stuck
    finally:
        beats.close()
        main.close()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("asked", [False, True])
def test_a_rank_that_is_stopped_ends_the_job(mcadkd, tmp_path, victim, asked):
    """Also where the others wait for it in a collective, in which Python sees no signal."""
    options = changed(mcadkd, train__total_iter=100_000, logger__print_freq=1, val__val_freq=100_000)
    options["dist_params"] = {"timeout": 60 if asked else 12}
    port, jobs = free_port(), []
    file = write_options(options, tmp_path)
    for rank in (0, 1):
        variables = {**SOUND, "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
        jobs.append(Job([sys.executable, TRAIN, "-opt", file, "--launcher", "pytorch"], tmp_path, variables))
    try:
        history = tmp_path / "experiments/tiny/history.jsonl"
        jobs[0].until(lambda: history.exists() and '"iter": 5' in history.read_text())
        jobs[victim].process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        if asked:
            time.sleep(1)
            jobs[1 - victim].process.send_signal(signal.SIGTERM)
        assert jobs[1 - victim].wait(40) == 7
        took = time.monotonic() - began
        output = jobs[1 - victim].output
    finally:
        for job in jobs:
            job.kill()
    print(f"\nrank {victim} stopped{', the other asked to end' if asked else ''}: it ended after {took:.1f} s")
    line = output.strip().splitlines()[-1]
    assert f"error: rank {victim} (process {jobs[victim].process.pid}" in line
    assert f"gave no sign of life for {10 if asked else 12} s" in line and "Traceback" not in output
    assert status_of(tmp_path / "experiments/tiny")["exit_code"] == 7


@pytest.mark.long
def test_under_torchrun_a_mistake_is_told_once_and_nothing_else(mcadkd, tmp_path):
    broken = changed(mcadkd, train__optim_g__lr="fast")
    command = [*torchrun(f"--master_port={free_port()}"), TRAIN, "-opt", write_options(broken, tmp_path)]
    with Job([*command, "--launcher", "pytorch"], tmp_path) as job:
        assert job.wait() == 1
        output = job.output
    assert output.count(": one mistake") == 1 and "preempted" not in output and "stopped before" not in output
