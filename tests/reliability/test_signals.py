"""Requests to stop by a signal: every rank stops after the same iteration, the state is saved, the run goes on bitwise.

Under torchrun a signal may reach the agent, which hands it to all ranks, or one rank alone, which tells the others.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.jobs import ROOT, Job, status_of, torchrun, write_options
from support.kills import PHASES, act_in_phase, live
from support.training import changed, checkpoint_of, differences, free_port, start
from torch.distributed.run import get_args_parser

from basicsr.engine.process.command import StopRequest, run_command
from basicsr.train import main

PREEMPTED = 75
ENDLESS = 100_000


SIGNALS = {name: getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "SIGXCPU")}
WATCHED = str(ROOT / "tests/support/watched_train.py")


def endless(mcadkd: dict[str, Any], tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """A run that ends by a signal only; validation and saving take a good part of it."""
    return changed(
        mcadkd,
        **{
            "train__total_iter": ENDLESS,
            "train__pixel_opt": {"type": "L1OnRecord", "record": str(tmp_path / "draws"), "loss_weight": 3.0},
            "logger__save_checkpoint_freq": 7,
            "logger__keep_checkpoints": 2,
            "logger__print_freq": 1,
            "val__val_freq": 5,
            "datasets__train__num_worker_per_gpu": 1,
            **changes,
        },
    )


def check_preempted(folder: Path, output: str, ranks: int) -> int:
    """The iteration after which every rank stopped, and that was saved and told, once."""
    experiment = folder / "experiments/tiny"
    told = [line.split("preempted: saved ")[1] for line in output.splitlines() if "preempted: saved " in line]
    assert len(told) == 1, output[-3000:]
    iteration = int(told[0].split(".state")[0])
    assert told[0] == f"{iteration}.state; go on with --auto_resume"
    assert iteration == max(int(file.stem) for file in (experiment / "training_states").glob("*.json"))
    steps = Counter(line.split()[0] for line in (folder / "draws.txt").read_text().splitlines())
    assert steps == {str(rank): iteration for rank in range(ranks)}, "ranks stop after the same iteration"
    check_status(experiment, "preempted", PREEMPTED, iteration)
    return iteration


def check_status(experiment: Path, state: str, exit_code: int | None, iteration: int) -> None:
    status = status_of(experiment)
    assert (status["state"], status["exit_code"], status["iteration"]) == (state, exit_code, iteration)
    assert status["checkpoint"] == f"{iteration}.state" and status["message"]


def go_on(options: dict[str, Any], folder: Path, iteration: int, ranks: int) -> None:
    """Trains `iteration` + 6 iterations, from where the run stopped and from the start, and asserts equal ends."""
    options = changed(options, train__total_iter=iteration + 6)
    ends = []
    for root in (folder, folder / "whole"):
        assert not live(options, root, ranks, {})
        ends.append(checkpoint_of(root / "experiments/tiny", iteration + 6))
    assert differences(*ends) == []


def command_that_signals_itself(folder: str, number: int, phase: str, visit: int) -> None:
    """The command in a process of its own, to which a signal comes in the midst of a phase."""
    os.chdir(folder)
    handle = os.open("output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 2)
    act_in_phase(phase, visit, 0.002, partial(os.kill, os.getpid(), number))
    sys.exit(run_command(lambda: main(["-opt", "options.yml"])))


def _short(values: Any, kept: set[Any]) -> list[Any]:
    return [value if value in kept else pytest.param(*value, marks=pytest.mark.long) for value in values]


@pytest.mark.parametrize(
    ("name", "phase"),
    _short(product(SIGNALS, PHASES), {("SIGHUP", "saving"), ("SIGINT", "training"), ("SIGXCPU", "validating")}),
)
def test_one_process_saves_and_ends_with_75(mcadkd, tmp_path, name, phase):
    options = endless(mcadkd, tmp_path)
    write_options(options, tmp_path)
    process = start(command_that_signals_itself, str(tmp_path), SIGNALS[name], phase, 2)
    process.join(60)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == PREEMPTED, output[-3000:]
    assert output.strip().splitlines()[-1].startswith("preempted: saved")
    go_on(options, tmp_path, check_preempted(tmp_path, output, 1), 1)


@pytest.mark.parametrize(
    ("name", "phase", "target"),
    _short(
        product(SIGNALS, PHASES, ("agent", "rank 0", "rank 1", "everyone")),
        {("SIGUSR1", "validating", "agent")},
    ),
)
def test_under_torchrun_all_ranks_stop_after_one_iteration(mcadkd, tmp_path, name, phase, target):
    options = endless(mcadkd, tmp_path)
    if "--signals-to-handle" not in get_args_parser().format_help():
        pytest.skip("this version's torchrun forwards no further signals")
    begin = torchrun(f"--signals-to-handle={','.join(SIGNALS)}", f"--master_port={free_port()}")
    watched = [WATCHED, phase, "2", "0.002", target, str(int(SIGNALS[name]))]
    command = [*begin, *watched, "-opt", write_options(options, tmp_path), "--launcher", "pytorch"]
    with Job(command, tmp_path, {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}) as job:
        code = job.wait(90)
        assert not job.processes()
        output = job.output
    # Its own code: it was signalled, or a rank ended with another than 0 (75, as it says).
    assert code == 1
    if target.startswith("rank"):
        assert f"exitcode  : {PREEMPTED}" in output
    go_on(options, tmp_path, check_preempted(tmp_path, output, 2), 2)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
            os.kill(os.getpid(), signal.SIGXCPU)
            assert stop.signal is signal.SIGXCPU
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
