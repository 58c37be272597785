"""A rank that dies ends the job at once, or the job goes on by itself where torchrun may restart it."""

from __future__ import annotations

import time

import pytest
from support.jobs import TRAIN, Job, status_of, torchrun, write_options
from support.training import changed, checkpoint_of, differences, free_port, run_ranks, train_rank_all

from basicsr.engine.checkpoint import CheckpointFolder

ENDLESS = 100_000
"""Iterations of a run that is to be cut off."""


def long_run(mcadkd, total_iter: int) -> dict:
    return changed(
        mcadkd,
        train__total_iter=total_iter,
        logger__save_checkpoint_freq=5,
        logger__print_freq=1,
        val__val_freq=8,
        datasets__train__num_worker_per_gpu=1,
    )


def checkpoints(folder):
    return [int(file.stem) for file in folder.glob("experiments/tiny/training_states/*.json")]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_rank_that_is_killed_ends_the_job(mcadkd, tmp_path, victim):
    options = changed(long_run(mcadkd, ENDLESS), logger__keep_checkpoints=3)
    command = [*torchrun(f"--master_port={free_port()}"), TRAIN, "-opt", write_options(options, tmp_path)]
    with Job([*command, "--launcher", "pytorch"], tmp_path) as job:
        job.until(lambda: checkpoints(tmp_path))
        assert len(job.processes()) == 1 + 2 * 2, "torchrun, two ranks, a worker each"
        killed = time.monotonic()
        job.kill_rank(victim)
        code = job.wait(30)
        took = time.monotonic() - killed
        assert code != 0
        assert not job.processes(), "no process is left, nor any worker of the loader"
        output = job.output
    print(f"\nrank {victim} killed: the job ended after {took:.1f} s with exit code {code}")
    assert f"rank      : {victim} (local_rank: {victim})" in output and "Signal 9 (SIGKILL)" in output
    newest, remarks = CheckpointFolder(tmp_path / "experiments/tiny").latest()
    assert newest is not None and newest.iteration >= 5 and remarks == []


@pytest.mark.parametrize("victims", [pytest.param((0, 1), marks=pytest.mark.long), (1,)])
def test_torchrun_starts_it_again_and_it_ends_bitwise_equal(mcadkd, tmp_path, victims):
    options = long_run(mcadkd, 20 + 20 * len(victims))
    run_ranks(train_rank_all, 2, [options], str(tmp_path / "whole"))
    file = write_options(options, tmp_path / "killed")
    command = [*torchrun("--max-restarts=2", f"--master_port={free_port()}"), TRAIN, "-opt", file]
    with Job([*command, "--launcher", "pytorch"], tmp_path / "killed") as job:
        for number, victim in enumerate(victims):
            reached = 10 + 20 * number
            job.until(lambda reached=reached: max(checkpoints(tmp_path / "killed"), default=0) >= reached)
            job.kill_rank(victim)
        assert job.wait() == 0, job.output
        assert not job.processes()
        output = job.output
    assert output.count("Resumed ") >= len(victims) and "End of training after" in output
    ends = [
        checkpoint_of(tmp_path / f"{name}/experiments/tiny", options["train"]["total_iter"])
        for name in ("whole", "killed")
    ]
    assert differences(*ends) == []
    assert not list(tmp_path.glob("killed/experiments/*_archived_*")), "what was trained is not set aside"


@pytest.mark.long
def test_ranks_whose_torchrun_is_killed_save_and_end(mcadkd, tmp_path):
    options = changed(long_run(mcadkd, ENDLESS), logger__save_checkpoint_freq=ENDLESS)
    command = [*torchrun(f"--master_port={free_port()}"), TRAIN, "-opt", write_options(options, tmp_path)]
    history = tmp_path / "experiments/tiny/history.jsonl"
    with Job([*command, "--launcher", "pytorch"], tmp_path) as job:
        job.until(lambda: history.exists() and '"iter": 5' in history.read_text())
        job.process.kill()
        job.process.wait()
        end = time.monotonic() + 60
        while job.processes():
            assert time.monotonic() < end, job.output
            time.sleep(0.1)
    status = status_of(tmp_path / "experiments/tiny")
    assert (status["state"], status["exit_code"]) == ("preempted", 75)
    newest, remarks = CheckpointFolder(tmp_path / "experiments/tiny").latest()
    assert newest is not None and remarks == [] and status["checkpoint"] == newest.path.name
