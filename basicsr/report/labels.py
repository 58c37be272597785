"""Names beside the points of a plot, placed so that they hide neither points nor one another.

Each label has some hundred places around its point to choose from. A place has a price: for its distance, for leaving
the axes, for covering points; two places of different labels have one for covering one another and for lines to the
points that cross. Labels take their cheapest place in turn until none changes; of several orders the best one stays.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


@dataclass(frozen=True)
class Entry:
    """A label to place.

    Attributes:
        text: what it says.
        point: what it belongs to, in the units of the axes.
        colour: of its letters.
    """

    text: str
    point: Point
    colour: str


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether both cover some area."""
        return (
            min(self.right, other.right) > max(self.left, other.left)
            and min(self.top, other.top) > max(self.bottom, other.bottom)
        )  # fmt: skip


def place_labels(axes: Axes, entries: Sequence[Entry], obstacles: Sequence[Point], taken: Sequence[Box]) -> list[Box]:
    """Writes the labels, each with a thin line to its point where it does not stand right beside it.

    Args:
        axes: with its final limits and position; the figure's canvas must be Agg's.
        entries: what to write.
        obstacles: further points that no label should cover, in the units of the axes.
        taken: rectangles that are in use already.

    Returns:
        The rectangles that the labels take.
    """
    if not entries:
        return []
    pixels = axes.figure.dpi / 72  # for each point of type
    anchors = axes.transData.transform([entry.point for entry in entries])
    points = axes.transData.transform([*(entry.point for entry in entries), *obstacles])
    boxes = np.stack(
        [_places(anchor, text_size(axes, entry.text), pixels) for anchor, entry in zip(anchors, entries, strict=True)]
    )
    radius = 3.6 * pixels
    dots = np.concatenate([points - radius, points + radius], axis=1)
    others = np.array([[box.left, box.bottom, box.right, box.top] for box in taken]).reshape(-1, 4)
    extent = axes.get_window_extent()
    frame = np.array([extent.x0 + 3 * pixels, extent.y0 + 3 * pixels, extent.x1, extent.y1])
    choice = cheapest_places(boxes, anchors, np.concatenate([dots, others]), frame)
    chosen = [Box(*map(float, boxes[index, place])) for index, place in enumerate(choice)]
    for entry, anchor, box in zip(entries, anchors, chosen, strict=True):
        _write(axes, entry, (float(anchor[0]), float(anchor[1])), box, pixels)
    return chosen


def text_size(axes: Axes, text: str) -> Point:
    """Width and height of a label in pixels."""
    label = axes.text(0, 0, _shortened(text), fontsize=LABEL_SIZE)
    extent = label.get_window_extent()
    label.remove()
    return extent.width, extent.height


def cheapest_places(boxes: _Array, anchors: _Array, taken: _Array, frame: _Array) -> list[int]:
    """Which place each label takes.

    Args:
        boxes: (labels, places, 4): left, bottom, right and top of the places; nearer ones first.
        anchors: (labels, 2): the points that the labels belong to.
        taken: (any number, 4): rectangles to leave free.
        frame: (4,): where labels belong.
    """
    labels, places, _ = boxes.shape
    flat = boxes.reshape(-1, 4)
    starts = anchors.repeat(places, axis=0)
    leaders = np.concatenate([starts, np.clip(starts, flat[:, :2], flat[:, 2:])], axis=1)
    own = np.tile(_distance_prices(), labels)
    area = (flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])
    outside = 1 - _common(flat, frame[None])[:, 0] / area
    own += _OF_LEAVING * (outside > 1e-6) * (0.5 + outside)
    own += _OF_HIDING * (_common(flat, taken) > 0).sum(1)
    foreign = ~_holds(taken, starts)
    own += _OF_PASSING * (_passes(leaders, taken) & foreign).sum(1)
    pairs = _OF_COVERING * (_common(flat, flat) > 0) + _OF_CROSSING * _cross(leaders)
    passing = _passes(leaders, flat)
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


def _distance_prices() -> _Array:
    return np.array(
        [_OF_DISTANCE * (radius - _RADII[0]) + _OF_SIDE * rank for radius in _RADII for rank in range(len(_SIDES))]
    )


def _places(anchor: _Array, size: Point, pixels: float) -> _Array:
    """Rectangles of one label around its point, in the order of `_distance_prices`."""
    places = []
    for radius in _RADII:
        for right, up in _SIDES:
            # A label to the right starts there, one to the left ends there, one above is centred: and so between.
            left = anchor[0] + radius * pixels * right + size[0] * (right - 1) / 2
            bottom = anchor[1] + radius * pixels * up + size[1] * (up - 1) / 2
            places.append((left, bottom, left + size[0], bottom + size[1]))
    return np.array(places)


def _common(first: _Array, second: _Array) -> _Array:
    """Area that rectangles (N, 4) and (M, 4) cover both: (N, M)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    return sides[..., 0] * sides[..., 1]


def _holds(boxes: _Array, points: _Array) -> npt.NDArray[np.bool_]:
    """Whether points (N, 2) lie in rectangles (M, 4): (N, M)."""
    inside = (points[:, None] >= boxes[None, :, :2]) & (points[:, None] <= boxes[None, :, 2:])
    return inside[..., 0] & inside[..., 1]


def _passes(segments: _Array, boxes: _Array) -> npt.NDArray[np.bool_]:
    """Whether segments (N, 4) pass through rectangles (M, 4): (N, M); by clipping each against the four sides."""
    start, way = segments[:, None, :2], segments[:, None, 2:] - segments[:, None, :2]
    way = np.where(way == 0, 1e-9, way)
    low, high = (boxes[None, :, :2] - start) / way, (boxes[None, :, 2:] - start) / way
    enter = np.minimum(low, high).max(-1).clip(0, None)
    leave = np.maximum(low, high).min(-1).clip(None, 1)
    return enter < leave


def _cross(segments: _Array) -> npt.NDArray[np.bool_]:
    """Whether segments (N, 4) cross one another: (N, N)."""
    a, b = segments[:, None, :2], segments[:, None, 2:]
    c, d = segments[None, :, :2], segments[None, :, 2:]

    def side(origin: _Array, end: _Array, point: _Array) -> _Array:
        way, to = end - origin, point - origin
        return way[..., 0] * to[..., 1] - way[..., 1] * to[..., 0]

    return (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1].rstrip()}…"


def _write(axes: Axes, entry: Entry, anchor: Point, box: Box, pixels: float) -> None:
    def offset(x: float, y: float) -> Point:
        return (x - anchor[0]) / pixels, (y - anchor[1]) / pixels

    axes.annotate(
        _shortened(entry.text),
        entry.point,
        xytext=offset(box.left, box.bottom),
        textcoords="offset points",
        fontsize=LABEL_SIZE,
        color=entry.colour,
        va="bottom",
        ha="left",
        annotation_clip=False,
        zorder=2.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3},  # dims the grid behind
    )
    end = offset(min(max(anchor[0], box.left), box.right), min(max(anchor[1], box.bottom), box.top))
    if math.hypot(*end) > 1.3 * _RADII[0]:
        axes.annotate(
            "",
            entry.point,
            xytext=end,
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": entry.colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
            zorder=1.5,
        )
