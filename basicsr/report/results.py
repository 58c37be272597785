"""What an evaluation of several networks found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from basicsr.metrics.evaluator import Evaluation
from basicsr.utils.timing import Spread


@dataclass(frozen=True)
class Row:
    """One network's figures at one scale."""

    name: str
    parameters: int  # 0 for bicubic interpolation
    evaluations: Mapping[str, Evaluation]  # by dataset
    multiply_adds: int | None = None  # of one forward pass of `Results.input_shape`
    latency: Spread | None = None  # seconds of that pass on `Results.device`
    weights: str | None = None  # the file that they are from and its SHA-256

    @property
    def is_ranked(self) -> bool:
        """Whether it is ranked by default: neither bicubic interpolation nor a teacher by its name."""
        return self.parameters > 0 and "teacher" not in self.name.lower()


@dataclass(frozen=True)
class ScaleResults:
    """All networks at one scale, in the order of the options file."""

    scale: int
    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()  # sentences on missing datasets and networks
    warnings: tuple[str, ...] = ()  # sentences on datasets that are not what their names say

    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets that any row was evaluated on, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.evaluations))

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that any row has, in the order of their first appearance."""
        evaluations = [evaluation for row in self.rows for evaluation in row.evaluations.values()]
        return tuple(dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics))

    def compared(self) -> list[Row]:
        """The rows in which images are looked for that differ: networks, and bicubic if there is only one of them."""
        networks = [row for row in self.rows if row.parameters]
        return networks if len(networks) > 1 else list(self.rows)


@dataclass(frozen=True)
class Results:
    """Everything that one run of test.py measured."""

    name: str
    scales: tuple[ScaleResults, ...]
    device: str  # on which `Row.latency` was measured
    input_shape: tuple[int, int, int]  # (C, H, W) for `Row.multiply_adds` and `Row.latency`
    better: Mapping[str, str]  # `higher`, the default, or `lower` by the name of a metric
    incomplete: str = ""  # why not all was measured
    latency_doubt: str = ""  # why latencies are no figures to quote
    precision: str = "none"  # of the networks whose outputs were judged; latencies are of float32

    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets of any scale, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for scale in self.scales for name in scale.datasets()))

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of any scale, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for scale in self.scales for name in scale.metrics()))

    def higher_is_better(self, metric: str) -> bool:
        """Whether a larger value of `metric` is better."""
        return self.better.get(metric, "higher") == "higher"
