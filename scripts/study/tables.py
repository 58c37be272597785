"""What a study found, as tables and files in results/NAME."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import basicsr
from basicsr.data.data_util import count_mismatch
from basicsr.files.csv_files import csv_text as text_of
from basicsr.metrics import better_direction
from basicsr.metrics.evaluator import Evaluation
from basicsr.report.tables import (
    DASH,
    Cell,
    Column,
    Figure,
    Group,
    Line,
    Results,
    Row,
    ScaleResults,
    Table,
    decimals_of,
    metric_label,
    quality_table,
    significant,
    write_text,
)
from basicsr.report.writing import to_markdown, to_markdown_list
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.timing import FEWEST_ROUNDS, Spread, doubt
from study.plan import Run, Study
from study.records import Record, weights_of

SIGN = "†"
STANDARD_ERRORS = 2.0

Records = Mapping[tuple[str, int], Record]
"""By method and seed; a run that has never been started has none."""


def spread_of(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (divisor n - 1); None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def is_significant(differences: Sequence[float]) -> bool:
    """Whether the mean is more than two of its standard errors away from zero."""
    spread = spread_of(differences)
    if spread is None:
        return False
    return abs(statistics.fmean(differences)) > STANDARD_ERRORS * spread / math.sqrt(len(differences))


class Findings:
    """The figures of a study, as far as there are any.

    Args:
        study: what is run.
        records: what is known of its runs.
    """

    def __init__(self, study: Study, records: Records) -> None:
        self.study = study
        self.records = records
        blocks = study.plain.val.metrics
        self.results = Results(
            name=study.name,
            scales=(ScaleResults(study.plain.scale, tuple(map(self._row, study.methods))),),
            device="",
            input_shape=(3, 1, 1),
            better={name: better_direction(block) for name, block in blocks.items()},
        )

    def done(self, method: str) -> dict[int, Record]:
        """The finished runs of a method, by seed."""
        found = {seed: self.records.get((method, seed)) for seed in self.study.seeds}
        return {seed: record for seed, record in found.items() if record is not None and record.status == "done"}

    def failed(self) -> dict[tuple[str, int], Record]:
        """The runs that failed, by method and seed."""
        return {key: record for key, record in self.records.items() if record.status == "failed"}

    def values(self, method: str, dataset: str, metric: str) -> dict[int, float]:
        """Figures of a method by seed."""
        return {
            seed: record.values[dataset][metric]
            for seed, record in self.done(method).items()
            if metric in record.values.get(dataset, {})
        }

    def differences(self, method: str, dataset: str, metric: str) -> list[float]:
        """Figures of a method less those of the reference at the same seed, for all seeds that have both."""
        own = self.values(method, dataset, metric)
        others = self.values(self.study.reference, dataset, metric)
        return [own[seed] - others[seed] for seed in self.study.seeds if seed in own and seed in others]

    def seconds(self, method: str) -> Spread | None:
        """Seconds per iteration: the median of its runs', and between which the middle halves of them all are."""
        runs = [record for record in self.done(method).values() if record.seconds is not None]
        if not runs:
            return None
        medians = [record.seconds for record in runs if record.seconds is not None]
        ends = [*medians, *(end for record in runs for end in record.middle or ())]
        return Spread(statistics.median(medians), min(ends), max(ends))

    def owners(self) -> list[str]:
        """Methods that give the student its weights."""
        return [method for method in self.study.methods if any(r.owns_student for r in self._all(method))]

    def _all(self, method: str) -> list[Record]:
        found = (self.records.get((method, seed)) for seed in self.study.seeds)
        return [record for record in found if record is not None]

    def _row(self, method: str) -> Row:
        """A method as a row whose 'images' are its seeds."""
        done = self.done(method)
        evaluations = {}
        for dataset in dict.fromkeys(name for record in done.values() for name in record.values):
            metrics = tuple(dict.fromkeys(name for record in done.values() for name in record.values[dataset]))
            table = np.array([[record.values[dataset][name] for name in metrics] for record in done.values()])
            evaluations[dataset] = Evaluation(metrics, tuple(map(str, done)), table, np.zeros(len(done)))
        return Row(method, 0, evaluations)


