"""The tables of a run's report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from basicsr.latency.figures import Figure as Latency
from basicsr.report.tables import DASH, Column, Figure, Group, Line, Table, decimals_of, significant
from compression.candidates import COMPARED
from compression.findings import Findings
from compression.latencies import TEACHER
from compression.pipeline import BICUBIC, STUDENT
from compression.shipping import CALIBRATED, DISTILLED, ShippedFile


def all_tables(findings: Findings) -> list[Table]:
    """All that have something to say, in the order of the steps."""
    tables = [_steps(findings)]
    tables += [table for table in (_files(findings), _candidates(findings)) if table.groups[0].lines]
    tables += [_sensitivity(findings)] if findings.sensitivity else []
    tables += [_compared(findings)] if findings.comparison is not None else []
    return [*tables, _times(findings)]


def _steps(findings: Findings) -> Table:
    """What each step cost: each row's figures, and the difference from the row before."""
    rows = [name for name in (BICUBIC, TEACHER, STUDENT, CALIBRATED, DISTILLED) if name in findings.evaluations]
    words = {
        BICUBIC: "bicubic interpolation",
        TEACHER: "teacher",
        STUDENT: "student, distilled, float32",
        CALIBRATED: "student, int8, calibrated",
        DISTILLED: "student, int8, quantised with distillation",
    }
    lines = []
    for name in rows:
        before = {BICUBIC: None, TEACHER: None, STUDENT: TEACHER}.get(name, STUDENT)
        lines.append(
            Line(words[name], tuple(_with_change(findings, name, before, dataset) for dataset in findings.sets))
        )
    for file in findings.files:
        if file.path is not None:
            cells = tuple(_file_change(findings, file, dataset) for dataset in findings.sets)
            lines.append(Line(f"file: {file.name}, run by its runtime", cells))
    caption = (
        f"What each step cost: {findings.label}, and the change, from the teacher to the float student, and from that"
        " to all others."
    )
    columns = tuple(Column(dataset, f"{findings.label}/change") for dataset in findings.sets)
    return Table("steps", caption, columns, (Group(findings.pipeline.options.scale, tuple(lines)),))


def _files(findings: Findings) -> Table:
    """All files: size, parity, figures, latency."""
    lines, refusals = [], list[str]()
    for file in findings.files:
        facts = file.facts
        if file.path is None:
            lines.append(Line(file.name, ((Figure("not shipped, see below"),), *((Figure(DASH),),) * 4)))
            refusals.append(f"{file.name}: not shipped: {facts['refused']}")
            continue
        kind = "RMS" if file.precision == "int8" else "largest"
        parity = f"{facts['difference']:.1e} ({kind}, allowed {facts['allowed']:.1e}, {facts['sizes']} sizes)"
        times, teacher = file.latency, findings.teacher_latency
        faster = DASH if times is None or teacher is None else f"{teacher.median_ms / times.median_ms:.1f}"
        cells = (
            str(file.path.relative_to(findings.pipeline.folder)),
            f"{facts['bytes'] / 1e3:.1f}",
            parity,
            _ms(times),
            faster,
        )
        lines.append(Line(file.name, tuple((Figure(cell),) for cell in cells)))
    size = "x".join(map(str, findings.pipeline.compress.latency.size))
    columns = ("File", "kB", "Parity with PyTorch", "Latency (ms)", "Times as fast as the teacher")
    caption = (
        f"Files, each run by its runtime. Of int8 files of a target, calibrated alone and quantised with distillation,"
        f" the first loses less and is shipped. Latency of an image of"
        f" {size}, {threads_text(findings)}, in turns: median and middle half; the teacher's is"
        f" {_teacher_text(findings)}."
    )
    notes = (*refusals, *_doubts(findings))
    return Table("files", caption, tuple(map(Column, columns)), (_group(findings, lines),), notes=notes)


def _candidates(findings: Findings) -> Table:
    """All candidates, those tried first."""
    rungs = {str(entry["name"]): entry["rungs"] for entry in findings.order}
    names = [*rungs, *(name for name in findings.costs if name not in rungs and name in findings.pipeline.by_name)]
    lines = []
    for name in names:
        cost, tried = findings.costs[name], rungs.get(name, [])
        decimals = decimals_of(findings.metric) + 1
        figures = [f"{entry['figure']:.{decimals}f}" for entry in tried]
        cells = [
            _ms(findings.latency(name)),
            f"{cost['parameters'] / 1e3:.1f}",
            f"{cost['multiply_adds'] / 1e9:.3f}",
            *figures,
            *[DASH] * (findings.pipeline.compress.search.rungs - len(figures)),
        ]
        chosen = " (chosen)" if name == findings.winner.name else ""
        lines.append(Line(f"{name}{chosen}", tuple((Figure(cell),) for cell in cells)))
    search = findings.pipeline.compress.search
    ends = [search.iterations * search.eta**rung for rung in range(search.rungs)]
    columns = [Column("Latency (ms)"), Column("Params (K)"), Column("Multiply-adds (G)")]
    columns += [Column(f"{findings.label} at {end}") for end in ends]
    budget = findings.pipeline.compress.budget
    caption = (
        f"Candidates, untrained and timed in turns; budget: {budget.limit:g} {budget.kind.replace('_', '-')}. Those on"
        f" its edge were trained briefly and judged on {findings.first} at these iterations. Names are"
        f" {_names(findings)}."
    )
    return Table("candidates", caption, tuple(columns), (_group(findings, lines),))


