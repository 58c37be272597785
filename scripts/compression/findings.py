"""All that a run found, as its tables and its report ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from basicsr.latency.figures import Figure as Latency
from basicsr.metrics.evaluator import Evaluation
from basicsr.report.tables import metric_label
from compression.candidates import Candidate
from compression.comparing import Comparison
from compression.pipeline import Pipeline
from compression.shipping import ShippedFile


@dataclass(frozen=True)
class Findings:
    """What a run found.

    Attributes:
        pipeline: the run.
        costs: of candidates and the teacher, as far as they were counted and timed.
        order: candidates that were trained, the winner first, with the figure of each rung.
        winner: the student.
        evaluations: by row and set.
        files: for all targets, those that are shipped before others of the same target and precision.
        teacher_latency: as timed in turns with the files.
        sensitivity: by layer.
        failure: why there was no quantised training; empty where there was, or none was asked for.
        comparison: with another family's student.
    """

    pipeline: Pipeline
    costs: Mapping[str, Mapping[str, Any]]
    order: Sequence[Mapping[str, Any]]
    winner: Candidate
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    files: Sequence[ShippedFile]
    teacher_latency: Latency | None
    sensitivity: Mapping[str, float]
    failure: str
    comparison: Comparison | None

    @property
    def metric(self) -> str:
        """By which students are chosen."""
        return self.pipeline.figures.metric

    @property
    def first(self) -> str:
        """The set on which students are chosen."""
        return self.pipeline.figures.first

    @property
    def sets(self) -> list[str]:
        """Names of all sets."""
        return list(self.pipeline.figures.blocks)

    @property
    def label(self) -> str:
        """The metric as a heading."""
        return metric_label(self.metric, self.pipeline.sign > 0)

    def mean(self, row: str, dataset: str) -> float | None:
        """A row's average of the metric."""
        found = self.evaluations.get(row, {}).get(dataset)
        return found.means().get(self.metric) if found is not None else None

    def latency(self, name: str) -> Latency | None:
        """Of an untrained candidate, or of the teacher."""
        found = self.costs.get(name, {}).get("latency")
        return Latency.model_validate(found) if found is not None else None