def means_table(findings: Findings) -> Table:
    """The papers' table, with the spread over seeds."""
    study, results = findings.study, findings.results
    table = quality_table(results, ranked=lambda row: True, images=_about_images(findings))
    datasets, metrics = results.datasets(), results.metrics()
    lines = []
    for line in table.groups[0].lines:
        cells = [
            tuple(
                _with_spread(figure, list(findings.values(line.method, dataset, metric).values()), metric)
                for figure, metric in zip(cell, metrics, strict=False)
            )
            for cell, dataset in zip(line.cells, datasets, strict=True)
        ]
        lines.append(Line(line.method, (_count(findings, line.method), *cells)))
    notes = [f"{method} seed {seed} failed: {record.error}" for (method, seed), record in findings.failed().items()]
    if owners := findings.owners():
        notes.append(f"Starts from the teacher's weights, not from the common initial student: {', '.join(owners)}.")
    return dataclasses.replace(
        table,
        caption=f"{study.name}: mean ± standard deviation over seeds, after iteration"
        f" {study.plain.train.total_iter}. Best mean bold, second best underlined.",
        columns=(Column("Seeds"), *table.columns),
        groups=(Group(study.plain.scale, tuple(lines)),),
        notes=(*notes, *study.remarks, *table.notes),
    )


def _about_images(findings: Findings) -> list[str]:
    """How many images the figures are averages over, with a warning where a benchmark has another number."""
    counts: dict[str, dict[int, list[str]]] = {}
    for (method, seed), record in findings.records.items():
        for dataset, count in record.images.items():
            counts.setdefault(dataset, {}).setdefault(count, []).append(f"{method} seed {seed}")
    lines = [f"Images: {', '.join(f'{name} {max(found)}' for name, found in counts.items())}."] if counts else []
    for name, found in counts.items():
        lines += [f"WARNING: {name}: {what}." for count in found if (what := count_mismatch(name, count))]
        if len(found) > 1:
            each = "; ".join(f"{count} for {', '.join(runs)}" for count, runs in found.items())
            lines.append(f"WARNING: {name} had not the same number of images in all runs: {each}.")
    return lines


def _with_spread(figure: Figure, values: Sequence[float], metric: str) -> Figure:
    spread = spread_of(values)
    if spread is None:
        return figure
    return Figure(f"{figure.text} ± {spread:.{decimals_of(metric)}f}", figure.mark)


def _count(findings: Findings, method: str) -> Cell:
    seeds = findings.study.seeds
    done, failed = len(findings.done(method)), sum(name == method for name, _ in findings.failed())
    text = str(done) if done == len(seeds) else f"{done} of {len(seeds)}"
    return (Figure(f"{text}, {failed} failed" if failed else text),)


def differences_table(findings: Findings) -> Table:
    """What each method gains over the reference, paired by seed."""
    study, results = findings.study, findings.results
    datasets, metrics = results.datasets(), results.metrics()
    lines = []
    for method in study.methods:
        if method == study.reference:
            continue
        pairs = [findings.differences(method, dataset, metric) for dataset in datasets for metric in metrics]
        cells = [
            tuple(_difference(findings.differences(method, dataset, metric), metric) for metric in metrics)
            for dataset in datasets
        ]
        lines.append(Line(method, ((Figure(str(max(map(len, pairs), default=0))),), *cells)))
    subtitle = "/".join(metric_label(metric, results.higher_is_better(metric)) for metric in metrics)
    return Table(
        "differences",
        f"{study.name}: difference to {study.reference} at the same seed, mean ± standard deviation."
        f" {SIGN}: the mean is more than two standard errors away from zero.",
        (Column("Pairs"), *(Column(dataset, subtitle) for dataset in datasets)),
        (Group(study.plain.scale, tuple(lines)),),
    )


def _difference(differences: Sequence[float], metric: str) -> Figure:
    if not differences:
        return Figure(DASH)
    decimals = decimals_of(metric) + 1
    text = f"{statistics.fmean(differences):+.{decimals}f}"
    spread = spread_of(differences)
    if spread is not None:
        text += f" ± {spread:.{decimals}f}"
    return Figure(text + SIGN if is_significant(differences) else text)


