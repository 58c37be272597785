"""One step in float32, in bf16 and in what `amp: auto` chooses, in turn and in one process."""

from __future__ import annotations

from typing import Any

from basicsr.utils.timing import in_turn
from benchmarks.ours.step import Step

PRECISIONS = ("none", "bf16", "auto")


class Precisions:
    """The same training three times.

    Args:
        options: a whole options file as plain dicts.
        threads: that PyTorch may use.
    """

    def __init__(self, options: dict[str, Any], threads: int) -> None:
        self._steps = {amp: Step({**options, "amp": amp}, threads) for amp in PRECISIONS}

    def chosen(self) -> str:
        """What `auto` is here, and why."""
        return self._steps["auto"].training.precision.reason

    def run(self, rounds: int) -> dict[str, list[float]]:
        """Seconds of a step by precision, round by round, after two that are not counted."""
        return in_turn({amp: step.run for amp, step in self._steps.items()}, rounds, warm_up=2)
