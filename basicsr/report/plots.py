"""Plots of quality against cost: one dataset and scale, a panel each for parameters, multiply-adds and latency.

Latencies have bars over the middle half of their times; those that were measured under load are not drawn. Nothing here
touches pyplot or matplotlib's global settings, so that plots do not depend on a user's settings.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from basicsr.config.published import PUBLISHED_COST_INPUT, PublishedRow, published_cost
from basicsr.files.atomic_files import write_atomically
from basicsr.report.labels import LABEL_SIZE, Label, Point, place_labels, text_size
from basicsr.report.tables import Results, Row, ScaleResults, decimals_of, metric_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind and in gray; without yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">")
_INK, _FAINT, _PALE = "#202024", "#707076", "#B4B4BA"
_THOUSANDS = ((1e9, "G"), (1e6, "M"), (1e3, "K"))
_STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E8",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "basicsr",  # equal plots are equal files
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class _Panel:
    """One kind of cost, in the unit that `label` names; rows by name, published ones as (cost, value, is_teacher)."""

    label: str
    costs: Mapping[str, float]
    published: Sequence[tuple[float, float, bool]]
    ranges: Mapping[str, Point]  # the middle half of a row's costs


@dataclass(frozen=True)
class _Networks:
    """What all panels draw: the rows with a figure, and the figures by the rows' names."""

    rows: Sequence[Row]
    values: Mapping[str, float]

    def points(self, panel: _Panel) -> dict[str, Point]:
        return {
            row.name: (panel.costs[row.name], self.values[row.name]) for row in self.rows if row.name in panel.costs
        }


def cost_figure(
    results: Results, scale: ScaleResults, dataset: str, *, metric: str = "psnr", published: Sequence[PublishedRow] = ()
) -> Figure | None:
    """A metric against the networks' costs, one panel a kind; None if no network has both. Published rows are gray."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = {row.name: value for row in scale.rows if (value := _mean(row, dataset, metric)) is not None}
    networks = _Networks([row for row in scale.rows if row.name in values], values)
    theirs = [
        (cost, row.figures[dataset][metric.lower()], row.is_teacher)
        for row in published
        if metric.lower() in row.figures.get(dataset, {}) and (cost := published_cost(row)) is not None
    ]
    panels = _panels(results, networks.rows, theirs)
    if not panels:
        return None
    with plot_style():
        figure = Figure(figsize=(0.4 + 3.6 * len(panels), 3.4), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)  # measures letters
        figure.suptitle(f"{dataset}, x{scale.scale}", fontsize=10.5)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        label = metric_label(metric, results.higher_is_better(metric))
        axes[0].set_ylabel(f"{label} (dB)" if "psnr" in metric.lower() else label)
        _set_heights(axes[0], networks, [value for _, value, _ in panels[0].published])
        for panel_axes, panel in zip(axes, panels, strict=True):
            _draw(panel_axes, panel, networks)
        figure.draw_without_rendering()  # settles the layout, in which labels are placed
        figure.set_layout_engine("none")
        for panel_axes, panel in zip(axes, panels, strict=True):
            _label(panel_axes, panel, networks, decimals_of(metric))
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, whole or not at all, in the format of the path's ending, such as .svg, .png or .pdf."""
    write_atomically(path, lambda file: _save(figure, file, path.suffix[1:]))


def figure_svg(figure: Figure) -> str:
    """The figure as an <svg> element to put into an HTML page; its letters are text."""
    file = io.BytesIO()
    _save(figure, file, "svg")
    text = file.getvalue().decode()
    return text[text.index("<svg") :]


def _save(figure: Figure, file: BinaryIO, kind: str) -> None:
    metadata = {"Date": None} if kind == "svg" else None
    with plot_style():
        figure.savefig(file, format=kind, metadata=metadata)


