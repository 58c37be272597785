"""Candidates timed in turn, each in a process of its own that lives until all are done."""

from __future__ import annotations

import datetime
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from basicsr.latency.candidates import Candidate
from basicsr.latency.figures import Figure
from basicsr.latency.machine import EnergyMeter, instruction_sets, this_device
from basicsr.latency.workers import Worker, environment
from basicsr.utils.errors import DataError, ForeignError, UserError
from basicsr.utils.timing import (
    FEWEST_ROUNDS,
    CpuTimes,
    Measured,
    cores_of_others,
    cpu_times,
    doubt,
    in_turn,
    load_between,
    spread,
)

SOURCE = "measure_latency.py"
ROUNDS = 15
_SAMPLE_SECONDS = 0.05  # of a fast candidate several passes are timed at once
_ALIVE = 8  # processes at once, for each holds its runtime; more candidates are measured in groups
_CHILD = [sys.executable, str(Path(__file__).resolve().parent / "child.py")]
_KIND = re.compile(r"^.*?\b\w*(?:Error|Exception): ")


@dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        rounds: at most, each with one measurement of every candidate.
        seconds: for each candidate, after which no further round begins once there are three.
    """

    rounds: int = ROUNDS
    seconds: float = 10.0


@dataclass(frozen=True)
class Measurement:
    """What came of it: figures in the candidates' order, and by label why others have none."""

    figures: tuple[Figure, ...]
    failed: dict[str, str]


def measure(
    candidates: Sequence[Candidate],
    limits: Limits = Limits(),
    *,
    report: Callable[[str], object] = lambda line: None,
    should_stop: Callable[[], bool] = lambda: False,
    meter: EnergyMeter | None = None,
) -> Measurement:
    """Measures all candidates, up to eight in turn; one that fails leaves the others their turn.

    `report` gets a line for each candidate that is ready, and `should_stop` is asked after each round.

    Raises:
        DataError: two candidates have one label.
    """
    labels = [candidate.label for candidate in candidates]
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(f"two candidates are called {label}; give them names of their own")
    meter = meter or EnergyMeter()
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    for start in range(0, len(candidates), _ALIVE):
        group = _Group(limits, report, should_stop, meter, failed)
        figures += group.measure(candidates[start : start + _ALIVE])
        if should_stop():
            break
    return Measurement(tuple(figures), failed)


@dataclass
class _Group:
    """Candidates that are alive together."""

    limits: Limits
    report: Callable[[str], object]
    should_stop: Callable[[], bool]
    meter: EnergyMeter
    failed: dict[str, str]
    workers: dict[str, Worker] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    processor: dict[str, list[float]] = field(default_factory=dict)
    energy: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, candidates: Sequence[Candidate]) -> Iterator[Figure]:
        with ExitStack() as stack:
            facts = {}
            for candidate in candidates:
                if (found := self._start(candidate, stack)) is not None:
                    facts[candidate.label] = found
            if not self.workers:
                return
            before = self._cpu_times()
            times = in_turn(
                {label: partial(self._seconds, label) for label in self.workers},
                self.limits.rounds,
                goes_on=self._goes_on(time.perf_counter(), len(self.workers)),
            )
            after = self._cpu_times()
            for candidate in candidates:
                if candidate.label in facts and candidate.label not in self.failed:
                    yield self._figure(candidate, facts[candidate.label], times[candidate.label], before, after)

    def _start(self, candidate: Candidate, stack: ExitStack) -> dict[str, Any] | None:
        label = candidate.label
        try:
            runtime = candidate.find_runtime()
            settings, variables = {"candidate": candidate.to_json()}, environment(candidate.threads)
            worker = stack.enter_context(Worker(_CHILD, "candidate", settings, variables))
            seconds = worker.ask("run", passes=1)["seconds"]
            facts = {
                **worker.ask("facts"),
                "runtime": runtime.name,
                "runtime_version": runtime.version(),
                "sha256": candidate.digest(),
            }
        except UserError as error:
            self.failed[label] = _reason(error)
            return None
        self.passes[label] = max(1, math.ceil(_SAMPLE_SECONDS / max(seconds, 1e-6)))
        self.workers[label] = worker
        self.report(f"{label}: ready, about {1000 * seconds:.3g} ms")
        return facts

    def _seconds(self, label: str) -> float:
        """One measurement; NaN, and no further turn, once it has failed."""
        if label in self.failed:
            return math.nan
        passes, before = self.passes[label], self.meter.joules()
        try:
            taken = self.workers[label].ask("run", passes=passes)
        except ForeignError as error:
            self.failed[label] = _reason(error)
            return math.nan
        if before:
            joules = self.meter.between(before, self.meter.joules()) / passes
            self.energy.setdefault(label, []).append(joules)
        self.processor.setdefault(label, []).append(taken["cpu_seconds"])
        return taken["seconds"]

    def _goes_on(self, started: float, count: int) -> Callable[[Measured], bool]:
        def goes_on(measured: Measured) -> bool:
            rounds = len(next(iter(measured.values())))
            if self.should_stop():
                return False
            return rounds < FEWEST_ROUNDS or time.perf_counter() - started < self.limits.seconds * count

        return goes_on

    def _cpu_times(self) -> CpuTimes | None:
        """Of this process and of the candidates'."""
        found = cpu_times()
        if found is None:
            return None
        children = 0.0
        for label, worker in self.workers.items():
            if label not in self.failed:
                children += worker.ask("cpu_seconds")
        return replace(found, own=found.own + children)

    def _figure(
        self,
        candidate: Candidate,
        facts: dict[str, Any],
        times: Sequence[float],
        before: CpuTimes | None,
        after: CpuTimes | None,
    ) -> Figure:
        label = candidate.label
        milliseconds = spread([1000 * seconds for seconds in times])
        others = cores_of_others(before, after)
        energy = self.energy.get(label)
        return Figure(
            candidate=candidate.name or label,
            device=this_device(),
            runtime=facts["runtime"],
            precision=facts["precision"],
            size=candidate.size,
            median_ms=milliseconds.median,
            source=SOURCE,
            low_ms=milliseconds.low,
            high_ms=milliseconds.high,
            cpu_ms=1000 * statistics.median(self.processor[label]),
            rounds=len(times),
            threads=candidate.threads,
            settings=dict(candidate.settings),
            network=candidate.block,
            sha256=facts["sha256"],
            scale=facts["scale"],
            channels=facts["channels"],
            peak_memory_mb=self.workers[label].ask("memory")["peak"] / 1e6,
            energy_mj=1000 * statistics.median(energy) if energy else None,
            energy_reason=self.meter.reason or None,
            runtime_version=facts["runtime_version"],
            instruction_sets=instruction_sets(),
            load=others,
            doubt=doubt(
                {candidate.name or label: milliseconds}, len(times), load_between(before, after, candidate.threads)
            ),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )


def _reason(error: UserError) -> str:
    """Without the names of the process's parts and of Python's exceptions."""
    text = str(error)
    return _KIND.sub("", text) or text
