"""Whether other programs use the cores that this process computes on."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

_SPARE = 0.25  # cores that others may take of those we compute on
_SHORTEST = 0.15  # seconds, below which the kernel's counters, of hundredths, are too coarse
_BUSY = (0, 1, 2, 5, 6, 7)  # of /proc/stat: user, nice, system, irq, softirq, steal


@dataclass(frozen=True)
class CpuTimes:
    """What the cores that this process may use have done so far, in seconds of a core.

    Attributes:
        busy: of all programs.
        own: of this process, and of those that it started and that have ended.
        at: when, by a clock.
        cores: how many there are.
    """

    busy: float
    own: float
    at: float
    cores: int


def cpu_times() -> CpuTimes | None:
    """What the cores have done so far, where Linux tells; None elsewhere."""
    try:
        cores = os.sched_getaffinity(0)
        lines = Path("/proc/stat").read_text("ascii").splitlines()
    except (OSError, AttributeError, ValueError):
        return None
    ended = os.times()
    own = time.process_time() + ended.children_user + ended.children_system
    ticks = 0
    for line in lines:
        name, *counters = line.split()
        if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in cores:
            ticks += sum(int(counters[index]) for index in _BUSY if index < len(counters))
    return CpuTimes(ticks / os.sysconf("SC_CLK_TCK"), own, time.perf_counter(), len(cores))


def cores_of_others(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """How many cores other programs took in between, on average; None where it was too short, or is not known."""
    if before is None or after is None or after.at - before.at < _SHORTEST or after.busy <= before.busy:
        return None
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / (after.at - before.at)


def load_told(others: float | None, cores: int, threads: int) -> str:
    """What to say where other programs take more than the cores that `threads` of ours leave; empty where not.

    Args:
        others: how many cores they take; None if that is not known.
        cores: how many there are.
        threads: how many of them we compute on.
    """
    if others is None or others <= max(cores - threads, 0) + _SPARE:
        return ""
    return f"other programs took {others:.1f} of {cores} cores meanwhile"


def load_between(before: CpuTimes | None, after: CpuTimes | None, threads: int) -> str:
    """As `load_told`, of what happened between two looks."""
    return load_told(cores_of_others(before, after), before.cores if before is not None else 1, threads)


def load_now(threads: int, seconds: float = 0.2) -> str:
    """As `load_told`, of a moment in which this process does nothing."""
    before = cpu_times()
    if before is not None:
        time.sleep(seconds)
    return load_between(before, cpu_times(), threads)