def _names(findings: Findings) -> str:
    """What the numbers in candidates' names are."""
    compress = findings.pipeline.compress
    families = {**compress.families, **({COMPARED: compress.compare} if compress.compare is not None else {})}
    named = {family: options for family, options in families.items() if options.ranges or family != COMPARED}
    return "; ".join("_".join([family, *map(str.upper, options.ranges)]) for family, options in named.items())


def _sensitivity(findings: Findings) -> Table:
    """What each layer alone loses."""
    ordered = sorted(findings.sensitivity.items(), key=lambda entry: -findings.pipeline.sign * entry[1])
    lines = [Line(name, ((Figure(f"{value:.4f}"),),)) for name, value in ordered]
    caption = f"Sensitivity: {findings.label} lost on {findings.first} where one layer alone is quantised, calibrated."
    return Table("sensitivity", caption, (Column(f"{findings.label} lost"),), (_group(findings, lines),))


def _compared(findings: Findings) -> Table:
    """The chosen student and one of another family of equal latency."""
    comparison = findings.comparison
    assert comparison is not None
    lines = []
    for candidate in (comparison.chosen, comparison.other):
        cells = [f"{comparison.ms[candidate.name]:.3g}"]
        for dataset in findings.sets:
            values = [found[candidate.name][dataset].means()[findings.metric] for found in comparison.figures.values()]
            cells.append(_spread_text(values))
        lines.append(Line(candidate.label, tuple((Figure(cell),) for cell in cells)))
    differences = [_spread_text(comparison.differences(dataset, findings.metric), "+") for dataset in findings.sets]
    lines.append(Line("difference", tuple((Figure(cell),) for cell in (DASH, *differences))))
    seeds = ", ".join(map(str, comparison.figures))
    caption = f"Equal latency, equal training: {findings.label}, mean and standard deviation over seeds {seeds}."
    columns = (Column("Latency (ms)"), *(Column(dataset) for dataset in findings.sets))
    return Table("compared", caption, columns, (_group(findings, lines),))


def _times(findings: Findings) -> Table:
    """How long the steps took."""
    seconds: dict[str, float] = {}
    for name in dict.fromkeys(findings.pipeline.steps.used):
        kind = _kind_of_step(name)
        seconds[kind] = seconds.get(kind, 0.0) + findings.pipeline.steps[name].seconds
    lines = [Line(kind, ((Figure(significant(value / 60)),),)) for kind, value in seconds.items()]
    lines.append(Line("all", ((Figure(significant(sum(seconds.values()) / 60)),),)))
    return Table("times", "Minutes that the steps took.", (Column("Minutes"),), (_group(findings, lines),))


def _kind_of_step(name: str) -> str:
    beginnings = {
        "search_": "search",
        "distil_": "distillation",
        "quantise_": "quantised distillation",
        "candidate ": "untrained candidates written",
        "teacher's file": "untrained candidates written",
        "latencies": "latencies",
        "figures ": "figures on all sets",
        "file ": "files",
    }
    return next((kind for beginning, kind in beginnings.items() if name.startswith(beginning)), name.partition(",")[0])


def _with_change(findings: Findings, name: str, before: str | None, dataset: str) -> tuple[Figure, ...]:
    value = findings.mean(name, dataset)
    return _change(findings, value, findings.mean(before, dataset) if before is not None else None)


def _file_change(findings: Findings, file: ShippedFile, dataset: str) -> tuple[Figure, ...]:
    value = file.evaluations[dataset].means()[findings.metric] if dataset in file.evaluations else None
    return _change(findings, value, findings.mean(STUDENT, dataset))


def _change(findings: Findings, value: float | None, before: float | None) -> tuple[Figure, ...]:
    decimals = decimals_of(findings.metric) + 1
    if value is None:
        return (Figure(DASH), Figure(DASH))
    change = DASH if before is None else f"{round(value - before, decimals) + 0.0:+.{decimals}f}"
    return (Figure(f"{value:.{decimals}f}"), Figure(change))


def _group(findings: Findings, lines: Sequence[Line]) -> Group:
    return Group(findings.pipeline.options.scale, tuple(lines))


def _spread_text(values: Sequence[float], sign: str = "") -> str:
    text = f"{statistics.fmean(values):{sign}.3f}"
    return f"{text} ± {statistics.stdev(values):.3f}" if len(values) > 1 else text


def _ms(latency: Latency | None) -> str:
    if latency is None:
        return DASH
    if latency.low_ms is None or latency.high_ms is None:
        return significant(latency.median_ms)
    return f"{significant(latency.median_ms)} ({significant(latency.low_ms)}{DASH}{significant(latency.high_ms)})"


def threads_text(findings: Findings) -> str:
    """Such as '2 threads'."""
    threads = findings.pipeline.compress.latency.threads
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _teacher_text(findings: Findings) -> str:
    found = findings.teacher_latency
    return f"{_ms(found)} ms, {found.runtime} {found.precision}" if found is not None else "not known"


def _doubts(findings: Findings) -> tuple[str, ...]:
    doubts = dict.fromkeys(file.latency.doubt for file in findings.files if file.latency and file.latency.doubt)
    return tuple(f"Latencies are no figures to quote: {doubt}." for doubt in doubts)
