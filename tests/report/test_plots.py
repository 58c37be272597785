"""Plots of quality against cost: where points are, that labels hide nothing, and the files."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
from support.results import results, row

from basicsr.config.published import published_rows
from basicsr.report.plots import cheapest_places, cost_figure, figure_svg, write_figure
from basicsr.report.tables import ScaleResults
from basicsr.utils.errors import CheckpointError

NETWORKS = {  # millions of parameters, G multiply-adds, seconds, PSNR
    "SRResNet": (1.37, 127, 0.6, 37.7),
    "EDSR-baseline": (1.37, 128, 0.61, 37.9),
    "EDSR student": (2.70, 207, 1.0, 38.0),
    "EDSR student, KD": (2.70, 207, 1.01, 38.04),
    "EDSR student, MCAD-KD": (2.70, 207, 1.02, 38.19),
    "RCAN student": (5.17, 367, 1.8, 38.13),
    "RCAN student, MCAD-KD": (5.17, 367, 1.8, 38.24),
    "SwinIR student": (1.24, 121, 1.8, 38.01),
    "SwinIR student, MCAD-KD": (1.24, 121, 1.8, 38.18),
    "EDSR teacher": (43.09, 3293, 16.0, 38.36),
}


def scale_of(count: int, scale: int = 2, bicubic: float = 33.66) -> ScaleResults:
    rows = [row("bicubic", 0, {"Set5": (bicubic, 0.93)}, seconds=0.001)]
    for name, (parameters, multiply_adds, seconds, psnr) in list(NETWORKS.items())[-count:]:
        rows.append(
            row(
                name,
                round(parameters * 1e6),
                {"Set5": (psnr, 0.96)},
                multiply_adds=multiply_adds * 10**9,
                seconds=seconds,
            )
        )
    return ScaleResults(scale, tuple(rows))


@functools.cache
def figure_of(count: int):
    """The plot of the last `count` networks at scale 2."""
    scale = scale_of(count)
    return cost_figure(results(scale), scale, "Set5")


def points(axes) -> set[tuple[float, float]]:
    return {
        (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6))
        for line in axes.lines
        if line.get_marker() not in ("None", "") and line.get_color() != "#B4B4BA"
    }


def boxes(axes) -> dict[str, tuple[float, float, float, float]]:
    """Extents of the labels in pixels; those of leading lines have no text."""
    return {text.get_text(): text.get_window_extent().extents for text in axes.texts if text.get_text()}


def overlap(first, second) -> bool:
    left, bottom = np.maximum(first[:2], second[:2])
    right, top = np.minimum(first[2:], second[2:])
    return right - left > 0.5 and top - bottom > 0.5


def test_points_are_where_the_figures_are():
    figure = figure_of(10)
    assert [axes.get_xlabel().split(",")[0] for axes in figure.axes] == [
        "Parameters (M)",
        "Multiply-adds (G)",
        "Latency (ms)",
    ]
    for axes, column, unit in zip(figure.axes, range(3), (1, 1, 1000), strict=True):
        assert points(axes) == {(round(entry[column] * unit, 6), entry[3]) for entry in NETWORKS.values()}
        assert axes.get_xscale() == "log"
    assert "a device" in figure.axes[2].get_xlabel()
    assert "dB" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize("count", [1, 2, 4, 10])
def test_labels_cover_neither_one_another_nor_points_and_stay_inside(count):
    figure = figure_of(count)
    figure.draw_without_rendering()
    for axes in figure.axes:
        found = boxes(axes)
        assert set(NETWORKS) & set(found) == set(list(NETWORKS)[-count:])
        assert not [pair for pair in itertools.combinations(found, 2) if overlap(found[pair[0]], found[pair[1]])]
        frame = axes.get_window_extent().extents
        for name, box in found.items():
            assert (box[:2] >= frame[:2] - 1).all() and (box[2:] <= frame[2:] + 1).all(), name
            for point in points(axes):
                x, y = axes.transData.transform(point)
                assert not overlap(box, (x - 4, y - 4, x + 4, y + 4)), (name, point)


def test_bicubic_is_a_line_or_where_that_would_squeeze_the_others_an_arrow():
    far = scale_of(4)
    axes = cost_figure(results(far), far, "Set5").axes[0]
    assert axes.get_ylim()[0] > 37.5
    assert "↓ bicubic: 33.66" in boxes(axes)
    near = scale_of(4, bicubic=38.02)
    axes = cost_figure(results(near), near, "Set5").axes[0]
    assert "bicubic" in boxes(axes)
    assert [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "--"] == [[38.02, 38.02]]


def test_published_points_are_gray_and_only_where_papers_give_the_cost():
    rows = published_rows("EDSR", 4)
    scale = scale_of(3, scale=4)
    figure = cost_figure(results(scale), scale, "Set5", published=rows)
    gray = [[line for line in axes.lines if line.get_color() == "#B4B4BA"] for axes in figure.axes]
    assert [len(lines) for lines in gray] == [len(rows), len(rows), 0]
    assert {float(line.get_xdata()[0]) for line in gray[0]} == {2.7, 43.09}
    assert 32.50 in {float(line.get_ydata()[0]) for line in gray[0]}
    assert {"published students", "published teacher"} <= set(boxes(figure.axes[0]))
    other = scale_of(3, scale=2)
    assert "published students" not in figure_svg(
        cost_figure(results(other), other, "Set5", published=published_rows("EDSR", 2))
    )


def test_costs_that_nobody_measured_have_no_panel():
    scale = ScaleResults(2, (row("small", 29_000, {"Set5": (34, 0.9)}), row("large", 31_000, {"Set5": (34.2, 0.91)})))
    figure = cost_figure(results(scale), scale, "Set5")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Parameters (K)"
    assert axes.get_xscale() == "linear"
    assert points(axes) == {(29.0, 34.0), (31.0, 34.2)}


def test_latencies_have_bars_over_their_middle_half_and_doubted_ones_no_panel():
    scale = scale_of(3)
    found = results(scale)
    axes = cost_figure(found, scale, "Set5").axes[2]
    bars = {tuple(round(float(x)) for x in line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2}
    expected = {(round(980 * seconds), round(1030 * seconds)) for *_, seconds, _ in list(NETWORKS.values())[-3:]}
    assert expected <= bars
    doubted = cost_figure(dataclasses.replace(found, latency_doubt="load"), scale, "Set5")
    assert [axes.get_xlabel().split(" ")[0] for axes in doubted.axes] == ["Parameters", "Multiply-adds"]


def test_there_is_no_figure_without_figures():
    scale = scale_of(2)
    assert cost_figure(results(scale), scale, "Set14") is None
    only_bicubic = ScaleResults(2, scale.rows[:1])
    assert cost_figure(results(only_bicubic), only_bicubic, "Set5") is None


def test_svg_files_hold_letters_as_text_and_are_the_same_every_time(tmp_path):
    scale = ScaleResults(2, (row("a $x$ & <b>", 5_000_000, {"Set5": (34, 0.9)}, seconds=0.1),))
    for name in ("one.svg", "two.svg"):
        write_figure(cost_figure(results(scale), scale, "Set5"), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    texts = [
        element.text for element in ElementTree.parse(tmp_path / "one.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "a $x$ & <b>" in texts
    assert figure_svg(cost_figure(results(scale), scale, "Set5")).startswith("<svg")


def test_png_files_are_large_enough_for_print(tmp_path):
    write_figure(figure_of(2), tmp_path / "cost.png")
    image = cv2.imread(str(tmp_path / "cost.png"))
    assert image.shape[1] > 2000
    assert image.min() < 60 and image.max() == 255
    assert [path.name for path in tmp_path.iterdir()] == ["cost.png"]


def test_a_plot_that_cannot_be_written_is_told_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot save") as caught:
        write_figure(figure_of(1), tmp_path / "missing" / "cost.png")
    assert "\n" not in str(caught.value)


def test_plots_do_not_depend_on_the_users_matplotlib_settings(tmp_path):
    from matplotlib import rc_context

    scale = scale_of(2)
    write_figure(cost_figure(results(scale), scale, "Set5"), tmp_path / "plain.svg")
    with rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 30, "svg.fonttype": "path"}):
        write_figure(cost_figure(results(scale), scale, "Set5"), tmp_path / "changed.svg")
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "changed.svg").read_bytes()


def test_a_label_goes_elsewhere_where_its_best_place_is_taken():
    places = np.array([[[10, 0, 20, 10], [-20, 0, -10, 10]] + [[500, 500, 510, 510]] * 110], dtype=float)
    anchors, frame = np.array([[0.0, 5.0]]), np.array([-50.0, -50.0, 50.0, 50.0])
    assert cheapest_places(places, anchors, np.zeros((0, 4)), frame) == [0]
    assert cheapest_places(places, anchors, np.array([[15.0, 0.0, 30.0, 10.0]]), frame) == [1]
    assert cheapest_places(places, anchors, np.zeros((0, 4)), np.array([-50.0, -50.0, 15.0, 50.0])) == [1]


def test_two_labels_do_not_share_a_place():
    """Both would stand to the right, where they overlap; their points are too near for anything else to matter."""
    far = [[500, 500, 510, 510]] * 110
    places = np.array([[[10, y, 20, y + 10], [-20, y, -10, y + 10], *far] for y in (0, 1)], dtype=float)
    anchors, frame = np.array([[0.0, 5.0], [0.0, 6.0]]), np.array([-50.0, -50.0, 50.0, 50.0])
    assert sorted(cheapest_places(places, anchors, np.zeros((0, 4)), frame)) == [0, 1]
