"""Plots of quality against cost: one dataset and scale, a panel each for parameters, multiply-adds and latency.

Latencies have bars over the middle half of their times; those that were measured under load are not drawn.

Nothing here touches pyplot or matplotlib's global settings, so that plots look alike whatever a user has configured.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from basicsr.config.published import PUBLISHED_COST_INPUT, PublishedCost, PublishedRow, published_cost
from basicsr.files.atomic_files import write_atomically
from basicsr.report.labels import LABEL_SIZE, Box, Entry, place_labels, text_size
from basicsr.report.results import Results, Row, ScaleResults
from basicsr.report.tables import decimals_of, metric_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind and in gray; yellow, too light for lines, is left out.
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
class _Heights:
    """What all panels draw: `values` of the rows, by name, and `theirs_values` of the published ones."""

    rows: Sequence[Row]
    values: Mapping[str, float]
    theirs: Sequence[PublishedRow]
    theirs_values: Sequence[float]
    decimals: int


@dataclass(frozen=True)
class _Panel:
    """One kind of cost, in the unit that `label` names."""

    label: str
    costs: Mapping[str, float]  # of a row, by its name
    published: Mapping[int, float]  # of a published row, by its place
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # middle half of a row's cost, by its name


def cost_figure(
    results: Results,
    scale: ScaleResults,
    dataset: str,
    *,
    metric: str = "psnr",
    published: Sequence[PublishedRow] = (),
) -> Figure | None:
    """Draws a metric's average on a dataset against what the networks cost.

    There is a panel for each kind of cost that is known of at least one network. Bicubic interpolation, and any other
    row without parameters, is a dashed line. Published rows are gray, in the panels of the costs that papers give
    (x4, input of 3 x 256 x 256).

    Args:
        results: what `scale` is of.
        scale: the networks.
        dataset: whose figures to draw.
        metric: which of them.
        published: rows to draw beside ours.

    Returns:
        The figure; None if no network has both a figure and a cost.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = {row.name: value for row in scale.rows if (value := _mean(row, dataset, metric)) is not None}
    rows = [row for row in scale.rows if row.name in values]
    theirs = [row for row in published if metric.lower() in row.figures.get(dataset, {})]
    theirs_values = [row.figures[dataset][metric.lower()] for row in theirs]
    heights = _Heights(rows, values, theirs, theirs_values, decimals_of(metric))
    panels = _panels(results, rows, theirs)
    if not panels:
        return None
    with plot_style():
        figure = Figure(figsize=(0.4 + 3.6 * len(panels), 3.4), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)  # measures letters
        figure.suptitle(f"{dataset}, x{scale.scale}", fontsize=10.5)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        axes[0].set_ylabel(_axis_label(metric, results))
        _set_heights(axes[0], heights, bool(panels[0].published))
        for panel_axes, panel in zip(axes, panels, strict=True):
            _draw(panel_axes, panel, heights)
        figure.draw_without_rendering()  # settles the layout, which labels are placed in
        figure.set_layout_engine("none")
        for panel_axes, panel in zip(axes, panels, strict=True):
            _label(panel_axes, panel, heights)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format that the path's ending names, such as .svg, .png or .pdf; whole or not at all.

    Raises:
        CheckpointError: the file cannot be written.
    """
    metadata = {"Date": None} if path.suffix == ".svg" else None

    def write(file: BinaryIO) -> None:
        figure.savefig(file, format=path.suffix[1:], metadata=metadata)

    with plot_style():
        write_atomically(path, write)


def figure_svg(figure: Figure) -> str:
    """The figure as an <svg> element to put into an HTML page; its letters are text."""
    file = io.StringIO()
    with plot_style():
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def plot_style() -> AbstractContextManager[None]:
    """Matplotlib's defaults and ours, whatever the user's matplotlibrc says."""
    from matplotlib import style

    return style.context(["default", dict(_STYLE)])


def _mean(row: Row, dataset: str, metric: str) -> float | None:
    evaluation = row.evaluations.get(dataset)
    if evaluation is None or metric not in evaluation.metrics:
        return None
    value = evaluation.means()[metric]
    return value if math.isfinite(value) else None


def _panels(results: Results, rows: Sequence[Row], theirs: Sequence[PublishedRow]) -> list[_Panel]:
    size = "\N{MULTIPLICATION SIGN}".join(map(str, results.input_shape))
    costs = {number: cost for number, row in enumerate(theirs) if (cost := published_cost(row)) is not None}
    comparable = results.input_shape == PUBLISHED_COST_INPUT
    panels = [
        _panel("Parameters ({})", _THOUSANDS, _known(rows, "parameters"), _known_of(costs, "parameters")),
        _panel(
            f"Multiply-adds ({{}}), {size} input",
            _THOUSANDS,
            _known(rows, "multiply_adds"),
            _known_of(costs, "multiply_adds") if comparable else {},
        ),
    ]
    latencies = {row.name: row.latency for row in rows if row.parameters and row.latency is not None}
    if latencies and not results.latency_doubt:
        medians = {name: found.median for name, found in latencies.items()}
        panel = _panel(f"Latency ({{}}), {size} input,\n{results.device}", ((1e-3, "ms"),), medians, {})
        ranges = {name: (1e3 * found.low, 1e3 * found.high) for name, found in latencies.items()}
        panels.append(replace(panel, ranges=ranges))
    return [panel for panel in panels if panel.costs]


def _panel(
    label: str, units: Sequence[tuple[float, str]], ours: Mapping[str, float], theirs: Mapping[int, float]
) -> _Panel:
    """A panel in the largest unit in which some network costs at least 1, or in the smallest one."""
    largest = max([*ours.values(), *theirs.values()], default=0)
    unit, name = next((entry for entry in units if largest >= entry[0]), units[-1])
    return _Panel(
        label.format(name),
        {key: cost / unit for key, cost in ours.items()},
        {key: cost / unit for key, cost in theirs.items()},
    )


def _known(rows: Sequence[Row], attribute: str) -> dict[str, float]:
    return {row.name: cost for row in rows if row.parameters and (cost := getattr(row, attribute))}


def _known_of(costs: Mapping[int, PublishedCost], attribute: str) -> dict[int, float]:
    return {number: getattr(cost, attribute) for number, cost in costs.items()}


def _axis_label(metric: str, results: Results) -> str:
    label = metric_label(metric, results.higher_is_better(metric))
    return f"{label} (dB)" if "psnr" in metric.lower() else label


def _draw(axes: Axes, panel: _Panel, heights: _Heights) -> None:
    axes.set_xlabel(panel.label)
    _set_widths(axes, [*panel.costs.values(), *panel.published.values(), *chain(*panel.ranges.values())])
    for number, cost in panel.published.items():
        axes.plot(cost, heights.theirs_values[number], "o", color=_PALE, markersize=4, zorder=2)
    for number, row in enumerate(row for row in heights.rows if row.parameters):
        if row.name in panel.ranges:
            level = [heights.values[row.name]] * 2
            axes.plot(panel.ranges[row.name], level, color=COLOURS[number % len(COLOURS)], linewidth=1.4, zorder=2.5)
        if row.name in panel.costs:
            axes.plot(
                panel.costs[row.name],
                heights.values[row.name],
                MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
                markersize=7.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3,
            )


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


def _set_heights(axes: Axes, heights: _Heights, with_published: bool) -> None:
    """Limits for the networks; rows without parameters are taken in where that does not squeeze the others."""
    points = [heights.values[row.name] for row in heights.rows if row.parameters]
    points += heights.theirs_values if with_published else []
    low, high = min(points), max(points)
    spread = high - low or 0.01 * abs(high) or 1.0
    for row in heights.rows:
        value = heights.values[row.name]
        if low - spread < value < high + spread:
            low, high = min(low, value), max(high, value)
    margin = 0.14 * (high - low) or spread
    axes.set_ylim(low - margin, high + margin)


def _label(axes: Axes, panel: _Panel, heights: _Heights) -> None:
    """Writes the networks' names beside their points, and beside each column of gray points what it is."""
    taken = _draw_lines(axes, heights)
    entries = [
        Entry(row.name, (panel.costs[row.name], heights.values[row.name]), _INK)
        for row in heights.rows
        if row.name in panel.costs
    ]
    gray = {number: (cost, heights.theirs_values[number]) for number, cost in panel.published.items()}
    columns = {(heights.theirs[number].is_teacher, cost): number for number, cost in panel.published.items()}
    for (is_teacher, _), number in columns.items():
        entries.append(Entry(f"published {'teacher' if is_teacher else 'students'}", gray[number], _FAINT))
    place_labels(axes, entries, list(gray.values()), taken)


