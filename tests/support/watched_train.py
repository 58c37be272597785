"""basicsr/train.py under torchrun, with a thread that sends a signal in the midst of a phase.

    watched_train.py PHASE VISIT DELAY TARGET SIGNAL [arguments of train.py]

TARGET is who gets the signal: 'agent' (torchrun), 'rank R', or 'everyone' (all processes of the job, workers too,
as SLURM does with those of a step).
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from functools import partial

from support.jobs import TRAIN, mark_of_this_job, processes_of, send
from support.kills import act_in_phase


def _act(target: str, number: int) -> None:
    if target == "agent":
        send(os.getppid(), number)
    elif target == "everyone":
        for process in processes_of(mark_of_this_job()):
            send(process, number)
    else:
        send(os.getpid(), number)


phase, visit, delay, target, number = sys.argv[1:6]
sys.argv = [TRAIN, *sys.argv[6:]]
watcher = target.removeprefix("rank ") if target.startswith("rank") else "0"
if os.environ["RANK"] == watcher:
    act_in_phase(phase, int(visit), float(delay), partial(_act, target, int(number)))
importlib.import_module("support.losses")
runpy.run_path(TRAIN, run_name="__main__")
