"""Two nodes under torchrun (two agents on this machine): one is lost, started again, and the job ends as if it had not.

What lets the surviving agent wait for the other: restarts (`--max-restarts`), the same `--rdzv-id`, a rendezvous whose
store outlives the lost node (the agent at `--rdzv-endpoint` keeps it; where any node may be lost it must stand
elsewhere), and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: without it PyTorch 2.13's surviving agent, if it has rank 0, does
not tell the new one where the ranks are to meet, and both end after a minute (`DistStoreError: wait timeout after
60000ms`).
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import pytest
from support.jobs import TRAIN, Job, torchrun, write_options
from support.training import changed, checkpoint_of, differences, free_port, run_ranks, train_rank_all

# Without these a lost node is missed after 15 s only (an attempt each 5 s, 3 attempts).
KEEP_ALIVE = "keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=120"
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
STORE = (
    "import sys, time; from torch.distributed import TCPStore;"
    "store = TCPStore('127.0.0.1', int(sys.argv[1]), is_master=True, wait_for_workers=False); time.sleep(600)"
)


def options_of(mcadkd, tmp_path) -> dict:
    options = changed(
        mcadkd,
        train__total_iter=40,
        logger__save_checkpoint_freq=5,
        logger__print_freq=1,
        val__val_freq=8,
        datasets__train__num_worker_per_gpu=1,
    )
    run_ranks(train_rank_all, 2, [options], str(tmp_path / "whole"))
    return options


def agent(file: str, port: int, conf: str) -> list[str]:
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=tiny", f"--rdzv-conf={conf}")
    command = torchrun("--nnodes=2", "--max-restarts=3", "--local-addr=127.0.0.1", *rendezvous, processes=1)
    return [*command, TRAIN, "-opt", file, "--launcher", "pytorch", "--auto_resume"]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def newest(folder: Path) -> int:
    return max((int(file.stem) for file in folder.glob("experiments/tiny/training_states/*.json")), default=0)


def lose_a_node(command: list[str], folder: Path, lost: int, port: int) -> tuple[float, list[str]]:
    """Runs two agents, kills one with all it started once there is a checkpoint, and starts it again.

    Returns:
        Seconds from the kill to the next checkpoint, and what the agents printed.
    """
    jobs = [Job(command, folder, ENVIRONMENT)]
    try:
        jobs[0].until(lambda: is_listening(port))  # else the second may come to keep the store
        jobs.append(Job(command, folder, ENVIRONMENT))
        jobs[0].until(lambda: newest(folder) >= 10)
        killed = time.monotonic()
        jobs[lost].kill()
        reached = newest(folder)
        time.sleep(1)  # as long as it takes somebody to notice
        jobs.append(Job(command, folder, ENVIRONMENT))
        survivor, again = jobs[1 - lost], jobs[2]
        survivor.until(lambda: newest(folder) > reached)
        took = time.monotonic() - killed
        assert [survivor.wait(), again.wait()] == [0, 0], survivor.output + again.output
        assert not survivor.processes() and not again.processes()
        return took, [job.output for job in jobs]
    finally:
        for job in jobs:
            job.kill()


def check(options: dict, tmp_path: Path, outputs: list[str]) -> None:
    assert sum(output.count("Resumed ") for output in outputs) >= 1
    ends = [checkpoint_of(tmp_path / f"{name}/experiments/tiny", 40) for name in ("whole", "lost")]
    assert differences(*ends) == []
    assert not list(tmp_path.glob("lost/experiments/*_archived_*/training_states/*.json"))


@pytest.mark.long
def test_a_node_is_lost_and_comes_back(mcadkd, tmp_path):
    options = options_of(mcadkd, tmp_path)
    port = free_port()
    command = agent(write_options(options, tmp_path / "lost"), port, KEEP_ALIVE)
    took, outputs = lose_a_node(command, tmp_path / "lost", 1, port)
    print(f"\nthe node without the store was lost: {took:.1f} s from the kill to the next checkpoint")
    check(options, tmp_path, outputs)


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_any_node_may_be_lost_where_the_store_stands_elsewhere(mcadkd, tmp_path, lost):
    options = options_of(mcadkd, tmp_path)
    port = free_port()
    command = agent(write_options(options, tmp_path / "lost"), port, f"{KEEP_ALIVE},is_host=0")
    with Job([sys.executable, "-c", STORE, str(port)], tmp_path):
        took, outputs = lose_a_node(command, tmp_path / "lost", lost, port)
    print(f"\nnode {lost} was lost: {took:.1f} s from the kill to the next checkpoint")
    check(options, tmp_path, outputs)
