"""Figures of several networks on several datasets, as CSV and as a Markdown table."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from basicsr.metrics.evaluator import Evaluation


@dataclass(frozen=True)
class Row:
    """One network's figures.

    Attributes:
        name: of the network.
        parameters: how many it has.
        evaluations: by dataset.
    """

    name: str
    parameters: int
    evaluations: Mapping[str, Evaluation]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Writes a line for each network, dataset, image and metric, and the seconds of the forward pass."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("network", "dataset", "image", "metric", "value"))
        for row in rows:
            for dataset, evaluation in row.evaluations.items():
                for image, values, seconds in zip(
                    evaluation.images, evaluation.values, evaluation.seconds, strict=True
                ):
                    named = [*zip(evaluation.metrics, values, strict=True), ("seconds", seconds)]
                    writer.writerows((row.name, dataset, image, metric, f"{value:.6f}") for metric, value in named)


def markdown_table(rows: Sequence[Row]) -> str:
    """One line a network: parameters, each dataset's mean figures, and the median ms per image over all of them.

    Numbers are aligned, so that the text reads as a table also where it is printed as it is.
    """
    columns = [
        (dataset, metric) for dataset, evaluation in rows[0].evaluations.items() for metric in evaluation.metrics
    ]
    header = ["network", "parameters", *(f"{dataset} {metric}" for dataset, metric in columns), "ms/image"]
    lines = [header]
    for row in rows:
        figures = [_format(row.evaluations[dataset].means()[metric]) for dataset, metric in columns]
        seconds = np.concatenate([evaluation.seconds for evaluation in row.evaluations.values()])
        lines.append([row.name, f"{row.parameters:,d}", *figures, f"{1000 * np.median(seconds):.1f}"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(_join(line, widths) for line in lines)


def _format(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 2 else f"{value:.4f}"


def _join(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        line[0].ljust(widths[0]),
        *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
    ]
    return f"| {' | '.join(cells)} |"
