"""The visual comparison: its crops are the files' pixels, its frame is around the region, its figures are right."""

from __future__ import annotations

import numpy as np
import pytest
from support.pictures import Memory, contains, places_of
from support.results import evaluation

from basicsr.config.schema import Region
from basicsr.report.comparison import ACCENT, compare_scale, draw_comparison, figures_text
from basicsr.report.tables import Row, ScaleResults
from basicsr.utils.errors import DataError

NAMES = ["bicubic", "student", "distilled", "teacher"]


def image(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def memory(names: list[str] = NAMES) -> Memory:
    sizes = {"a": (90, 120), "b": (130, 70)}
    return Memory(
        {
            ("Set5", f"{name}x2"): {key: image(*size, seed) for seed, key in enumerate(["hr", *names])}
            for name, size in sizes.items()
        }
    )


def crop_of(pictures: Memory, name: str, region: Region, zoom: int) -> np.ndarray:
    whole = pictures.hr("Set5", f"{region.image}x2")
    if name != "hr":
        whole = pictures.output(name, "Set5", f"{region.image}x2")
    crop = whole[region.y : region.y + region.size, region.x : region.x + region.size]
    return crop.repeat(zoom, axis=0).repeat(zoom, axis=1)


REGIONS = [Region(dataset="Set5", image="a", x=5, y=11, size=48), Region(dataset="Set5", image="b", x=0, y=30, size=64)]


def test_crops_are_the_outputs_pixels_enlarged_in_the_order_of_the_rows():
    pictures = memory()
    drawn = draw_comparison(pictures, NAMES, REGIONS, scale=2, cell=192)
    rows = []
    for region, zoom in zip(REGIONS, (4, 3), strict=True):
        places = [places_of(drawn, crop_of(pictures, name, region, zoom)) for name in ["hr", *NAMES]]
        assert all(len(found) == 1 for found in places)
        (lefts, tops) = zip(*(found[0] for found in places), strict=True)
        assert len(set(tops)) == 1
        assert list(lefts) == sorted(lefts)
        assert min(np.diff(lefts)) > 192
        rows.append(tops[0])
    assert rows[1] - rows[0] > 192


def test_more_than_five_crops_stand_in_two_rows():
    names = [*NAMES, "another"]
    pictures = memory(names)
    drawn = draw_comparison(pictures, names, REGIONS[:1], scale=2, cell=96)
    tops = [places_of(drawn, crop_of(pictures, name, REGIONS[0], 2))[0][1] for name in ["hr", *names]]
    assert len(set(tops[:3])) == len(set(tops[3:])) == 1
    assert tops[3] - tops[0] > 96


def test_crops_of_an_odd_size_fill_their_place_nearly():
    """50 pixels are enlarged eightfold to 400, which is nearer to 384 than 350."""
    pictures = memory()
    region = Region(dataset="Set5", image="a", x=70, y=40, size=50)
    drawn = draw_comparison(pictures, NAMES, [region], scale=2)
    assert all(contains(drawn, crop_of(pictures, name, region, 8)) for name in ["hr", *NAMES])


@pytest.mark.parametrize("x, y", [(20, 30), (0, 0), (72, 42)])
def test_the_frame_is_around_the_region_and_inside_the_overview(x, y):
    hr = np.full((90, 120, 3), 128, np.uint8)
    pictures = Memory({("Set5", "a"): {"hr": hr, "student": hr}})
    region = Region(dataset="Set5", image="a", x=x, y=y, size=48)
    drawn = draw_comparison(pictures, ["student"], [region], scale=2, cell=192)
    at = np.argwhere((drawn == ACCENT[::-1]).all(-1))
    (top, left), (bottom, right) = at.min(0), at.max(0) + 1
    gray = np.argwhere((drawn == 128).all(-1))
    origin = np.minimum(gray.min(0), (top, left))
    factor = 192 / 90  # the overview is as high as a cell
    expected = np.array([y, x, y + 48, x + 48]) * factor + [*origin, *origin]
    assert np.abs(np.array([top, left, bottom, right]) - expected).max() <= 4
    assert right <= origin[1] + 120 * factor + 1 and bottom <= origin[0] + 90 * factor + 1


def test_figures_are_of_luma():
    """A step of 10 in R, G and B is one of 10 (65.481 + 128.553 + 24.966) / 255 = 8.588 in Y: 20 log10(255 / 8.588)."""
    hr = np.full((48, 48, 3), 100, np.uint8)
    assert figures_text(hr + 10, hr).startswith("29.45 / 0.99")
    assert figures_text(hr, hr) == "inf / 1.0000"
    assert figures_text(hr[:10, :10] + 10, hr[:10, :10]) == "29.45 / -"


def test_long_names_do_not_widen_the_picture():
    long = "a name that is far too long to stand below a crop of an image, whatever the size of its letters"
    plain = draw_comparison(memory(["short"]), ["short"], REGIONS, scale=2, cell=96)
    labelled = draw_comparison(memory([long]), [long], REGIONS, scale=2, cell=96)
    assert plain.shape == labelled.shape
    assert not np.array_equal(plain, labelled)


@pytest.mark.parametrize("x, y, size", [(100, 0, 48), (0, 60, 48), (0, 0, 91)])
def test_a_region_beyond_the_image_is_refused(x, y, size):
    region = Region(dataset="Set5", image="a", x=x, y=y, size=size)
    with pytest.raises(DataError, match=rf"square of {size} pixels at \({x}, {y}\).*ax2 of 120 x 90 pixels"):
        draw_comparison(memory(), NAMES, [region], scale=2)


def test_outputs_of_another_size_and_missing_hr_images_are_refused():
    hr = image(60, 60, 0)
    region = Region(dataset="Set5", image="a", x=0, y=0)
    with pytest.raises(DataError, match=r"student made Set5's a 50 x 60 pixels large, not 60 x 60"):
        draw_comparison(Memory({("Set5", "a"): {"hr": hr, "student": hr[:, :50]}}), ["student"], [region], scale=2)
    with pytest.raises(DataError, match="Set5 has no HR images"):
        draw_comparison(Memory({("Set5", "a"): {"student": hr}}), ["student"], [region], scale=2)


def rows(pictures: Memory, names: list[str]) -> tuple[Row, ...]:
    """Figures that differ most for image b."""
    return tuple(
        Row(name, 0 if name == "bicubic" else 5, {"Set5": replace_images(30.0 + number, pictures.names("Set5"))})
        for number, name in enumerate(names)
    )


def replace_images(psnr: float, images: list[str]):
    figures = evaluation([30.0, psnr], [0.9, 0.9])
    return type(figures)(figures.metrics, tuple(images), figures.values, figures.seconds)


def test_without_regions_the_most_different_ones_are_chosen_and_told():
    pictures = memory()
    scale = ScaleResults(2, rows(pictures, NAMES))
    drawn, regions = compare_scale(scale, pictures, count=2, cell=192)
    assert {region.image for region in regions} == {"a", "b"}
    again, same = compare_scale(scale, pictures, count=0, regions=regions, cell=192)
    assert same == regions
    assert np.array_equal(again, drawn)
    for region in regions:
        assert contains(drawn, crop_of(pictures, "teacher", region, round(192 / region.size)))


def test_regions_of_datasets_that_a_scale_lacks_are_passed_over():
    pictures = memory()
    scale = ScaleResults(2, rows(pictures, NAMES))
    elsewhere = Region(dataset="Urban100", image="img_001", x=0, y=0)
    assert compare_scale(scale, pictures, count=2, regions=[elsewhere]) is None
    _, shown = compare_scale(scale, pictures, count=2, regions=[elsewhere, REGIONS[0]], cell=96)
    assert shown == [REGIONS[0]]
    assert compare_scale(scale, pictures, count=0) is None
