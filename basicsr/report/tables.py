"""What an evaluation of several networks found, and its tables.

Quality is laid out as Tables 3 to 5 of MCAD-KD, cost as its Table 2, and every image as CSV.

Marked are, within a scale, per dataset and metric, the best (bold) and second best (underlined) figure, as printed, of
the ranked rows, if there are several: by default not bicubic interpolation, teachers and published rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import BinaryIO, Literal

from basicsr.config.published import PublishedRow, published_rows
from basicsr.files.atomic_files import write_atomically
from basicsr.files.csv_files import Number, csv_text
from basicsr.metrics.evaluator import Evaluation
from basicsr.utils.timing import Spread

DASH = "\N{EN DASH}"

Mark = Literal["best", "second", ""]


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


@dataclass(frozen=True)
class Figure:
    """One number as printed, or any other piece of a cell."""

    text: str
    mark: Mark = ""


Cell = tuple[Figure, ...]  # printed with slashes between


@dataclass(frozen=True)
class Line:
    """One network: its name, a cell for each of `Table.columns`, and keys of `Table.references` about it."""

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
    """A table in the layout of the papers, without the columns of the scale and of the method."""

    name: str  # a word, for labels and file names
    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    references: Mapping[str, str] = field(default_factory=dict)  # sources by number, remarks by letter
    notes: tuple[str, ...] = ()


def write_csv(path: Path, results: Results) -> None:
    """Writes a line for each scale, network, dataset, image and metric; `seconds` is that of the forward pass."""
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
    """Writes a file in UTF-8, whole or not at all; raises CheckpointError if it cannot be written."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode("utf-8", "backslashreplace"))  # names of files need not be text

    write_atomically(path, write)


def quality_table(
    results: Results,
    *,
    published: str | None = None,
    ranked: Callable[[Row], bool] = lambda row: row.is_ranked,
    images: Sequence[str] | None = None,
) -> Table:
    """Average figures by scale, network and dataset; the module's docstring says which are marked.

    Below ours stand those published of the backbone `published`; OptionsError if there are none. `ranked` rows take
    part in the ranking; `images` are sentences on how many images were measured.
    """
    metrics, datasets = results.metrics(), results.datasets()
    theirs = {scale.scale: _published(results, published, scale.scale) for scale in results.scales}
    all_published = [row for rows in theirs.values() for row in rows]
    references = _references(all_published)
    groups = []
    for scale in results.scales:
        figures = [
            {name: found.means() for name, found in row.evaluations.items() if found.images} for row in scale.rows
        ]
        ours = [_printed(found, datasets, metrics) for found in figures]
        contest = [texts for row, texts in zip(scale.rows, ours, strict=True) if ranked(row)]
        order = {}  # the best and the second best text by dataset and metric, where there are several
        for dataset, metric in product(datasets, metrics):
            texts = [entry[dataset, metric] for entry in contest if (dataset, metric) in entry]
            if len(texts) > 1:
                reverse = results.higher_is_better(metric)
                order[dataset, metric] = sorted(set(texts), key=float, reverse=reverse)[:2]
        lines = [
            Line(row.name, _cells(texts, datasets, metrics, order if ranked(row) else {}))
            for row, texts in zip(scale.rows, ours, strict=True)
        ]
        published_lines = [
            Line(
                row.method,
                _cells(_printed(row.figures, datasets, metrics), datasets, metrics, {}),
                tuple(key for key, text in references.items() if text in row.sources or text == row.note),
            )
            for row in theirs[scale.scale]
        ]
        groups.append(Group(scale.scale, tuple(lines), tuple(published_lines)))
    subtitle = "/".join(metric_label(metric, results.higher_is_better(metric)) for metric in metrics)
    notes = list(_image_counts(results) if images is None else images)
    unranked = dict.fromkeys(row.name for scale in results.scales for row in scale.rows if not ranked(row))
    notes += [f"Not ranked: {', '.join(unranked)}."] if unranked else []
    if all_published:
        in_colour = any("GoPro" in row.figures for row in all_published)
        what = f"PSNR and SSIM of {'RGB' if in_colour else 'luma with a border of the scale cut off'}"
        notes.append(f"Published figures of {all_published[0].backbone} are average {what}; not ranked.")
    elif published is not None:
        notes.append(f"Nothing is published of {published} for these scales and datasets.")
    notes += gaps(results)
    if results.precision != "none":
        notes.append(f"Networks ran in {results.precision} (val: amp), not in float32.")
    caption = f"{results.name}: average {subtitle}. Best figure bold, second best underlined."
    if not metrics:
        caption = f"{results.name}: nothing was measured."
    if results.incomplete:
        caption = f"INCOMPLETE. {caption}"
    columns = tuple(Column(dataset, subtitle) for dataset in datasets)
    return Table("quality", caption, columns, tuple(groups), references, tuple(notes))


def cost_table(results: Results, *, quoted: bool = False) -> Table:
    """Parameters, multiply-adds and speed by scale and network; `quoted` without latencies measured under load."""
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
            remedy = "They are left out of tables.tex and plots; measure again on a machine that does nothing else."
            notes = (f"Latencies are no figures to quote: {doubt}. {remedy}",)
    return Table("cost", caption, tuple(map(Column, columns)), tuple(groups), notes=notes)


def metric_label(metric: str, higher_is_better: bool) -> str:
    """A metric's name as a heading: PSNR; with an arrow where lower is better."""
    return metric.upper() if higher_is_better else f"{metric.upper()}↓"


