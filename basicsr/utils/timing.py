"""Comparing several sides fairly: in turn, by medians and ratios of neighbours, with an eye on other programs' load."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FEWEST_ROUNDS = 3
_WIDEST = 0.15  # the middle half of some times, as a share of their median
_SPARE = 0.25  # cores that other programs may take of those we compute on
_SHORTEST = 0.15  # seconds, below which the kernel's counters, of hundredths, are too coarse
_BUSY = (0, 1, 2, 5, 6, 7)  # columns of /proc/stat: user, nice, system, irq, softirq, steal
Side = Callable[[], float]
Measured = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Spread:
    """Median of some measurements, and their lower and upper quartile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value; between values they are interpolated."""
    if not values:
        raise ValueError("there is no middle of no values")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(first: Sequence[float], second: Sequence[float]) -> Spread:
    """First divided by second, round by round: other load passes over neighbours alike, so ratios vary less."""
    return spread([one / other for one, other in zip(first, second, strict=True)])


def in_turn(
    sides: Mapping[str, Side],
    rounds: int,
    warm_up: int = 1,
    goes_on: Callable[[Measured], bool] = lambda measured: True,
) -> dict[str, list[float]]:
    """Measures every side once a round, every other round in reverse order; returns the measurements by name.

    After each of at most `rounds` counted rounds `goes_on` decides whether to go on; `warm_up` rounds go before.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for count in range(-warm_up, rounds):
        for name in sides if count % 2 == 0 else reversed(list(sides)):
            value = sides[name]()
            if count >= 0:
                measured[name].append(value)
        if 0 <= count < rounds - 1 and not goes_on(measured):
            break
    return measured


@dataclass(frozen=True)
class CpuTimes:
    """Seconds that our `cores` were `busy` so far, `own` of them with this process and its ended children; by clock."""

    busy: float
    own: float
    at: float
    cores: int


def cpu_times() -> CpuTimes | None:
    """What the cores that this process may use have done so far; None except on Linux."""
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
    """How many cores other programs took in between, on average; None if that was too short or is unknown."""
    if before is None or after is None or after.at - before.at < _SHORTEST or after.busy <= before.busy:
        return None
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / (after.at - before.at)


def load_between(before: CpuTimes | None, after: CpuTimes | None, threads: int) -> str:
    """A message if other programs took more cores in between than `threads` of ours leave free; else empty."""
    others = cores_of_others(before, after)
    if before is None or others is None or others <= max(before.cores - threads, 0) + _SPARE:
        return ""
    return f"other programs took {others:.1f} of {before.cores} cores meanwhile"


def load_now(threads: int) -> str:
    """`load_between` of a moment in which this process does nothing."""
    if (before := cpu_times()) is None:
        return ""
    time.sleep(0.2)
    return load_between(before, cpu_times(), threads)


def doubt(spreads: Mapping[str, Spread], rounds: int, load: str) -> str:
    """Why times, `rounds` of each network, are no figures to quote; `load` names other programs, if any."""
    reasons = []
    if rounds < FEWEST_ROUNDS:
        reasons.append(f"there was time for {rounds} round{'s' if rounds > 1 else ''} only")
    reasons += [load] if load else []
    wide = {name: (found.high - found.low) / found.median for name, found in spreads.items()}
    if wide and max(wide.values()) > _WIDEST:
        name = max(wide, key=lambda name: wide[name])
        reasons.append(f"the middle half of the times of {name} spreads over {100 * wide[name]:.0f} %")
    return "; ".join(reasons)
