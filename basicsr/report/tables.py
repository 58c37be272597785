"""Figures as tables: quality laid out as Tables 3 to 5 of MCAD-KD, cost as its Table 2, and every image as CSV.

A `Table` is text without markup; `table_text` writes it as Markdown or LaTeX.

Which figures are marked: within a scale, per dataset and metric, the best figure of the ranked rows is bold and the
second best underlined. Figures are compared as they are printed, so rows that print the same share a mark. Ranked are,
by default, the networks that one chooses among: not bicubic interpolation, which has no parameters, and not a row with
"teacher" in its name. Published rows are ranked only if asked for. One ranked row alone is not marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from basicsr.config.published import PublishedRow, published_rows
from basicsr.files.atomic_files import write_atomically
from basicsr.files.csv_files import Number, csv_text
from basicsr.report.results import Results, Row, ScaleResults

DASH = "\N{EN DASH}"
_LEFT_OUT = "They are left out of tables.tex and plots; measure again on a machine that does nothing else."

Mark = Literal["best", "second", ""]


@dataclass(frozen=True)
class Figure:
    """One number as printed, or any other piece of a cell."""

    text: str
    mark: Mark = ""


Cell = tuple[Figure, ...]  # printed with slashes between


@dataclass(frozen=True)
class Line:
    """One network.

    Attributes:
        method: its name.
        cells: one for each of `Table.columns`.
        references: keys of `Table.references` that speak of this line; () for our own.
    """

    method: str
    cells: tuple[Cell, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """All networks at one scale; `published` stand apart from `lines`."""

    scale: int
    lines: tuple[Line, ...]
    published: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Column:
    """A heading and the line below it."""

    title: str
    subtitle: str = ""


@dataclass(frozen=True)
class Table:
    """A table in the layout of the papers.

    Attributes:
        name: a word, for labels and file names.
        caption: what it shows.
        columns: without those of the scale and of the method.
        groups: one for each scale.
        references: sources of published lines by a number, and remarks on them by a letter.
        notes: sentences to print below.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    references: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_ranked(row: Row) -> bool:
    """Whether a row takes part in the ranking by default: neither bicubic interpolation nor named a teacher."""
    return row.parameters > 0 and "teacher" not in row.name.lower()


def write_csv(path: Path, results: Results) -> None:
    """Writes a line for each scale, network, dataset, image and metric; `seconds` is that of the image's forward pass.

    Args:
        path: the file to create or replace.
        results: what to write.

    Raises:
        CheckpointError: the file cannot be written.
    """
    lines: list[tuple[object, ...]] = []
    for scale in results.scales:
        for row in scale.rows:
            for dataset, evaluation in row.evaluations.items():
                rows = zip(evaluation.images, evaluation.values, evaluation.seconds, strict=True)
                for image, values, seconds in rows:
                    named = [*zip(evaluation.metrics, values, strict=True), ("seconds", seconds)]
                    start = (scale.scale, row.name, dataset, image)
                    lines += [(*start, metric, Number(f"{value:.6f}")) for metric, value in named]
    write_text(path, csv_text(("scale", "network", "dataset", "image", "metric", "value"), lines))


def write_text(path: Path, text: str) -> None:
    """Writes a file in UTF-8, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """

    def write(file: BinaryIO) -> None:
        file.write(text.encode("utf-8", "backslashreplace"))  # names of files need not be text

    write_atomically(path, write)