def significant(value: float) -> str:
    """`value` with at least three significant digits, never in powers of ten: 3293, 43.1, 0.459, 0.0123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(float(f"{value:.2e}"))))
    return f"{value:.{max(2 - exponent, 0)}f}"


def labelled_figure(metric: str, value: float, higher_is_better: bool) -> str:
    """A metric and its figure as tables print them: PSNR 33.68."""
    return f"{metric_label(metric, higher_is_better)} {value:.{decimals_of(metric)}f}"


def decimals_of(metric: str) -> int:
    """How many decimals tables print: two where figures are of the order of 10, as PSNR's and NIQE's are, else four."""
    return 2 if any(name in metric.lower() for name in ("psnr", "niqe")) else 4


_Texts = Mapping[tuple[str, str], str]  # a row's figures as printed, by dataset and metric


def _printed(figures: Mapping[str, Mapping[str, float]], datasets: Sequence[str], metrics: Sequence[str]) -> _Texts:
    """The figures that exist; published ones have lower-case names of metrics."""
    found = {
        (dataset, metric): figures[dataset].get(metric, figures[dataset].get(metric.lower(), math.nan))
        for dataset in datasets
        if dataset in figures
        for metric in metrics
    }
    return {key: f"{value:.{decimals_of(key[1])}f}" for key, value in found.items() if not math.isnan(value)}


def _cells(
    texts: _Texts, datasets: Sequence[str], metrics: Sequence[str], order: Mapping[tuple[str, str], list[str]]
) -> tuple[Cell, ...]:
    """A cell for each dataset; a dash where there is no figure at all."""

    def figure(key: tuple[str, str]) -> Figure:
        text, best = texts.get(key, DASH), order.get(key, [])
        return Figure(text, "" if text not in best else "best" if text == best[0] else "second")

    return tuple(
        tuple(figure((dataset, metric)) for metric in metrics)
        if any((dataset, metric) in texts for metric in metrics)
        else (Figure(DASH),)
        for dataset in datasets
    )


def _costs(row: Row, speed: bool) -> tuple[Cell, ...]:
    texts = []
    for count, unit in ((row.parameters, 1e6), (row.multiply_adds or 0, 1e9)):
        text = f"{count / unit:.2f}" if count >= unit else significant(count / unit)
        texts.append(text if count else DASH)
    if speed and row.latency is not None:
        times = (row.latency.median, row.latency.low, row.latency.high)
        median, low, high = (significant(1000 * value) for value in times)
        texts += [f"{median} ({low}{DASH}{high})", significant(1 / row.latency.median)]
    elif speed:
        texts += [DASH, DASH]
    return tuple((Figure(text),) for text in texts)


def _published(results: Results, backbone: str | None, scale: int) -> list[PublishedRow]:
    """Rows with a figure of any of our datasets, those of one method together, the teacher first."""
    rows = published_rows(backbone, scale) if backbone else ()
    methods = list(dict.fromkeys(row.method for row in rows))
    kept = [row for row in rows if set(row.figures) & set(results.datasets())]
    return sorted(kept, key=lambda row: methods.index(row.method))


def _references(rows: Iterable[PublishedRow]) -> dict[str, str]:
    """Sources by number, remarks by letter; a teacher, which stands first, comes last in the papers' order."""
    rows = sorted(rows, key=lambda row: row.is_teacher)
    sources = dict.fromkeys(source for row in rows for source in row.sources)
    remarks = dict.fromkeys(row.note for row in rows if row.note)
    letters = zip("abcdefghijklmnopqrstuvwxyz", remarks, strict=False)
    return {str(number): source for number, source in enumerate(sources, 1)} | dict(letters)


def weights_used(results: Results) -> list[str]:
    """Which file each network's weights are from."""
    return [
        f"x{scale.scale} {row.name}: {row.weights}" for scale in results.scales for row in scale.rows if row.weights
    ]


def _image_counts(results: Results) -> list[str]:
    """How many images the averages are over: "Images: Set5 5, Set14 14 (x3: 13)."; nothing where there are none."""
    counts: dict[str, dict[int, dict[str, None]]] = {}
    for scale in results.scales:
        for row in scale.rows:
            for dataset, evaluation in row.evaluations.items():
                of_number = counts.setdefault(dataset, {}).setdefault(len(evaluation.images), {})
                of_number[f"x{scale.scale}"] = None
    parts = []
    for dataset, numbers in counts.items():
        (first, _), *others = numbers.items()
        parts.append(f"{dataset} {first}" + "".join(f" ({', '.join(where)}: {number})" for number, where in others))
    return [f"Images: {', '.join(parts)}."] if parts else []


def gaps(results: Results) -> list[str]:
    """Missing figures, and warnings; one sentence for several scales."""
    scales: dict[str, list[str]] = {}
    for scale in results.scales:
        sentences = [f"WARNING: {warning}." for warning in scale.warnings]
        sentences += [f"left out {skipped}" for skipped in scale.skipped]
        for dataset in scale.datasets():
            if not any(row.evaluations[dataset].metrics for row in scale.rows if dataset in row.evaluations):
                sentences.append(f"{dataset} has no figures: it has no HR images, or no metric was asked for.")
        for sentence in sentences:
            scales.setdefault(sentence, []).append(f"x{scale.scale}")
    about = [f"INCOMPLETE: {results.incomplete}"] if results.incomplete else []
    return about + [f"{', '.join(where)}: {sentence}" for sentence, where in scales.items()]
