"""Plots of quality against cost: one dataset and scale, a panel each for parameters, multiply-adds and latency.

Latencies have bars over the middle half of their times; those that were measured under load are not drawn. Nothing here
touches pyplot or matplotlib's global settings, so that plots do not depend on a user's settings. Names stand beside the
points and hide neither points nor one another: each place around a point has a price, and so have two places that meet;
labels take their cheapest place in turn until none changes, and the best of several orders stays.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from basicsr.config.published import PUBLISHED_COST_INPUT, PublishedRow, published_cost
from basicsr.files.atomic_files import write_atomically
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

_LABEL_SIZE = 7.5  # points
_LONGEST = 32  # characters of a name
_ORDERS, _ROUNDS = 24, 8
_RADII = (6.0, 14.0, 24.0, 36.0, 50.0, 66.0, 84.0)  # points of type between a point and its label
# Which way a label stands from its point, best first.
_SIDES = (
    *((1, 0), (-1, 0), (0, 1), (0, -1), (1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5)),
    *((1, 1), (1, -1), (-1, 1), (-1, -1), (0.5, 1), (0.5, -1), (-0.5, 1), (-0.5, -1)),
)
# Prices; a label right beside its point costs nothing.
_OF_DISTANCE, _OF_SIDE = 0.06, 0.02  # for each point of type, and each step in the order of sides
_OF_LEAVING, _OF_COVERING, _OF_HIDING = 60.0, 25.0, 16.0  # the axes, another label, a point
_OF_CROSSING, _OF_PASSING = 6.0, 10.0  # lines that cross, a line through a label or a point

_Point = tuple[float, float]
_Array = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


class _Panel(NamedTuple):
    """One kind of cost, in the unit that `label` names; rows by name, published ones as (cost, value, is_teacher)."""

    label: str
    costs: Mapping[str, float]
    published: Sequence[tuple[float, float, bool]]
    ranges: Mapping[str, _Point]  # the middle half of a row's costs


class _Label(NamedTuple):
    """A text, the point that it belongs to, in the units of the axes, and the colour of its letters."""

    text: str
    point: _Point
    colour: str


def cost_figure(
    results: Results, scale: ScaleResults, dataset: str, *, metric: str = "psnr", published: Sequence[PublishedRow] = ()
) -> Figure | None:
    """A metric against the networks' costs, one panel a kind; None if no network has both. Published rows are gray."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = {}
    for row in scale.rows:
        evaluation = row.evaluations.get(dataset)
        if evaluation is not None and math.isfinite(value := evaluation.means().get(metric, math.nan)):
            values[row.name] = value
    rows = [row for row in scale.rows if row.name in values]
    theirs = [
        (cost, row.figures[dataset][metric.lower()], row.is_teacher)
        for row in published
        if metric.lower() in row.figures.get(dataset, {}) and (cost := published_cost(row)) is not None
    ]
    panels = _panels(results, rows, theirs)
    if not panels:
        return None
    with plot_style():
        figure = Figure(figsize=(0.4 + 3.6 * len(panels), 3.4), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)  # measures letters
        figure.suptitle(f"{dataset}, x{scale.scale}", fontsize=10.5)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        label = metric_label(metric, results.higher_is_better(metric))
        axes[0].set_ylabel(f"{label} (dB)" if "psnr" in metric.lower() else label)
        _set_heights(axes[0], rows, values, [value for _, value, _ in panels[0].published])
        for panel_axes, panel in zip(axes, panels, strict=True):
            _draw(panel_axes, panel, rows, values)
        figure.draw_without_rendering()  # settles the layout, in which labels are placed
        figure.set_layout_engine("none")
        for panel_axes, panel in zip(axes, panels, strict=True):
            taken = _draw_lines(panel_axes, rows, values, decimals_of(metric))
            labels = [_Label(name, (cost, values[name]), _INK) for name, cost in panel.costs.items()]
            # One name beside each column of gray points.
            columns = {(teacher, cost): (cost, value) for cost, value, teacher in panel.published}
            for (teacher, _), point in columns.items():
                labels.append(_Label(f"published {'teacher' if teacher else 'students'}", point, _FAINT))
            _place_labels(panel_axes, labels, [(cost, value) for cost, value, _ in panel.published], taken)
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