def quality_table(
    results: Results,
    *,
    published: str | None = None,
    rank_published: bool = False,
    ranked: Callable[[Row], bool] = is_ranked,
    parameters: bool = False,
    images: Sequence[str] | None = None,
) -> Table:
    """Average figures by scale, network and dataset; the module's docstring says what is marked.

    Args:
        results: what was measured.
        published: backbone whose published figures, of the datasets and metrics measured, stand below ours.
        rank_published: rank them (their teachers excepted) among ours.
        ranked: which of our rows take part in the ranking.
        parameters: have a column of them.
        images: sentences that say how many images the averages are over; None for what `results` say.

    Raises:
        OptionsError: nothing is published of that backbone.
    """
    metrics, datasets = results.metrics(), results.datasets()
    theirs = _published_of(results, published)
    references = _references(theirs)
    groups = []
    for scale in results.scales:
        ours = [_printed(row, datasets, metrics) for row in scale.rows]
        others = [_printed_published(row, datasets, metrics) for row in theirs[scale.scale]]
        contest = [entry for row, entry in zip(scale.rows, ours, strict=True) if ranked(row)]
        if rank_published:
            contest += [entry for row, entry in zip(theirs[scale.scale], others, strict=True) if not row.is_teacher]
        marks = _Marks(contest, results, metrics)
        lines = tuple(
            Line(row.name, _front(row, parameters) + marks.cells(entry, datasets))
            for row, entry in zip(scale.rows, ours, strict=True)
        )
        published_lines = tuple(
            Line(row.method, _front(None, parameters) + marks.cells(entry, datasets), _keys(references, row))
            for row, entry in zip(theirs[scale.scale], others, strict=True)
        )
        groups.append(Group(scale.scale, lines, published_lines))
    subtitle = "/".join(metric_label(metric, results.higher_is_better(metric)) for metric in metrics)
    columns = [Column("Params (M)")] if parameters else []
    columns += [Column(dataset, subtitle) for dataset in datasets]
    notes = [*(image_counts(results) if images is None else images), *_about_ranking(results, ranked)]
    notes += _about_published(published, theirs, rank_published) + gaps(results)
    if results.precision != "none":
        notes.append(f"Networks ran in {results.precision} (val: amp), not in float32.")
    caption = f"{results.name}: average {subtitle}. Best figure bold, second best underlined."
    if not metrics:
        caption = f"{results.name}: nothing was measured."
    if results.incomplete:
        caption = f"INCOMPLETE. {caption}"
    return Table("quality", caption, tuple(columns), tuple(groups), references, tuple(notes))


def cost_table(results: Results, *, quoted: bool = False) -> Table:
    """Parameters, multiply-adds and speed by scale and network.

    Args:
        results: what was measured.
        quoted: leave out what is no figure to quote: latencies that were measured under load.
    """
    doubt = results.latency_doubt
    speed = not (quoted and doubt)
    groups = [
        Group(scale.scale, tuple(Line(row.name, _costs(row, speed)) for row in scale.rows)) for scale in results.scales
    ]
    size = "x".join(map(str, results.input_shape))
    columns = ("Params (M)", "Multiply-adds (G)", *(("Latency (ms)", "FPS") if speed else ()))
    caption = f"{results.name}: parameters, multiply-adds{' and speed' if speed else ''} for an input of {size}."
    notes: tuple[str, ...] = ()
    if any(row.latency for scale in results.scales for row in scale.rows):
        if speed:
            caption += (
                f" Latency is the median, and in brackets the middle half, of forward passes of one image in float32 on"
                f" {results.device}, all networks in turn; equal architectures share it."
            )
        if doubt:
            notes = (f"Latencies are no figures to quote: {doubt}. {_LEFT_OUT}",)
    return Table("cost", caption, tuple(Column(title) for title in columns), tuple(groups), notes=notes)


def metric_label(metric: str, higher_is_better: bool) -> str:
    """A metric's name as a heading: PSNR; with an arrow where lower is better."""
    return metric.upper() if higher_is_better else f"{metric.upper()}↓"


