"""The chosen student beside one of another family, of equal latency and equal training, over several seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from basicsr.metrics.evaluator import Evaluation
from compression.candidates import Candidate
from compression.pipeline import Pipeline


@dataclass(frozen=True)
class Comparison:
    """What came of it.

    Attributes:
        chosen, other: the two students.
        ms: median latency of both, untrained and timed in turns, by name.
        figures: by seed and the student's name, its evaluations by set.
    """

    chosen: Candidate
    other: Candidate
    ms: Mapping[str, float]
    figures: Mapping[int, Mapping[str, Mapping[str, Evaluation]]]

    def differences(self, dataset: str, metric: str) -> list[float]:
        """Figures of the chosen student less those of the other, seed by seed."""
        return [
            found[self.chosen.name][dataset].means()[metric] - found[self.other.name][dataset].means()[metric]
            for found in self.figures.values()
        ]

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "chosen": self.chosen.name,
            "other": self.other.name,
            "ms": dict(self.ms),
            "figures": {
                str(seed): {
                    name: {dataset: found.means() for dataset, found in evaluations.items()}
                    for name, evaluations in students.items()
                }
                for seed, students in self.figures.items()
            },
        }


def compare(pipeline: Pipeline, chosen: Candidate) -> Comparison | None:
    """Trains both students with each seed; None where the options name no other family."""
    options = pipeline.compress.compare
    if options is None:
        return None
    times = pipeline.latencies.of_rivals(chosen.name, [candidate.name for candidate in pipeline.compared])
    own = times[chosen.name].median_ms
    other = min(pipeline.compared, key=lambda candidate: abs(times[candidate.name].median_ms - own))
    ms = {candidate.name: times[candidate.name].median_ms for candidate in (chosen, other)}
    pipeline.say(
        f"compared: {chosen.label} ({ms[chosen.name]:.3g} ms) and {other.label} ({ms[other.name]:.3g} ms), trained"
        f" alike with seeds {', '.join(map(str, options.seeds))}"
    )
    figures: dict[int, dict[str, dict[str, Evaluation]]] = {}
    for seed in options.seeds:
        for candidate in (chosen, other):
            weights = pipeline.distil(candidate, seed)
            found = pipeline.judge(f"{candidate.name}, seed {seed}", weights)
            figures.setdefault(seed, {})[candidate.name] = found
    comparison = Comparison(chosen, other, ms, figures)
    for dataset in pipeline.figures.blocks:
        differences = comparison.differences(dataset, pipeline.figures.metric)
        spread = f" ± {statistics.stdev(differences):.3f}" if len(differences) > 1 else ""
        what = f"{pipeline.figures.metric} of the chosen less that of the other on {dataset}"
        pipeline.say(f"  {what}: {statistics.fmean(differences):+.3f}{spread}")
    return comparison
