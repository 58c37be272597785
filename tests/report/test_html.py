"""The HTML report as a file: what is in it, that images are unaltered and there once, that names cannot break out."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from support.pictures import Memory
from support.results import results, row

from basicsr.files.images import imfrombytes
from basicsr.report.html import HR, LR, lossless, svg_element, write_report
from basicsr.report.tables import Results, ScaleResults, cost_table, quality_table
from basicsr.utils.errors import CheckpointError, DataError

MALICIOUS = """<script>alert(1)</script> & "quotes' </script>"""
ROWS = (("bicubic", 0, 33.7), ("student", 1000, 34.5), ("distilled", 1000, 35.0))


class Page(HTMLParser):
    """Text that one reads, attributes, and contents of data blocks by their ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.attributes, self.data, self.tags = "", [], {}, []
        self._open: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self._open = dict(attributes) if tag == "script" else {"style": ""} if tag == "style" else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open is None:
            self.text += data
        elif "id" in self._open:
            self.data[self._open["id"]] = (self._open["type"], data)

    def views(self) -> list[dict]:
        return [json.loads(value) for name, value in self.attributes if name == "data-view"]

    def image(self, key: str) -> np.ndarray:
        return imfrombytes(base64.b64decode(self.data[key][1]), source=key)


def noise(height: int, width: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(0, 255, (6, 6, 3)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def pictures(scale: int, rows: tuple[str, ...], hr: np.ndarray | None = None) -> Memory:
    """Images a and b of Set5, 48 x 66 pixels or the size of `hr`."""
    images: dict[tuple[str, str], Mapping[str, np.ndarray]] = {}
    for number, image in enumerate("ab"):
        truth = noise(48, 66, number) if hr is None else hr
        height, width = truth.shape[:2]
        made = {name: noise(height, width, 10 * scale + index + 100 * number) for index, name in enumerate(rows)}
        lr = noise(height // scale, width // scale, 7 * scale + number)
        images["Set5", image] = {"hr": truth, "lr": lr, **made}
    return Memory(images)


def results_of(*scales: int, name: str = "distilled", skipped: tuple[str, ...] = ()) -> Results:
    names = {"distilled": name}
    return results(
        *(
            ScaleResults(
                scale,
                tuple(row(names.get(known, known), count, {"Set5": (psnr, 0.93)}) for known, count, psnr in ROWS),
                skipped,
            )
            for scale in scales
        )
    )


def write(path, found: Results, images, count: int = 20, **options) -> Page:
    options = {"tables": [quality_table(found), cost_table(found)], "plots": {}, "comparisons": {}} | options
    size = write_report(path / "report.html", found, images, images_per_dataset=count, **options)
    content = (path / "report.html").read_bytes()
    assert size == len(content)
    return Page(content.decode("utf-8"))


def test_equal_arguments_give_equal_files_of_which_only_a_given_date_is_told(tmp_path):
    found, images = results_of(2), {2: pictures(2, ("bicubic", "student", "distilled"))}
    page = write(tmp_path, found, images)
    first = (tmp_path / "report.html").read_bytes()
    write(tmp_path, found, images)
    assert (tmp_path / "report.html").read_bytes() == first
    assert "Date" not in page.text
    assert "2031-02-03" in write(tmp_path, found, images, date="2031-02-03").text


def test_every_image_is_there_once_and_to_the_last_bit(tmp_path):
    names = ("bicubic", "student", "distilled")
    memory = pictures(2, names)
    page = write(tmp_path, results_of(2), {2: memory})
    views = page.views()
    assert len(views) == 2 and len(page.data) == 2 * 5
    for view, image in zip(views, ("a", "b"), strict=True):
        assert (view["width"], view["height"]) == (66, 48)
        shown = {source["name"]: page.image(source["key"]) for source in view["sources"]}
        assert list(shown) == [HR, LR, *names]
        np.testing.assert_array_equal(shown[HR], memory.hr("Set5", image))
        np.testing.assert_array_equal(shown[LR], memory.lr("Set5", image))
        for name in names:
            np.testing.assert_array_equal(shown[name], memory.output(name, "Set5", image))


def test_scales_share_an_hr_image_also_where_one_is_cut_smaller(tmp_path):
    names = ("bicubic", "student", "distilled")
    hr = noise(50, 68, 1)
    images = {2: pictures(2, names, hr), 3: pictures(3, names, hr[:48, :66])}
    page = write(tmp_path, results_of(2, 3), images)
    views = page.views()
    assert len({view["sources"][0]["key"] for view in views}) == 1
    assert [(view["width"], view["height"]) for view in views] == [(68, 50)] * 2 + [(66, 48)] * 2


def test_at_first_bicubic_is_on_the_left_and_the_last_network_that_is_no_teacher_on_the_right(tmp_path):
    names = ("bicubic", "student", "a teacher")
    page = write(tmp_path, results_of(2, name="a teacher"), {2: pictures(2, names)})
    view = page.views()[0]
    assert view["sources"][view["left"]]["name"] == "bicubic"
    assert view["sources"][view["right"]]["name"] == "student"


def test_figures_of_each_image_are_its_own(tmp_path):
    page = write(tmp_path, results_of(2), {2: pictures(2, ("bicubic", "student", "distilled"))})
    figures = [view["sources"][3]["figures"] for view in page.views()]
    assert figures == [["PSNR 33.50", "SSIM 0.9200"], ["PSNR 35.50", "SSIM 0.9400"]]


def test_with_few_images_asked_for_those_stay_that_differ_most_and_it_says_of_how_many(tmp_path):
    found = results_of(2)
    found.scales[0].rows[2].evaluations["Set5"].values[1, 0] += 5  # of image b
    page = write(tmp_path, found, {2: pictures(2, ("bicubic", "student", "distilled"))}, count=1)
    assert len(page.views()) == 1
    assert page.views()[0]["sources"][4]["figures"][0] == "PSNR 41.00"
    assert "1 of 2 images: the one with the largest difference between the networks." in page.text


def test_a_dataset_without_hr_images_shows_the_others(tmp_path):
    names = ("bicubic", "student", "distilled")
    memory = pictures(2, names)
    images = {}
    for image in "ab":
        images["Set5", image] = {name: memory.output(name, "Set5", image) for name in names}
        images["Set5", image]["lr"] = memory.lr("Set5", image)
    without = Memory(images)
    view = write(tmp_path, results_of(2), {2: without}).views()[0]
    assert [source["name"] for source in view["sources"]] == [LR, *names]
    assert (view["width"], view["height"], view["region"]) == (66, 48, None)


def test_without_images_it_says_why_there_are_none(tmp_path):
    page = write(tmp_path, results_of(2), {})
    assert "No images in this report" in page.text and not page.views()
    page = write(tmp_path, results_of(2), {2: pictures(2, ("bicubic", "student", "distilled"))}, count=0)
    assert "No images in this report" in page.text and not page.views()


def test_what_was_left_out_is_named_once(tmp_path):
    page = write(tmp_path, results_of(2, 3, skipped=("Urban100: there is no such folder",)), {})
    assert page.text.count("x2, x3: left out Urban100: there is no such folder") == 1


def test_names_cannot_break_out_of_where_they_stand(tmp_path):
    found = results_of(2, name=MALICIOUS)
    images = {2: pictures(2, ("bicubic", "student", MALICIOUS))}
    plain = write(tmp_path, results_of(2), {2: pictures(2, ("bicubic", "student", "distilled"))})
    page = write(tmp_path, found, images)
    assert page.tags == plain.tags
    assert page.views()[0]["sources"][4]["name"] == MALICIOUS
    assert MALICIOUS in page.text
    assert "<script>alert" not in (tmp_path / "report.html").read_text("utf-8")


def test_nothing_is_asked_of_a_network(tmp_path):
    page = write(tmp_path, results_of(2), {2: pictures(2, ("bicubic", "student", "distilled"))})
    addresses = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action")]
    assert addresses and all(value.startswith(("#", "data:")) for value in addresses)
    assert "default-src 'none'" in (tmp_path / "report.html").read_text("utf-8")


def test_a_comparison_is_shown_unaltered(tmp_path):
    picture = noise(40, 90, 5)
    content = cv2.imencode(".png", picture)[1].tobytes()
    page = write(tmp_path, results_of(2), {}, comparisons={2: content})
    (address,) = (value for name, value in page.attributes if name == "src")
    shown = imfrombytes(base64.b64decode(address.partition(",")[2]), source="shown")
    np.testing.assert_array_equal(shown, picture)


def test_an_output_of_another_size_is_refused_and_the_old_report_stays(tmp_path):
    (tmp_path / "report.html").write_text("old")
    images = pictures(2, ("bicubic", "student", "distilled"))
    images._images["Set5", "b"]["student"] = noise(24, 33, 0)
    with pytest.raises(DataError, match=r"student made Set5's b 33 x 24 pixels large, not 66 x 48"):
        write(tmp_path, results_of(2), {2: images})
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there_is_told_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot save .*report\.html"):
        write(tmp_path / "nowhere", results_of(2), {})


@pytest.mark.parametrize(
    "image", [noise(60, 80, 3), np.random.default_rng(0).integers(0, 256, (3, 20000, 3), np.uint8)]
)
def test_the_smaller_of_two_lossless_files_is_taken_and_decodes_to_the_same_image(image):
    mime, content = lossless(image)
    np.testing.assert_array_equal(imfrombytes(content, source="x"), image)
    assert mime == ("image/webp" if image.shape[1] < 16384 else "image/png")  # WebP has no larger ones
    assert len(content) <= len(cv2.imencode(".png", image)[1])


SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">
<metadata>who</metadata><defs><style type="text/css">*{fill: red}</style><clipPath id="c1">
<path id="m" d="M0 0"/></clipPath></defs>
<!-- id="c1" --><g clip-path="url(#c1)"><use xlink:href="#m" style="fill: url(#c1)"/></g>
<text>id="c1" &lt;script&gt;</text></svg>"""


def test_ids_of_drawings_are_made_different_with_all_that_refers_to_them():
    first, second = (ElementTree.fromstring(svg_element(SVG, prefix)) for prefix in ("p0-", "p1-"))
    for root, prefix in ((first, "p0-"), (second, "p1-")):
        assert {element.get("id") for element in root.iter()} - {None} == {f"{prefix}c1", f"{prefix}m"}
        (group,), (use,) = root.iter("g"), root.iter("use")
        assert group.get("clip-path") == f"url(#{prefix}c1)"
        assert use.get("href") == f"#{prefix}m" and use.get("style") == f"fill: url(#{prefix}c1)"
        assert root.find("text").text == 'id="c1" <script>'
        assert not {"style", "metadata"} & {element.tag for element in root.iter()}


def test_a_drawing_without_namespaces_stands_in_html_as_it_is():
    text = svg_element(SVG, "p-")
    assert text.startswith("<svg ") and not re.search(r"ns\d:|xmlns", text)
    assert "&lt;script&gt;" in text
