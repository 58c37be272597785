"""What a run found, as report.html, report.md and report.json."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import basicsr
from basicsr.config.load import resolved_yaml
from basicsr.latency.figures import write_figures
from basicsr.latency.machine import this_device
from basicsr.metrics import better_direction
from basicsr.metrics.evaluator import Evaluation
from basicsr.report.comparison import compare_scale
from basicsr.report.html import write_report
from basicsr.report.plots import cost_figure, figure_svg
from basicsr.report.tables import (
    Results,
    Row,
    ScaleResults,
    decimals_of,
    write_text,
)
from basicsr.report.writing import to_markdown, to_markdown_list
from basicsr.utils.complexity import count_parameters
from basicsr.utils.timing import Spread
from compression.findings import Findings
from compression.latencies import TEACHER
from compression.pipeline import BICUBIC, STUDENT
from compression.tables import all_tables, threads_text
from compression.trainings import plain

_KIND = "From a teacher to a student on a device"
_CROPS = 4


def write_report_files(findings: Findings) -> Path:
    """Writes all three; returns the path of the HTML report.

    Raises:
        UserError: one of them cannot be written.
    """
    folder, scale = findings.pipeline.folder, findings.pipeline.options.scale
    tables = all_tables(findings)
    notes = _notes(findings)
    text = "\n".join(to_markdown(table) for table in tables)
    write_text(folder / "report.md", f"# {findings.pipeline.options.name}\n\n{text}\n{to_markdown_list(notes)}")
    write_text(folder / "report.json", json.dumps(_json(findings), indent=1) + "\n")
    latencies = [found for name in findings.costs if (found := findings.latency(name)) is not None]
    write_figures(folder / "latencies.json", [*latencies, *(file.latency for file in findings.files if file.latency)])
    shown = _shown(findings)
    pictures = findings.pipeline.figures.pictures()
    compared = compare_scale(shown.scales[0], pictures, count=_CROPS, better=shown.better)
    comparisons = {scale: cv2.imencode(".png", compared[0])[1].tobytes()} if compared is not None else {}
    path = folder / "report.html"
    write_report(
        path,
        shown,
        {scale: pictures},
        images_per_dataset=findings.pipeline.compress.images,
        tables=tables,
        plots=_plots(findings),
        comparisons=comparisons,
        date=f"{time.strftime('%Y-%m-%d')}, basicsr {basicsr.__version__}",
        kind=_KIND,
        facts=_facts(findings),
        details={"Settings": resolved_yaml(findings.pipeline.options), "Notes": "\n".join(notes)},
    )
    return path


def _shown(findings: Findings) -> Results:
    """The rows of which there are pictures: bicubic, teacher, student, and the int8 file that loses least."""
    pipeline = findings.pipeline
    student = int(findings.costs[findings.winner.name]["parameters"])
    parameters = {BICUBIC: 0, TEACHER: count_parameters(pipeline.teacher), STUDENT: student}
    rows = [Row(name, count, findings.evaluations[name]) for name, count in parameters.items()]
    files = [file for file in findings.files if file.path is not None and file.precision == "int8"]
    rows += [Row(file.name, student, file.evaluations) for file in files[:1]]
    return _as_results(findings, rows)


def _as_results(findings: Findings, rows: Sequence[Row]) -> Results:
    blocks = findings.pipeline.settings.judging.val.metrics
    latency = findings.pipeline.compress.latency
    return Results(
        name=findings.pipeline.options.name,
        scales=(ScaleResults(findings.pipeline.options.scale, tuple(rows)),),
        device=f"{latency.target}, {latency.precision}, {threads_text(findings)}",
        input_shape=(3, *latency.size),
        better={name: better_direction(block) for name, block in blocks.items()},
    )


def _plots(findings: Findings) -> dict[str, str]:
    """The metric against the costs of all that were tried, of the student and of the teacher."""
    rows = []
    for entry in findings.order:
        iterations = entry["rungs"][-1]["iterations"]
        label = f"{entry['name']}: {iterations}"
        rows.append(_row(findings, label, str(entry["name"]), entry["rungs"][-1]["figure"]))
    for name, cost in ((STUDENT, findings.winner.name), (TEACHER, TEACHER)):
        if (value := findings.mean(name, findings.first)) is not None:
            rows.append(_row(findings, name, cost, value))
    results = _as_results(findings, rows)
    drawn = cost_figure(results, results.scales[0], findings.first, metric=findings.metric)
    title = (
        f"{findings.label} on {findings.first}: candidates after their brief trainings (iterations), student, teacher"
    )
    return {title: figure_svg(drawn)} if drawn is not None else {}


def _row(findings: Findings, label: str, name: str, figure: float) -> Row:
    cost, times = findings.costs.get(name, {}), findings.latency(name)
    parameters = cost.get("parameters") or count_parameters(findings.pipeline.teacher)
    evaluation = Evaluation((findings.metric,), ("mean",), np.array([[figure]]), np.zeros(1))
    spread = None
    if times is not None:
        low, high = times.low_ms or times.median_ms, times.high_ms or times.median_ms
        spread = Spread(times.median_ms / 1e3, low / 1e3, high / 1e3)
    return Row(label, int(parameters), {findings.first: evaluation}, cost.get("multiply_adds"), spread)


def _facts(findings: Findings) -> dict[str, str]:
    pipeline, budget = findings.pipeline, findings.pipeline.compress.budget
    latency = pipeline.compress.latency
    of_size = f" at {'x'.join(map(str, latency.size))}, {latency.target} {latency.precision}, {threads_text(findings)}"
    limit = f"{budget.limit:g} ms{of_size}" if budget.kind == "ms" else f"{budget.limit:,.0f} {budget.kind}"
    facts = {
        "Teacher": str(pipeline.options.path.pretrain_network_t),
        "Student": findings.winner.label,
        "Budget": limit.replace("_", "-"),
    }
    value, teacher = (findings.mean(name, findings.first) for name in (STUDENT, TEACHER))
    if value is not None and teacher is not None:
        decimals = decimals_of(findings.metric)
        text = f"{value:.{decimals}f}, {value - teacher:+.{decimals}f} to the teacher"
        facts[f"{findings.label}, {findings.first}"] = text
    return facts


def _notes(findings: Findings) -> list[str]:
    """Versions, and where things are."""
    pipeline = findings.pipeline
    runtimes = dict.fromkeys(str(file.facts["runtime"]) for file in findings.files if "runtime" in file.facts)
    versions = [f"basicsr {basicsr.__version__}", f"PyTorch {torch.__version__}", f"Python {platform.python_version()}"]
    lines = [f"Versions: {', '.join([*versions, *runtimes])}. Device: {this_device()}."]
    lines.append(f"Options of each training: {pipeline.folder / 'options'}. All figures: report.json.")
    if findings.failure:
        lines.append(f"The quantised training failed, so that int8 files are calibrated only: {findings.failure}")
    for file in findings.files:
        lines += [f"{file.name}: {remark}" for remark in file.facts.get("remarks", ())]
    return lines


def _json(findings: Findings) -> dict[str, Any]:
    pipeline = findings.pipeline

    def means(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
        return {dataset: found.means() for dataset, found in evaluations.items()}

    files = []
    for file in findings.files:
        entry = {"target": file.target, "precision": file.precision, "source": file.source, **file.facts}
        entry["figures"] = means(file.evaluations)
        entry["latency"] = file.latency.model_dump(mode="json") if file.latency is not None else None
        files.append(entry)
    return {
        "name": pipeline.options.name,
        "scale": pipeline.options.scale,
        "options": plain(json.loads(json.dumps(pipeline.settings.content, default=str))),
        "chosen": {
            "name": findings.winner.name,
            "label": findings.winner.label,
            "network": plain(findings.winner.block),
        },
        "figures": {name: means(evaluations) for name, evaluations in findings.evaluations.items()},
        "candidates": {
            name: {**cost, "rungs": next((entry["rungs"] for entry in findings.order if entry["name"] == name), [])}
            for name, cost in findings.costs.items()
        },
        "files": files,
        "sensitivity": dict(findings.sensitivity),
        "compared": findings.comparison.to_json() if findings.comparison is not None else None,
        "steps": {
            name: {key: value for key, value in dataclasses.asdict(pipeline.steps[name]).items() if key != "made_from"}
            for name in dict.fromkeys(pipeline.steps.used)
        },
        "notes": _notes(findings),
    }