def significant(value: float, digits: int = 3) -> str:
    """`value` with at least `digits` significant digits, never in powers of ten: 3293, 43.1, 0.459, 0.0123.

    Whole numbers of more digits keep them all.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}".replace(",", "")


def format_figure(value: float, decimals: int) -> str:
    """An average as tables print it."""
    return f"{value:.{decimals}f}"


def decimals_of(metric: str) -> int:
    """How many decimals tables print: two where figures are of the order of 10, as PSNR's and NIQE's are, else four."""
    return 2 if any(name in metric.lower() for name in ("psnr", "niqe")) else 4


# Text of one row's figures: by dataset and metric, where there is one.
_Printed = Mapping[tuple[str, str], str]


def _printed(row: Row, datasets: Sequence[str], metrics: Sequence[str]) -> _Printed:
    printed = {}
    for dataset in datasets:
        evaluation = row.evaluations.get(dataset)
        means = evaluation.means() if evaluation is not None and evaluation.images else {}
        for metric in metrics:
            if metric in means and not math.isnan(means[metric]):
                printed[dataset, metric] = format_figure(means[metric], decimals_of(metric))
    return printed


def _printed_published(row: PublishedRow, datasets: Sequence[str], metrics: Sequence[str]) -> _Printed:
    return {
        (dataset, metric): format_figure(row.figures[dataset][metric.lower()], decimals_of(metric))
        for dataset in datasets
        for metric in metrics
        if metric.lower() in row.figures.get(dataset, {})
    }


class _Marks:
    """What is best and second best among the contestants."""

    def __init__(self, contest: Sequence[_Printed], results: Results, metrics: Sequence[str]) -> None:
        self._metrics = metrics
        self._contest = {id(entry) for entry in contest}
        self._marks: dict[tuple[str, str], list[str]] = {}
        keys = dict.fromkeys(key for entry in contest for key in entry)
        for dataset, metric in keys:
            texts = [entry[dataset, metric] for entry in contest if (dataset, metric) in entry]
            order = sorted(set(texts), key=float, reverse=results.higher_is_better(metric))
            self._marks[dataset, metric] = order[:2] if len(texts) > 1 else []

    def cells(self, printed: _Printed, datasets: Sequence[str]) -> tuple[Cell, ...]:
        """A cell for each dataset; a dash where there is no figure at all."""
        cells: list[Cell] = []
        for dataset in datasets:
            if not any((dataset, metric) in printed for metric in self._metrics):
                cells.append((Figure(DASH),))
                continue
            cells.append(tuple(self._figure(printed, dataset, metric) for metric in self._metrics))
        return tuple(cells)

    def _figure(self, printed: _Printed, dataset: str, metric: str) -> Figure:
        text = printed.get((dataset, metric))
        if text is None:
            return Figure(DASH)
        order = self._marks.get((dataset, metric), [])
        if id(printed) not in self._contest or text not in order:
            return Figure(text)
        return Figure(text, "best" if order.index(text) == 0 else "second")


def _front(row: Row | None, parameters: bool) -> tuple[Cell, ...]:
    if not parameters:
        return ()
    return ((Figure(_millions(row) if row else DASH),),)


def _millions(row: Row) -> str:
    """Parameters in millions: two decimals as in the papers, more where there are few."""
    if not row.parameters:
        return DASH
    return _two_decimals(row.parameters / 1e6)


def _two_decimals(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else significant(value)


def _costs(row: Row, speed: bool) -> tuple[Cell, ...]:
    texts = [_millions(row), _two_decimals(row.multiply_adds / 1e9) if row.multiply_adds else DASH]
    if speed and row.latency is not None:
        times = (row.latency.median, row.latency.low, row.latency.high)
        median, low, high = (significant(1000 * value) for value in times)
        texts += [f"{median} ({low}{DASH}{high})", significant(1 / row.latency.median)]
    elif speed:
        texts += [DASH, DASH]
    return tuple((Figure(text),) for text in texts)


def _published_of(results: Results, backbone: str | None) -> dict[int, list[PublishedRow]]:
    """By scale: rows with a figure of any of our datasets, those of one method together, the teacher first."""
    datasets = set(results.datasets())
    found: dict[int, list[PublishedRow]] = {}
    for scale in results.scales:
        rows = published_rows(backbone, scale.scale) if backbone else ()
        methods = list(dict.fromkeys(row.method for row in rows))
        kept = [row for row in rows if set(row.figures) & datasets]
        found[scale.scale] = sorted(kept, key=lambda row: methods.index(row.method))
    return found


def _references(theirs: Mapping[int, Sequence[PublishedRow]]) -> dict[str, str]:
    """Sources by number, remarks by letter; a teacher, which stands first, comes last in the papers' order."""
    rows = sorted((row for rows in theirs.values() for row in rows), key=lambda row: row.is_teacher)
    sources = dict.fromkeys(source for row in rows for source in row.sources)
    remarks = dict.fromkeys(row.note for row in rows if row.note)
    letters = zip("abcdefghijklmnopqrstuvwxyz", remarks, strict=False)
    return {str(number): source for number, source in enumerate(sources, 1)} | dict(letters)