def _draw_lines(axes: Axes, heights: _Heights) -> list[Box]:
    """Dashed lines of rows without parameters, arrows where they are out of sight; returns what their names cover."""
    boxes: list[Box] = []
    low, high = axes.get_ylim()
    extent, gap = axes.get_window_extent(), 3 * axes.figure.dpi / 72
    for row in (row for row in heights.rows if not row.parameters):
        value = heights.values[row.name]
        visible = low < value < high
        text = row.name if visible else f"{'↓' if value <= low else '↑'} {row.name}: {value:.{heights.decimals}f}"
        width, height = text_size(axes, text)
        left, bottom = extent.x0 + 2 * gap, extent.y0 + gap
        if visible:
            axes.axhline(value, color=_FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            bottom = axes.transData.transform((1, value))[1] + gap
        elif value >= high:
            bottom = extent.y1 - gap - height
        box = Box(left, bottom, left + width, bottom + height)
        while any(box.overlaps(other) for other in boxes):
            box = Box(left, box.top, left + width, box.top + height)
        boxes.append(box)
        x, y = axes.transAxes.inverted().transform((box.left, box.bottom))
        axes.text(x, y, text, transform=axes.transAxes, fontsize=LABEL_SIZE, color=_FAINT, va="bottom", zorder=2.5)
    return boxes