def _draw(axes: Axes, panel: _Panel, rows: Sequence[Row], values: Mapping[str, float]) -> None:
    axes.set_xlabel(panel.label)
    _set_widths(axes, [*panel.costs.values(), *(cost for cost, *_ in panel.published), *chain(*panel.ranges.values())])
    for cost, value, _ in panel.published:
        axes.plot(cost, value, "o", color=_PALE, markersize=4, zorder=2)
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    for number, row in enumerate(row for row in rows if row.parameters):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        value = values[row.name]
        if row.name in panel.ranges:
            axes.plot(panel.ranges[row.name], [value] * 2, color=colour, linewidth=1.4, zorder=2.5)
        if row.name in panel.costs:
            axes.plot(panel.costs[row.name], value, marker, color=colour, markersize=7.5, zorder=3, **edge)


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


def _set_heights(axes: Axes, rows: Sequence[Row], values: Mapping[str, float], published: Sequence[float]) -> None:
    """Limits for the networks; rows without parameters are taken in where that does not squeeze the others."""
    points = [*(values[row.name] for row in rows if row.parameters), *published]
    low, high = min(points), max(points)
    spread = high - low or 0.01 * abs(high) or 1.0
    for value in values.values():
        if low - spread < value < high + spread:
            low, high = min(low, value), max(high, value)
    margin = 0.14 * (high - low) or spread
    axes.set_ylim(low - margin, high + margin)


def _draw_lines(axes: Axes, rows: Sequence[Row], values: Mapping[str, float], decimals: int) -> list[np.ndarray]:
    """Dashed lines of rows without parameters, arrows if outside the axes; returns their names' rectangles."""
    boxes: list[np.ndarray] = []
    low, high = axes.get_ylim()
    extent, gap = axes.get_window_extent(), 3 * axes.figure.dpi / 72
    for row in (row for row in rows if not row.parameters):
        value = values[row.name]
        visible = low < value < high
        text = row.name if visible else f"{'↓' if value <= low else '↑'} {row.name}: {value:.{decimals}f}"
        width, height = _text_size(axes, text)
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
        axes.text(x, y, text, transform=axes.transAxes, fontsize=_LABEL_SIZE, color=_FAINT, va="bottom", zorder=2.5)
    return boxes


def _place_labels(axes: Axes, labels: Sequence[_Label], obstacles: Sequence[_Point], taken: Sequence[_Array]) -> None:
    """Writes the labels into final axes, off `obstacles` and `taken` (pixels), with lines to far points."""
    if not labels:
        return
    pixels = axes.figure.dpi / 72  # for each point of type
    anchors = axes.transData.transform([label.point for label in labels])
    points = axes.transData.transform([*(label.point for label in labels), *obstacles])
    # Rectangles of each label around its point, nearer ones first; those to the right begin at it.
    ways = np.array([(radius * x, radius * y, (x - 1) / 2, (y - 1) / 2) for radius in _RADII for x, y in _SIDES])
    sizes = np.array([_text_size(axes, label.text) for label in labels])
    low = anchors[:, None] + pixels * ways[:, :2] + sizes[:, None] * ways[:, 2:]
    places = np.concatenate([low, low + sizes[:, None]], axis=-1)
    dots = np.concatenate([points - 3.6 * pixels, points + 3.6 * pixels], axis=1)
    extent = axes.get_window_extent()
    frame = np.array([extent.x0 + 3 * pixels, extent.y0 + 3 * pixels, extent.x1, extent.y1])
    choice = cheapest_places(places, anchors, np.concatenate([dots, np.reshape(taken, (-1, 4))]), frame)
    for label, anchor, boxes, place in zip(labels, anchors, places, choice, strict=True):
        _write(axes, label, anchor, boxes[place], pixels)


def _text_size(axes: Axes, text: str) -> _Point:
    """Width and height of a label in pixels."""
    label = axes.text(0, 0, _shortened(text), fontsize=_LABEL_SIZE)
    extent = label.get_window_extent()
    label.remove()
    return extent.width, extent.height


