"""Names beside the points of a plot, placed so that they hide neither points nor one another.

Each place around a point has a price, and so have two places that meet; labels take their cheapest place in turn until
none changes, and the best of several orders stays.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_SIZE = 7.5  # points
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

Point = tuple[float, float]
_Array = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


class Label(NamedTuple):
    """A text, the point that it belongs to, in the units of the axes, and the colour of its letters."""

    text: str
    point: Point
    colour: str


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[Point], taken: Sequence[_Array]) -> None:
    """Writes the labels into final axes, off `obstacles` and `taken` (pixels), with lines to far points."""
    if not labels:
        return
    pixels = axes.figure.dpi / 72  # for each point of type
    anchors = axes.transData.transform([label.point for label in labels])
    points = axes.transData.transform([*(label.point for label in labels), *obstacles])
    sizes = [text_size(axes, label.text) for label in labels]
    places = np.stack([_places(anchor, size, pixels) for anchor, size in zip(anchors, sizes, strict=True)])
    dots = np.concatenate([points - 3.6 * pixels, points + 3.6 * pixels], axis=1)
    extent = axes.get_window_extent()
    frame = np.array([extent.x0 + 3 * pixels, extent.y0 + 3 * pixels, extent.x1, extent.y1])
    choice = cheapest_places(places, anchors, np.concatenate([dots, np.reshape(taken, (-1, 4))]), frame)
    for label, anchor, boxes, place in zip(labels, anchors, places, choice, strict=True):
        _write(axes, label, anchor, boxes[place], pixels)


def text_size(axes: Axes, text: str) -> Point:
    """Width and height of a label in pixels."""
    label = axes.text(0, 0, _shortened(text), fontsize=LABEL_SIZE)
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


def _places(anchor: _Array, size: Point, pixels: float) -> _Array:
    """Rectangles of one label around its point, nearer ones first; those to the right begin at it."""
    ways = np.array([(radius * x, radius * y, (x - 1) / 2, (y - 1) / 2) for radius in _RADII for x, y in _SIDES])
    low = anchor + pixels * ways[:, :2] + size * ways[:, 2:]
    return np.concatenate([low, low + size], axis=1)


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


def _write(axes: Axes, label: Label, anchor: _Array, box: _Array, pixels: float) -> None:
    near = (np.clip(anchor, box[:2], box[2:]) - anchor) / pixels
    axes.annotate(
        _shortened(label.text),
        label.point,
        xytext=tuple((box[:2] - anchor) / pixels),
        textcoords="offset points",
        fontsize=LABEL_SIZE,
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
