"""What an evaluation of several networks found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from basicsr.metrics.evaluator import Evaluation
from basicsr.utils.timing import Spread


@dataclass(frozen=True)
class Row:
    """One network's figures at one scale.

    Attributes:
        name: of the network.
        parameters: how many it has; 0 for bicubic interpolation.
        evaluations: by dataset; missing datasets are skipped.
        multiply_adds: of one forward pass of `Results.input_shape`; None if not counted.
        latency: seconds of that pass on `Results.device`; None if not measured.
        weights: the file that they are from and its SHA-256, in words; None if there is none.
    """

    name: str
    parameters: int
    evaluations: Mapping[str, Evaluation]
    multiply_adds: int | None = None
    latency: Spread | None = None
    weights: str | None = None

    @property
    def is_ranked(self) -> bool:
        """Whether it is ranked by default: neither bicubic interpolation nor a teacher by its name."""
        return self.parameters > 0 and "teacher" not in self.name.lower()


@dataclass(frozen=True)
class ScaleResults:
    """All networks at one scale, in the order of the options file.

    `skipped` are sentences on missing datasets and networks, `warnings` on datasets that are not what their names say.
    """

    scale: int
    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

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
    """Everything that one run of test.py measured.

    Attributes:
        name: of the experiment.
        scales: in the order of the options file.
        device: on which `Row.latency` was measured, by its maker's name.
        input_shape: (C, H, W) of the input of `Row.multiply_adds` and `Row.latency`.
        better: `higher` or `lower` by the name of a metric; higher by default.
        incomplete: why not all was measured; empty where it was.
        latency_doubt: why latencies are no figures to quote; empty where they are.
        precision: of the networks whose outputs were judged; latencies are of float32.
    """

    name: str
    scales: tuple[ScaleResults, ...]
    device: str
    input_shape: tuple[int, int, int]
    better: Mapping[str, str]
    incomplete: str = ""
    latency_doubt: str = ""
    precision: str = "none"

    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets of any scale, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for scale in self.scales for name in scale.datasets()))

    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of any scale, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for scale in self.scales for name in scale.metrics()))

    def higher_is_better(self, metric: str) -> bool:
        """Whether a larger value of `metric` is better."""
        return self.better.get(metric, "higher") == "higher"