def _keys(references: Mapping[str, str], row: PublishedRow) -> tuple[str, ...]:
    return tuple(key for key, text in references.items() if text in row.sources or text == row.note)


def _about_ranking(results: Results, ranked: Callable[[Row], bool]) -> list[str]:
    names = dict.fromkeys(row.name for scale in results.scales for row in scale.rows if not ranked(row))
    return [f"Not ranked: {', '.join(names)}."] if names else []


def _about_published(backbone: str | None, theirs: Mapping[int, Sequence[PublishedRow]], ranked: bool) -> list[str]:
    if backbone is None:
        return []
    names = {row.backbone for rows in theirs.values() for row in rows}
    if not names:
        return [f"Nothing is published of {backbone} for these scales and datasets."]
    ranking = "ranked among ours, the teachers excepted" if ranked else "not ranked"
    in_colour = any("GoPro" in row.figures for rows in theirs.values() for row in rows)
    measured = "RGB" if in_colour else "luma with a border of the scale cut off"
    return [f"Published figures of {names.pop()} are average PSNR and SSIM of {measured}; {ranking}."]


def weights_used(results: Results) -> list[str]:
    """Which file each network's weights are from."""
    return [
        f"x{scale.scale} {row.name}: {row.weights}" for scale in results.scales for row in scale.rows if row.weights
    ]


def image_counts(results: Results) -> list[str]:
    """How many images the averages are over: "Images: Set5 5, Set14 14 (x3: 13)."; nothing where there are none."""
    counts: dict[str, dict[int, list[str]]] = {}
    for scale in results.scales:
        for row in scale.rows:
            for dataset, evaluation in row.evaluations.items():
                where = counts.setdefault(dataset, {}).setdefault(len(evaluation.images), [])
                where += [] if f"x{scale.scale}" in where else [f"x{scale.scale}"]
    parts = []
    for dataset, numbers in counts.items():
        (first, _), *others = numbers.items()
        parts.append(f"{dataset} {first}" + "".join(f" ({', '.join(where)}: {number})" for number, where in others))
    return [f"Images: {', '.join(parts)}."] if parts else []


def gaps(results: Results) -> list[str]:
    """Why figures are missing or are not what they seem; what holds at several scales is said once."""
    scales: dict[str, list[str]] = {}
    for scale in results.scales:
        warnings = [f"WARNING: {warning}." for warning in scale.warnings]
        for sentence in (*warnings, *(f"left out {skipped}" for skipped in scale.skipped), *_without_hr(scale)):
            scales.setdefault(sentence, []).append(f"x{scale.scale}")
    about = [f"INCOMPLETE: {results.incomplete}"] if results.incomplete else []
    return about + [f"{', '.join(where)}: {sentence}" for sentence, where in scales.items()]


def _without_hr(scale: ScaleResults) -> list[str]:
    names = [
        dataset
        for dataset in scale.datasets()
        if not any(row.evaluations[dataset].metrics for row in scale.rows if dataset in row.evaluations)
    ]
    return [f"{name} has no figures: it has no HR images, or no metric was asked for." for name in names]
