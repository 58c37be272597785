"""Learning rates as functions of the iteration.

A schedule keeps no state: the rate of iteration i follows from i alone, so that a resumed run cannot differ from an
uninterrupted one. Iterations count from 1; after `done` = i - 1 updates, iteration i runs at `rate(base, done)`,
as with PyTorch's and BasicSR's schedulers.
"""

# ruff: noqa: D102 (`Schedule` and `basicsr.utils.registry` say what the methods do)

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, Protocol

from annotated_types import Gt, Le

from basicsr.utils.errors import OptionsError
from basicsr.utils.ranges import Iterations, IterationsOrNone, PositiveWeight, SmallOrNone
from basicsr.utils.registry import Conflict, Misfit, bind_arguments, unknown_name

_NEARLY = 0.02  # by which part a schedule may be longer or shorter than the training
Gamma = Annotated[float, Gt(0), Le(10)]


class Schedule(Protocol):
    """Anything whose `rate` is the learning rate after `done` updates, for an initial rate `base`."""

    def rate(self, base: float, done: int) -> float: ...


class MultiStepLR:
    """Multiplies by `gamma` at each milestone: base * gamma ** (number of milestones <= done)."""

    def __init__(self, *, milestones: Sequence[Iterations], gamma: Gamma = 0.1) -> None:
        self._milestones, self._gamma = sorted(milestones), gamma

    @staticmethod
    def conflicts(milestones: Sequence[int]) -> Iterator[Conflict]:
        yield from _ascending("milestones", milestones)

    @staticmethod
    def misfits(milestones: Sequence[int], gamma: float, total_iter: int) -> Iterator[Misfit]:
        yield from _out_of_reach("milestones", milestones, total_iter, "the rate never changes")
        if gamma > 1:
            yield Misfit("gamma", f"is {gamma}, above 1: the rate rises at each milestone")

    def rate(self, base: float, done: int) -> float:
        return base * self._gamma ** bisect_right(self._milestones, done)


class MultiStepRestartLR:
    """`MultiStepLR` that starts again at each of `restarts`, at `restart_weights` times the base.

    As in BasicSR, a milestone that coincides with a restart has no effect.
    """

    def __init__(
        self,
        *,
        milestones: Sequence[Iterations],
        gamma: Gamma = 0.1,
        restarts: Sequence[IterationsOrNone] = (0,),
        restart_weights: Sequence[PositiveWeight] = (1.0,),
    ) -> None:
        self._milestones, self._gamma = sorted(milestones), gamma
        self._restarts = sorted(zip(restarts, restart_weights, strict=True))

    @staticmethod
    def conflicts(
        milestones: Sequence[int], restarts: Sequence[int], restart_weights: Sequence[float]
    ) -> Iterator[Conflict]:
        yield from _ascending("milestones", milestones)
        yield from _ascending("restarts", restarts)
        yield from _equally_many("restarts", restarts, "restart_weights", restart_weights)

    @staticmethod
    def misfits(milestones: Sequence[int], restarts: Sequence[int], gamma: float, total_iter: int) -> Iterator[Misfit]:
        yield from MultiStepLR.misfits(milestones, gamma, total_iter)
        yield from _out_of_reach("restarts", restarts, total_iter, "the schedule never starts again")

    def rate(self, base: float, done: int) -> float:
        start, weight = -1, 1.0
        for restart, restart_weight in self._restarts:
            if restart <= done:
                start, weight = restart, restart_weight
        steps = bisect_right(self._milestones, done) - bisect_right(self._milestones, start)
        return base * weight * self._gamma**steps


class CosineAnnealingRestartCyclicLR:
    """Half cosines from about weight * base down to a minimum, one for each of `periods`; constant at the end.

    Restormer's schedule. Within period k, of length T_k, weight w_k and minimum m_k, after t of its updates,

        rate = m_k + w_k / 2 (base - m_k) (1 + cos(pi t / T_k)).

    A period whose minimum is the base is one of a constant rate.
    """

    def __init__(
        self,
        *,
        periods: Sequence[Iterations],
        restart_weights: Sequence[PositiveWeight] = (1.0,),
        eta_mins: Sequence[SmallOrNone] = (0.0,),
    ) -> None:
        self._cycles = list(zip(periods, restart_weights, eta_mins, strict=True))
        self._ends = list(accumulate(periods))

    @staticmethod
    def conflicts(
        periods: Sequence[int], restart_weights: Sequence[float], eta_mins: Sequence[float]
    ) -> Iterator[Conflict]:
        yield from _equally_many("periods", periods, "restart_weights", restart_weights)
        yield from _equally_many("periods", periods, "eta_mins", eta_mins)

    @staticmethod
    def misfits(periods: Sequence[int], eta_mins: Sequence[float], total_iter: int, lr: float) -> Iterator[Misfit]:
        yield from _never_falling("periods", sum(periods), "eta_mins", max(eta_mins), total_iter, lr)

    def rate(self, base: float, done: int) -> float:
        done = min(done, self._ends[-1])
        index = next(i for i, end in enumerate(self._ends) if done <= end)
        period, weight, minimum = self._cycles[index]
        phase = (done - (self._ends[index] - period)) / period
        return minimum + weight * 0.5 * (base - minimum) * (1 + math.cos(math.pi * phase))