def plot_style() -> AbstractContextManager[None]:
    """Matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    from matplotlib import style

    return style.context(["default", dict(_STYLE)])


def _mean(row: Row, dataset: str, metric: str) -> float | None:
    evaluation = row.evaluations.get(dataset)
    value = evaluation.means().get(metric, math.nan) if evaluation is not None else math.nan
    return value if math.isfinite(value) else None


def _panels(results: Results, rows: Sequence[Row], theirs: Sequence[tuple[Any, float, bool]]) -> list[_Panel]:
    size = "\N{MULTIPLICATION SIGN}".join(map(str, results.input_shape))
    networks = [row for row in rows if row.parameters]
    panels = []
    for name, label in (("parameters", "Parameters ({})"), ("multiply_adds", f"Multiply-adds ({{}}), {size} input")):
        costs = {row.name: cost for row in networks if (cost := getattr(row, name))}
        comparable = name == "parameters" or results.input_shape == PUBLISHED_COST_INPUT
        published = [(getattr(cost, name), value, teacher) for cost, value, teacher in theirs] if comparable else []
        largest = max([*costs.values(), *(cost for cost, *_ in published)], default=0)
        unit, letter = next((entry for entry in _THOUSANDS if largest >= entry[0]), _THOUSANDS[-1])
        panels.append(
            _Panel(
                label.format(letter),
                {name: cost / unit for name, cost in costs.items()},
                [(cost / unit, value, teacher) for cost, value, teacher in published],
                {},
            )
        )
    latencies = {row.name: row.latency for row in networks if row.latency is not None}
    if not results.latency_doubt:
        medians = {name: found.median / 1e-3 for name, found in latencies.items()}
        ranges = {name: (1e3 * found.low, 1e3 * found.high) for name, found in latencies.items()}
        panels.append(_Panel(f"Latency (ms), {size} input,\n{results.device}", medians, [], ranges))
    return [panel for panel in panels if panel.costs]


def _draw(axes: Axes, panel: _Panel, networks: _Networks) -> None:
    axes.set_xlabel(panel.label)
    _set_widths(axes, [*panel.costs.values(), *(cost for cost, *_ in panel.published), *chain(*panel.ranges.values())])
    for cost, value, _ in panel.published:
        axes.plot(cost, value, "o", color=_PALE, markersize=4, zorder=2)
    points = networks.points(panel)
    for number, row in enumerate(row for row in networks.rows if row.parameters):
        colour = COLOURS[number % len(COLOURS)]
        if row.name in panel.ranges:
            level = [networks.values[row.name]] * 2
            axes.plot(panel.ranges[row.name], level, color=colour, linewidth=1.4, zorder=2.5)
        if row.name in points:
            edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(*points[row.name], marker, color=colour, markersize=7.5, zorder=3, **edge)


def _set_widths(axes: Axes, costs: Sequence[float]) -> None:
    """Room for labels beside the points; a logarithmic axis where costs differ more than threefold."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(costs), max(costs)
    if high > 3 * low:
        margin = (high / low) ** 0.34
        axes.set_xscale("log")
        axes.set_xlim(low / margin, high * margin)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 60 * low else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.4 * (high - low) or 0.3 * high
        axes.set_xlim(max(low - margin, 0), high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _set_heights(axes: Axes, networks: _Networks, published: Sequence[float]) -> None:
    """Limits for the networks; rows without parameters are taken in where that does not squeeze the others."""
    points = [networks.values[row.name] for row in networks.rows if row.parameters] + list(published)
    low, high = min(points), max(points)
    spread = high - low or 0.01 * abs(high) or 1.0
    for value in networks.values.values():
        if low - spread < value < high + spread:
            low, high = min(low, value), max(high, value)
    margin = 0.14 * (high - low) or spread
    axes.set_ylim(low - margin, high + margin)


def _label(axes: Axes, panel: _Panel, networks: _Networks, decimals: int) -> None:
    """Writes the networks' names beside their points, and one name beside each column of gray points."""
    taken = _draw_lines(axes, networks, decimals)
    labels = [Label(name, point, _INK) for name, point in networks.points(panel).items()]
    columns = {(teacher, cost): (cost, value) for cost, value, teacher in panel.published}
    for (teacher, _), point in columns.items():
        labels.append(Label(f"published {'teacher' if teacher else 'students'}", point, _FAINT))
    place_labels(axes, labels, [(cost, value) for cost, value, _ in panel.published], taken)


def _draw_lines(axes: Axes, networks: _Networks, decimals: int) -> list[np.ndarray]:
    """Dashed lines of rows without parameters, arrows if outside the axes; returns their names' rectangles."""
    boxes: list[np.ndarray] = []
    low, high = axes.get_ylim()
    extent, gap = axes.get_window_extent(), 3 * axes.figure.dpi / 72
    for row in (row for row in networks.rows if not row.parameters):
        value = networks.values[row.name]
        visible = low < value < high
        text = row.name if visible else f"{'↓' if value <= low else '↑'} {row.name}: {value:.{decimals}f}"
        width, height = text_size(axes, text)
        left, bottom = extent.x0 + 2 * gap, extent.y0 + gap
        if visible:
            axes.axhline(value, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            bottom = axes.transData.transform((1, value))[1] + gap
        elif value >= high:
            bottom = extent.y1 - gap - height
        while any(
            box[0] < left + width and left < box[2] and box[1] < bottom + height and bottom < box[3] for box in boxes
        ):
            bottom += height
        boxes.append(np.array([left, bottom, left + width, bottom + height]))
        x, y = axes.transAxes.inverted().transform((left, bottom))
        axes.text(x, y, text, transform=axes.transAxes, fontsize=LABEL_SIZE, color=_FAINT, va="bottom", zorder=2.5)
    return boxes
