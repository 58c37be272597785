"""Training processes that kill themselves at a moment of a chosen phase, and what they leave on record."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

from support.training import PROCESSES, enter_rank, free_port, launch, start

from basicsr.train import train_pipeline

PHASES = ("training", "validating", "saving")
LONGEST = {"training": 0.02, "validating": 0.03, "saving": 0.01}
"""Seconds that a phase of the tiny runs takes about; a kill falls somewhere within."""

_PLACES = {
    ("engine/checkpoint.py", "save"): "saving",
    ("engine/checkpoint.py", "save_named"): "saving",
    ("basicsr/train.py", "_save"): "saving",  # where ranks other than 0 wait for it
    ("engine/validation.py", "validate"): "validating",
    ("basicsr/train.py", "train_step"): "training",
}


@dataclass(frozen=True)
class Kill:
    """When a process kills itself by SIGKILL.

    Attributes:
        phase: one of `PHASES`.
        visit: how many times the process enters the phase before, from 1.
        delay: seconds after it has entered.
        record: file to which a line with the phase is appended at the moment of the kill.
    """

    phase: str
    visit: int
    delay: float
    record: str


def random_kill(generator: random.Random, phase: str, record: Path) -> Kill:
    """A kill within the first visits of a phase."""
    visits = {"training": 9, "validating": 2, "saving": 3}[phase]
    return Kill(phase, generator.randint(1, visits), generator.uniform(0, LONGEST[phase]), str(record))


def phase_of(frame: FrameType | None) -> str:
    """What a thread of a training process is doing, from its innermost frame outwards; 'between' for anything else."""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        for (place, function), phase in _PLACES.items():
            if name == function and file.endswith(place):
                return phase
        frame = frame.f_back
    return "between"


def act_in_phase(phase: str, visit: int, delay: float, act: Callable[[], None]) -> None:
    """Starts a thread that calls `act` once the main thread is in a phase; it looks from outside and changes nothing.

    Args:
        phase: one of `PHASES`.
        visit: how many times the main thread enters the phase before, from 1.
        delay: seconds after it has entered; less where visits are shorter.
        act: what to do.
    """
    sys.setswitchinterval(1e-4)
    main = threading.main_thread().ident
    assert main is not None
    threading.Thread(target=_watch, args=(main, phase, visit, delay, act), daemon=True).start()


def _watch(main: int, phase: str, visit: int, delay: float, act: Callable[[], None]) -> None:
    visits, before = 0, ""
    while True:
        time.sleep(2e-4)
        now = phase_of(sys._current_frames().get(main))
        visits += now == phase and before != phase
        before = now
        if now != phase or visits < visit:
            continue
        time.sleep(delay)
        if phase_of(sys._current_frames().get(main)) == phase:
            return act()
        before, delay = "", delay / 2  # the visit was shorter than that; the next one


def _kill_this_process(phase: str, record: str) -> None:
    handle = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{phase}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def train_to_a_kill(options: dict[str, Any], root: str, kill: Kill | None, launcher: str = "none") -> None:
    """Trains on from the newest checkpoint, to the kill or the end."""
    if kill is not None:
        act = partial(_kill_this_process, kill.phase, kill.record)
        act_in_phase(kill.phase, kill.visit, kill.delay, act)
    train_pipeline(options, launcher=launcher, auto_resume=True, root=root)  # type: ignore[arg-type]


def train_to_a_file(options: dict[str, Any], root: str, number: int) -> None:
    """Trains on from the newest checkpoint and kills itself before its `number`-th access to a checkpoint's folder.

    Accesses are those that Python audits: files opened, renamed and removed, in `models` and `training_states`.
    """
    folders = tuple(f"{root}/experiments/{options['name']}/{name}" for name in ("models", "training_states"))
    left = itertools.count(number - 1, -1)

    def kill_before(event: str, arguments: tuple[Any, ...]) -> None:
        accesses = event in ("open", "os.rename", "os.remove")
        if accesses and str(arguments[0]).startswith(folders) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill_before)
    train_pipeline(options, auto_resume=True, root=root)


def _train_rank(rank: int, options: dict[str, Any], root: str, kills: Mapping[int, Kill], quiet: bool) -> None:
    if quiet:  # the traceback of a rank whose neighbour is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train_to_a_kill(options, root, kills.get(rank), "pytorch")


def live(
    options: dict[str, Any], root: Path, ranks: int, kills: Mapping[int, Kill], *, all_at_once: bool = False
) -> bool:
    """One life of a run; returns whether it was killed.

    Args:
        options: of the run.
        root: folder of its experiments.
        ranks: processes.
        kills: by rank; no more than one of them.
        all_at_once: kill the other ranks with the first; otherwise they have to end by themselves within 30 seconds.
    """
    if ranks == 1:
        processes = [start(train_to_a_kill, options, str(root), kills.get(0))]
    else:
        port = free_port(following=1)
        arguments = (options, str(root), dict(kills), bool(kills))
        processes = [
            PROCESSES.Process(target=enter_rank, args=(_train_rank, rank, ranks, port, arguments))
            for rank in range(ranks)
        ]
        for process in processes:
            launch(process)
        wait([process.sentinel for process in processes], timeout=300)
        for process in processes:
            if all_at_once and any(other.exitcode == -signal.SIGKILL for other in processes):
                process.kill()
            process.join(30)
            assert process.exitcode is not None, "a rank waits for one that is gone"
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    killed = -signal.SIGKILL in codes
    assert killed or codes == [0] * ranks, codes
    assert not (killed and 0 in codes), f"a rank went on without the others: {codes}"
    return killed


def phases_on(record: Path) -> Counter[str]:
    """How many kills fell into each phase."""
    return Counter(record.read_text().split()) if record.exists() else Counter()
