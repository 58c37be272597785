"""Comparing several sides fairly: in turn, on one machine, by medians and ratios of neighbours."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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

    `goes_on` is asked after each of at most `rounds` counted rounds whether to go on; `warm_up` rounds go before.
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