class CosineAnnealingRestartLR(CosineAnnealingRestartCyclicLR):
    """`CosineAnnealingRestartCyclicLR` of one minimum, `eta_min`."""

    def __init__(
        self,
        *,
        periods: Sequence[Iterations],
        restart_weights: Sequence[PositiveWeight] = (1.0,),
        eta_min: SmallOrNone = 0.0,
    ) -> None:
        super().__init__(periods=periods, restart_weights=restart_weights, eta_mins=[eta_min] * len(periods))

    @staticmethod
    def conflicts(periods: Sequence[int], restart_weights: Sequence[float]) -> Iterator[Conflict]:  # type: ignore[override]
        yield from _equally_many("periods", periods, "restart_weights", restart_weights)

    @staticmethod
    def misfits(periods: Sequence[int], eta_min: float, total_iter: int, lr: float) -> Iterator[Misfit]:  # type: ignore[override]
        yield from _never_falling("periods", sum(periods), "eta_min", eta_min, total_iter, lr)


class CosineAnnealingLR(CosineAnnealingRestartLR):
    """A half cosine from the base down to `eta_min` over `T_max` iterations; constant after."""

    def __init__(self, *, T_max: Iterations, eta_min: SmallOrNone = 0.0) -> None:
        super().__init__(periods=(T_max,), eta_min=eta_min)

    @staticmethod
    def misfits(T_max: int, eta_min: float, total_iter: int, lr: float) -> Iterator[Misfit]:  # type: ignore[override]
        yield from _never_falling("T_max", T_max, "eta_min", eta_min, total_iter, lr)
        if T_max < (1 - _NEARLY) * total_iter:
            yield Misfit(
                "T_max",
                f"is {T_max}, but total_iter is {total_iter}: the last {total_iter - T_max} iterations run at eta_min"
                f" {eta_min:g}{', which learns nothing' if eta_min == 0 else ''}; give {total_iter}",
            )


SCHEDULES: dict[str, type[Any]] = {
    "MultiStepLR": MultiStepLR,
    "MultiStepRestartLR": MultiStepRestartLR,
    "CosineAnnealingLR": CosineAnnealingLR,
    "TrueCosineAnnealingLR": CosineAnnealingLR,
    "CosineAnnealingRestartLR": CosineAnnealingRestartLR,
    "CosineAnnealingRestartCyclicLR": CosineAnnealingRestartCyclicLR,
}


def build_schedule(options: Mapping[str, Any] | None) -> Schedule:
    """Builds the schedule that `options['type']` names, a constant rate for None; raises OptionsError for mistakes."""
    if options is None:
        return MultiStepLR(milestones=())
    name = options.get("type", "")
    if name not in SCHEDULES:
        raise OptionsError(unknown_name("scheduler", name, list(SCHEDULES)).message)
    given = {key: value for key, value in options.items() if key != "type"}
    return SCHEDULES[name](**bind_arguments(SCHEDULES[name], given, {}, f"scheduler {name}"))


def warmed_up(rate: float, base: float, iteration: int, warmup: int) -> float:
    """`rate`, but a straight line from 0 to `base` over the first `warmup` iterations; no warm-up where it is -1."""
    return base * iteration / warmup if iteration < warmup else rate


def _ascending(name: str, values: Sequence[int]) -> Iterator[Conflict]:
    for before, value in pairwise(values):
        if value < before:
            yield name, f"must ascend, but {value} comes after {before}; is a digit missing?"


def _equally_many(name: str, values: Sequence[Any], other: str, others: Sequence[Any]) -> Iterator[Conflict]:
    if len(values) != len(others) or not values:
        yield name, f"must have as many entries as {other}, at least one, got {len(values)} and {len(others)}"


def _out_of_reach(name: str, values: Sequence[int], total_iter: int, outcome: str) -> Iterator[Misfit]:
    if not values or values[-1] <= total_iter:  # one at the very end means none
        return
    if values[0] >= total_iter:
        yield Misfit(name, f"{list(values)} is not reached within total_iter {total_iter}: {outcome}")
    else:
        yield Misfit(name, f"{values[-1]} comes after the end, as total_iter is {total_iter}")


def _never_falling(
    name: str, length: int, name_of_minimum: str, minimum: float, total_iter: int, rate: float
) -> Iterator[Misfit]:
    if length > (1 + _NEARLY) * total_iter:
        yield Misfit(
            name,
            f"takes {length} iterations, but total_iter is {total_iter}: training ends before the rate has fallen;"
            f" give {total_iter}",
        )
    if minimum > rate:
        yield Misfit(name_of_minimum, f"is {minimum:g}, above lr {rate:g}: the rate rises instead of falling")