def cost_table(findings: Findings) -> Table:
    """Measured time of a training step, and why it is no figure to quote, where it is none."""
    study = findings.study
    found = {method: findings.seconds(method) for method in study.methods}
    base = found[study.reference]
    lines = []
    for method, seconds in found.items():
        ratio = f"{seconds.median / base.median:.2f}" if seconds is not None and base is not None else DASH
        shown = DASH
        if seconds is not None:
            median, low, high = map(significant, (seconds.median, seconds.low, seconds.high))
            shown = f"{median} ({low}{DASH}{high})"
        lines.append(Line(method, ((Figure(shown),), (Figure(ratio),))))
    ways = {(record.jobs, record.threads) for method in study.methods for record in findings.done(method).values()}
    how = " or ".join(f"{jobs} at a time with {threads} thread(s) each" for jobs, threads in sorted(ways))
    caption = (
        f"{study.name}: seconds per iteration, median over the lines of the log and over seeds; in brackets between"
        " which the middle half of the lines is, of all seeds"
    )
    measured = {method: seconds for method, seconds in found.items() if seconds is not None}
    doubt = time_doubt(measured, max((jobs for jobs, _ in ways), default=1))
    return Table(
        "cost",
        f"{caption}; trainings ran {how}." if how else f"{caption}.",
        (Column("Seconds per iteration"), Column(f"Relative to {study.reference}")),
        (Group(study.plain.scale, tuple(lines)),),
        notes=(f"Times are no figures to quote: {doubt}.",) if doubt else (),
    )


def time_doubt(measured: Mapping[str, Spread], jobs: int) -> str:
    """Why times of trainings, which ran one after the other, are no figures to quote; empty where they are.

    Args:
        measured: seconds per iteration by method.
        jobs: how many trainings ran at a time.
    """
    load = f"{jobs} trainings ran at a time, and slowed each other down" if jobs > 1 else ""
    return doubt(measured, FEWEST_ROUNDS, load)


def claim_results(study: Study) -> None:
    """Makes results/NAME.

    Raises:
        OptionsError: it is there and holds something else.
        CheckpointError: it cannot be made.
    """
    folder = study.results
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if there - {"options"} and "study.json" not in there:
        raise OptionsError(f"{folder} is there, and is no study's; give another --name")
    try:
        (folder / "options").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error


def write_files(study: Study, records: Records) -> Path:
    """Writes study.json, study.csv and study.md as far as there are figures; returns the path of the last.

    Raises:
        CheckpointError: a file cannot be written.
    """
    findings = Findings(study, records)
    folder = study.results
    write_text(folder / "study.json", json.dumps(_settings(study, records), indent=1) + "\n")
    write_text(folder / "study.csv", csv_text(study, records))
    tables: list[Callable[[Findings], Table]] = [means_table]
    tables += [differences_table] if len(study.methods) > 1 else []
    text = "\n".join(to_markdown(table(findings)) for table in (*tables, cost_table))
    write_text(folder / "study.md", f"{text}\n{to_markdown_list(_about(study))}")
    return folder / "study.md"


def csv_text(study: Study, records: Records) -> str:
    """A line for each finished run, dataset and metric; values as exact as they are known."""
    rows: list[tuple[object, ...]] = []
    for run in study.runs:
        record = records.get((run.method, run.seed))
        for dataset, values in (record.values if record is not None else {}).items():
            rows += [(run.seed, run.method, dataset, name, value) for name, value in values.items()]
    return text_of(("seed", "method", "dataset", "metric", "value"), rows)


def _about(study: Study) -> list[str]:
    methods = ", ".join(f"{name}: {_shown(path)}" for name, path in study.methods.items())
    lines = [f"Base: {study.base}. Methods: {methods}. Seeds: {', '.join(map(str, study.seeds))}."]
    if study.overrides:
        lines.append(f"Changes: {' '.join(study.overrides)}.")
    lines.append("Every figure: study.csv. Settings and runs: study.json. Options of each run: options.")
    return lines


def _settings(study: Study, records: Records) -> dict[str, Any]:
    plain = study.plain
    return {
        "name": study.name,
        "base": str(study.base),
        "methods": {name: _shown(path) for name, path in study.methods.items()},
        "seeds": list(study.seeds),
        "reference": study.reference,
        "force_yml": list(study.overrides),
        "scale": plain.scale,
        "total_iter": plain.train.total_iter,
        "datasets": [block.name for block in plain.datasets_of("val").values()],
        "metrics": list(plain.val.metrics),
        "remarks": list(study.remarks),
        "versions": {"basicsr": basicsr.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "runs": [_about_run(run, records.get((run.method, run.seed))) for run in study.runs],
    }


def _about_run(run: Run, record: Record | None) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "method": run.method,
        "options": str(run.file),
        "weights": str(weights_of(run.options)),
        "teacher_file": str(run.teacher) if run.teacher is not None else None,
        **(dataclasses.asdict(record) if record is not None else {"status": "open"}),
    }


def _shown(path: Path) -> str:
    """Relative to the repository where it lies there."""
    root = Path(__file__).resolve().parents[2]
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