def cheapest_places(boxes: _Array, anchors: _Array, taken: _Array, frame: _Array) -> list[int]:
    """Which of its `boxes` (labels, places, 4) each label takes: off `taken` (N, 4), inside `frame`, near `anchors`."""
    labels, places, _ = boxes.shape
    flat = boxes.reshape(-1, 4)
    starts = anchors.repeat(places, axis=0)
    lines = np.concatenate([starts, np.clip(starts, flat[:, :2], flat[:, 2:])], axis=1)
    near = [_OF_DISTANCE * (radius - _RADII[0]) + _OF_SIDE * rank for radius in _RADII for rank in range(len(_SIDES))]
    own = np.tile(near, labels)
    outside = 1 - _common(flat, frame[None])[:, 0] / np.prod(flat[:, 2:] - flat[:, :2], axis=1)
    own += _OF_LEAVING * (outside > 1e-6) * (0.5 + outside)
    own += _OF_HIDING * (_common(flat, taken) > 0).sum(1)
    holds = (starts[:, None] >= taken[None, :, :2]) & (starts[:, None] <= taken[None, :, 2:])
    own += _OF_PASSING * (_passes(lines, taken) & ~holds.all(-1)).sum(1)
    passing = _passes(lines, flat)
    pairs = _OF_COVERING * (_common(flat, flat) > 0) + _OF_CROSSING * _cross(lines)
    pairs = (pairs + _OF_PASSING * (passing | passing.T)).reshape(labels, places, labels, places)
    return _settle(own.reshape(labels, places), pairs)


def _settle(own: _Array, pairs: _Array) -> list[int]:
    """The best of several greedy choices; `pairs` is (labels, places, labels, places)."""
    generator = random.Random(0)
    count = len(own)
    best, best_price = [0] * count, math.inf
    for _ in range(_ORDERS):
        order = generator.sample(range(count), count)
        choice: dict[int, int] = {}
        for _ in range(_ROUNDS):
            before = dict(choice)
            for label in order:
                beside = (pairs[label, :, other, place] for other, place in choice.items() if other != label)
                choice[label] = int(sum(beside, own[label]).argmin())
            if choice == before:
                break
        price = sum(own[label, place] for label, place in choice.items())
        price += sum(pairs[a, choice[a], b, choice[b]] for a in range(count) for b in range(a))
        if price < best_price:
            best, best_price = [choice[label] for label in range(count)], price
    return best


def _common(first: _Array, second: _Array) -> _Array:
    """Area that rectangles (N, 4) and (M, 4) cover both: (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    area: _Array = np.clip(high - low, 0, None).prod(-1)
    return area


def _passes(segments: _Array, boxes: _Array) -> _Mask:
    """Whether segments (N, 4) pass through rectangles (M, 4): (N, M); by clipping each against the four sides."""
    start, way = segments[:, None, :2], segments[:, None, 2:] - segments[:, None, :2]
    way = np.where(way == 0, 1e-9, way)
    low, high = (boxes[None, :, :2] - start) / way, (boxes[None, :, 2:] - start) / way
    enter = np.minimum(low, high).max(-1).clip(0, None)
    leave = np.maximum(low, high).min(-1).clip(None, 1)
    return enter < leave


def _cross(segments: _Array) -> _Mask:
    """Whether segments (N, 4) cross one another: (N, N), where the ends of each lie on both sides of the other."""
    start, end = segments[:, :2], segments[:, 2:]
    way = (end - start)[:, None]
    to_start, to_end = start[None] - start[:, None], end[None] - start[:, None]
    sides = [way[..., 0] * to[..., 1] - way[..., 1] * to[..., 0] for to in (to_start, to_end)]
    apart: _Mask = sides[0] * sides[1] < 0
    return apart & apart.T


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1].rstrip()}…"


def _write(axes: Axes, label: _Label, anchor: _Array, box: _Array, pixels: float) -> None:
    near = (np.clip(anchor, box[:2], box[2:]) - anchor) / pixels
    axes.annotate(
        _shortened(label.text),
        label.point,
        xytext=tuple((box[:2] - anchor) / pixels),
        textcoords="offset points",
        fontsize=_LABEL_SIZE,
        color=label.colour,
        va="bottom",
        ha="left",
        annotation_clip=False,
        zorder=2.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3},  # dims the grid behind
    )
    if math.hypot(*near) > 1.3 * _RADII[0]:
        axes.annotate(
            "",
            label.point,
            xytext=tuple(near),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
            zorder=1.5,
        )
