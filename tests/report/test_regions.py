"""Which squares are shown, and the file that says so."""

from __future__ import annotations

import numpy as np
import pytest
from support.pictures import Memory
from support.results import evaluation

from basicsr.config.schema import Region
from basicsr.config.yaml_files import load_yaml
from basicsr.report.comparison import (
    choose_regions,
    image_name,
    images_that_differ,
    most_different_square,
    square_size,
    without_scale,
    write_regions,
)
from basicsr.report.tables import Row, ScaleResults
from basicsr.utils.errors import DataError


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)


def test_the_square_is_where_one_network_errs_and_the_other_does_not():
    hr = texture(100, 120)
    good, bad = hr + 3, hr + 3
    bad[60:80, 30:50] += 40
    good[10:40, 70:110] += 20  # a larger error, of both
    bad[10:40, 70:110] += 20
    x, y, score = most_different_square(hr, [good, bad], 20, border=2)
    assert (x, y) == (30, 60)
    assert score > 0


def test_one_network_is_shown_where_it_is_worst():
    """One wrong pixel outweighs a wide but slight error; the border does not count."""
    hr = texture(100, 120)
    output = hr.copy()
    output[:40, :40] += 1
    output[80, 90] += 50
    output[0, 119] += 55
    x, y, _ = most_different_square(hr, [output], 20, border=2)
    assert x <= 90 < x + 20 and y <= 80 < y + 20
    assert 2 <= x <= 98 and 2 <= y <= 78


def test_differences_in_plain_areas_weigh_little():
    hr = np.full((60, 120, 3), 100, np.uint8)
    hr[:, 60:] = texture(60, 60) // 2 + 60
    other = hr.copy()
    other[20:40, 20:40] += 12
    other[20:40, 80:100] += 10
    x, y, _ = most_different_square(hr, [hr, other], 20, border=2)
    assert (x, y) == (80, 20)


def test_squares_are_those_found_by_looking_at_each():
    hr, first, second = (texture(24, 30, seed) for seed in range(3))
    size, border = 8, 3
    best = {}
    for y in range(border, 24 - border - size + 1):
        for x in range(border, 30 - border - size + 1):
            window = slice(y, y + size), slice(x, x + size)
            truth = hr[window].astype(float)
            errors = [((output[window] - truth) ** 2).mean() for output in (first, second)]
            luma = 16 + (truth @ [24.966, 128.553, 65.481]) / 255
            best[x, y] = np.std(errors) * luma.std() / (luma.std() + 8)
    expected = max(best, key=best.get)
    x, y, score = most_different_square(hr, [first, second], size, border=border)
    assert (x, y) == expected
    assert score == pytest.approx(best[expected], rel=1e-5)  # luma is float32


def test_the_square_needs_room_and_images_of_one_size():
    image = texture(20, 60)
    with pytest.raises(DataError, match=r"60 x 20 pixels.*at least 24 a side"):
        most_different_square(image, [image], 20, border=2)
    with pytest.raises(DataError, match=r"^a made Set5's b 59 x 20 pixels large, not 60 x 20; were both made at x2\?"):
        choose_regions(Memory({("Set5", "b"): {"hr": image, "a": image[:, 1:]}}), ["a"], [("Set5", "b")], 1, scale=2)


@pytest.mark.parametrize("side, size", [(1000, 128), (400, 96), (256, 64), (200, 48), (100, 48), (52, 44)])
def test_squares_are_a_quarter_of_the_image_or_a_crops_least_size(side, size):
    assert square_size(np.zeros((side, 2 * side, 3), np.uint8), 4) == size


def pair(height: int, width: int, error: int, seed: int) -> dict[str, np.ndarray]:
    hr = texture(height, width, seed)
    bad = hr.copy()
    bad[20:40, 30:50] += error
    return {"hr": hr, "good": hr, "bad": bad}


def test_each_image_gives_one_square_the_most_different_first():
    errors = {"a": 10, "b": 50, "c": 30, "d": 5}
    images = {("Set5", name): pair(100, 100, error, error) for name, error in errors.items()}
    regions = choose_regions(Memory(images), ["good", "bad"], list(images), 3, scale=2)
    assert [region.image for region in regions] == ["b", "c", "a"]
    for region in regions:
        assert region.size == 48
        assert region.x <= 30 and region.x + 48 >= 50 and region.y <= 20 and region.y + 48 >= 40


def test_images_without_hr_and_tiny_ones_are_passed_over():
    images = {("X", "no_hr"): {"good": texture(64, 64)}, ("X", "tiny"): pair(60, 60, 9, 1)}
    images["X", "tiny"] = {name: image[:11, :11] for name, image in images["X", "tiny"].items()}
    assert choose_regions(Memory(images), ["good"], list(images), 3, scale=2) == []


def test_images_are_sought_where_networks_figures_differ_without_bicubic():
    rows = (
        Row("bicubic", 0, {"Set5": evaluation([1.0, 30.0, 30.0], [0.9] * 3)}),
        Row("a", 5, {"Set5": evaluation([30.0, 31.0, 32.0], [0.9] * 3)}),
        Row("b", 5, {"Set5": evaluation([30.1, 33.0, 32.5], [0.9] * 3)}),
    )
    expected = [("Set5", "b"), ("Set5", "c"), ("Set5", "a")]
    assert images_that_differ(ScaleResults(2, rows)) == expected
    assert images_that_differ(ScaleResults(2, rows[:2]))[0] == ("Set5", "a")
    assert images_that_differ(ScaleResults(2, rows[1:2]))[0] == ("Set5", "a")  # its worst


def test_an_image_that_is_met_exactly_counts_as_100_db():
    rows = (
        Row("a", 5, {"Set5": evaluation([np.inf, 40.0, 30.0], [1.0] * 3)}),
        Row("b", 5, {"Set5": evaluation([30.0, 39.0, np.inf], [1.0] * 3)}),
    )
    assert images_that_differ(ScaleResults(2, rows)) == [("Set5", "a"), ("Set5", "c"), ("Set5", "b")]
    assert images_that_differ(ScaleResults(2, rows[:1])) == [("Set5", "c"), ("Set5", "b"), ("Set5", "a")]
    lower = {"psnr": "lower"}
    assert images_that_differ(ScaleResults(2, rows[:1]), lower) == [("Set5", "a"), ("Set5", "b"), ("Set5", "c")]


def test_regions_come_back_as_options(tmp_path):
    regions = [
        Region(dataset="Set5", image='a "quoted", name', x=3, y=0, size=48),
        Region(dataset="Ü", image="b", x=0, y=7, size=96),
    ]
    write_regions(tmp_path / "regions.yml", regions)
    written = load_yaml(tmp_path / "regions.yml").data()["report"]["regions"]
    assert [Region.model_validate(entry) for entry in written] == regions


def test_names_may_end_in_the_scale():
    region = Region(dataset="Set5", image="baby", x=0, y=0)
    assert image_name(region, ["babyx2", "birdx2"], 2) == "babyx2"
    assert image_name(region, ["baby", "babyx2"], 2) == "baby"
    assert without_scale("babyx2", 2, ["babyx2"]) == "baby"
    assert without_scale("babyx2", 3, ["babyx2"]) == "babyx2"
    assert without_scale("babyx2", 2, ["baby", "babyx2"]) == "babyx2"  # another image
    with pytest.raises(DataError, match=r"Set5 has no image 'baby' at x3; it has bird"):
        image_name(region, ["birdx3"], 3)
