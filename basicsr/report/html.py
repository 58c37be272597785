"""The HTML report: one file with tables, plots, visual comparisons and images to compare, for any browser, offline.

`report.html` is its template; `report.css` and `report.js` are written into it. Images are coded without loss, so that
what one sees enlarged is what the network made, and each is there once, however many places show it. They follow one
another in the file as they are coded: neither writing nor opening it holds all of them decoded.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from basicsr.files.atomic_files import write_atomically
from basicsr.files.images import imfrombytes
from basicsr.report.regions import compared_rows, images_that_differ, most_different_square, square_size, without_scale
from basicsr.report.results import Pictures, Results, Row, ScaleResults
from basicsr.report.tables import Table, decimals_of, format_figure, gaps, is_ranked, metric_label, weights_used
from basicsr.utils.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Template

HR, LR = "HR", "LR, nearest"
_LARGEST_WEBP = 16383  # pixels a side
_LEAST_REGION = 8
_WORKERS = max(min(os.cpu_count() or 1, 4), 1)
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


@dataclass(frozen=True)
class Stored:
    """An image in the file.

    Attributes:
        key: what others call it by.
        mime: its format.
        base64: its file; None if it stands in the report already.
    """

    key: str
    mime: str
    base64: str | None


@dataclass(frozen=True)
class Card:
    """One image to compare: `view` is what report.js gets, `stored` the images it needs that are not there yet."""

    name: str
    size: str
    view: Mapping[str, Any]
    stored: Sequence[Stored]


@dataclass(frozen=True)
class Gallery:
    """The cards of one scale and dataset; they can be run through once."""

    scale: int
    dataset: str
    remark: str
    cards: Iterator[Card]


def write_report(
    path: Path,
    results: Results,
    pictures: Mapping[int, Pictures],
    *,
    images_per_dataset: int,
    tables: Sequence[Table],
    plots: Mapping[str, str],
    comparisons: Mapping[int, bytes],
    date: str | None = None,
) -> int:
    """Writes the report; the same arguments give the same bytes.

    Args:
        path: the file to create or replace.
        results: what was measured.
        pictures: by scale; a scale without them has no images to compare.
        images_per_dataset: how many of them of each scale and dataset: those whose figures differ most.
        tables: in this order.
        plots: <svg> elements by title.
        comparisons: visual comparisons by scale, as the bytes of image files.
        date: to stand in the header; none unless given.

    Returns:
        The size of the file in bytes.

    Raises:
        DataError: an image cannot be read, or an output is not of the HR image's size.
        CheckpointError: the file cannot be written.
    """
    store = _Store()
    skipped = gaps(results)
    context = {
        "title": results.name,
        "results": results,
        "date": date,
        "networks": list(dict.fromkeys(row.name for scale in results.scales for row in scale.rows)),
        "skipped": skipped,
        "tables": [(table, [note for note in table.notes if note not in skipped]) for table in tables],
        "weights": weights_used(results),
        "plots": [(title, svg_element(svg, f"plot{number}-")) for number, (title, svg) in enumerate(plots.items())],
        "comparisons": [(scale, _data_url(content)) for scale, content in comparisons.items()],
        "pictures": bool(pictures) and images_per_dataset > 0,
        "choices": _choices(results) if pictures else [],
        "scales": [scale.scale for scale in results.scales if scale.scale in pictures],
        "galleries": _galleries(results, pictures, images_per_dataset, store),
    }

    def write(file: BinaryIO) -> None:
        for text in _template().generate(**context):
            file.write(text.encode("utf-8", "backslashreplace"))  # names of files need not be text

    return write_atomically(path, write)[1]


def svg_element(svg: str, prefix: str) -> str:
    """An SVG drawing made fit to stand in an HTML page beside others.

    Its ids, and what refers to them, get a prefix; style sheets, which would hold for the page, comments and metadata
    are left out; names are those of HTML, without namespaces.

    Args:
        svg: the drawing, an <svg> element.
        prefix: another one for each drawing of the page.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        for child in [child for child in element if _local(child.tag) in ("style", "metadata")]:
            element.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        for name, value in attributes.items():
            if name == "id":
                value = prefix + value
            elif name == "href" and value.startswith("#"):
                value = f"#{prefix}{value[1:]}"
            element.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    root.set("aria-hidden", "true")  # the figure that it stands in has a label
    return ElementTree.tostring(root, encoding="unicode")


class _Store:
    """Which images are in the report; each is coded when it is first asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, ...], bytes], Stored] = {}

    def add(self, images: Sequence[np.ndarray]) -> list[Stored]:
        """The places of images, uint8 (H, W, 3) BGR, each with its file the first time."""
        keys = [(image.shape, sha256(image.tobytes()).digest()) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        with ThreadPoolExecutor(_WORKERS) as pool:
            files = dict(zip(new, pool.map(lossless, new.values()), strict=True))
        stored = []
        for key in keys:
            if (file := files.pop(key, None)) is None:
                stored.append(self._known[key])
                continue
            mime, content = file
            place = Stored(f"image{len(self._known)}", mime, None)
            self._known[key] = place
            stored.append(Stored(place.key, mime, base64.b64encode(content).decode("ascii")))
        return stored


def lossless(image: np.ndarray) -> tuple[str, bytes]:
    """MIME type and file of an image, as WebP without loss or as PNG, whichever is smaller.

    Args:
        image: uint8 (H, W, 3) BGR.
    """
    png = cv2.imencode(".png", image)[1].tobytes()
    if max(image.shape[:2]) > _LARGEST_WEBP:
        return "image/png", png
    file = io.BytesIO()
    # A higher method saves two hundredths and takes twice to fifty times as long.
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, "WEBP", lossless=True, method=2, quality=50)
    webp = file.getvalue()
    return ("image/webp", webp) if len(webp) < len(png) else ("image/png", png)


@dataclass(frozen=True)
class _Example:
    """One image of the report; `outputs` by the networks' names, in their order; arrays are uint8 (H, W, 3) BGR."""

    results: Results
    scale: ScaleResults
    dataset: str
    image: str
    title: str
    hr: np.ndarray | None
    lr: np.ndarray
    outputs: Mapping[str, np.ndarray]

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width that all sources are shown in."""
        height, width = self.lr.shape[:2] if self.hr is None else self.hr.shape[:2]
        factor = self.scale.scale if self.hr is None else 1
        return height * factor, width * factor

    def check(self) -> None:
        for name, output in self.outputs.items():
            if output.shape[:2] != self.size:
                raise DataError(
                    f"{name} made {self.dataset}'s {self.image} {output.shape[1]} x {output.shape[0]} pixels large, not"
                    f" {self.size[1]} x {self.size[0]}; were both made at x{self.scale.scale}?"
                )

    def figures(self, row: Row) -> list[str]:
        """The image's own figures, such as "PSNR 33.68"."""
        evaluation = row.evaluations[self.dataset]
        if self.image not in evaluation.images:
            return []
        values = evaluation.values[evaluation.images.index(self.image)]
        return [
            f"{metric_label(name, self.results.higher_is_better(name))} {format_figure(value, decimals_of(name))}"
            for name, value in zip(evaluation.metrics, values.tolist(), strict=True)
        ]

    def region(self) -> list[int] | None:
        """Left, top and side of the square in which the networks differ most; None where that cannot be said."""
        names = [row.name for row in compared_rows(self.scale.rows) if row.name in self.outputs]
        if self.hr is None or not names or (side := square_size(self.hr, self.scale.scale)) < _LEAST_REGION:
            return None
        outputs = {name: self.outputs[name] for name in names}
        x, y, _ = most_different_square(self.hr, outputs, side, border=self.scale.scale)
        return [x, y, side]


def _galleries(results: Results, pictures: Mapping[int, Pictures], count: int, store: _Store) -> Iterator[Gallery]:
    """The images of each scale and dataset; reads and codes them when they are asked for."""
    plan = [
        (scale, dataset, _chosen(scale, dataset, pictures[scale.scale], count, results.better))
        for scale in results.scales
        if scale.scale in pictures and count
        for dataset in scale.datasets()
    ]
    whole: dict[tuple[str, str], list[np.ndarray]] = {}  # HR images so far: other scales may show parts of them
    with tqdm(total=sum(len(names) for *_, names in plan), desc="report", unit="image", disable=None) as bar:
        for scale, dataset, names in plan:
            examples = (_load(results, scale, dataset, name, pictures[scale.scale]) for name in names)
            cards = (_counted(bar, _card(example, store, whole)) for example in examples)
            of = len(pictures[scale.scale].names(dataset))
            yield Gallery(scale.scale, dataset, _remark(scale, len(names), of), cards)


def _counted(bar: tqdm[Any], card: Card) -> Card:
    bar.update()
    return card


def _chosen(scale: ScaleResults, dataset: str, pictures: Pictures, count: int, better: Mapping[str, str]) -> list[str]:
    """Images whose figures differ most, those most first; then those without figures, in their order."""
    names = pictures.names(dataset)
    differing = images_that_differ(scale, sum(map(len, _images(scale))), better)
    ordered = [image for name, image in differing if name == dataset]
    return list(dict.fromkeys([*(name for name in ordered if name in names), *names]))[:count]


def _images(scale: ScaleResults) -> list[tuple[str, ...]]:
    return [evaluation.images for row in scale.rows for evaluation in row.evaluations.values()]


def _remark(scale: ScaleResults, shown: int, of: int) -> str:
    order = (
        "the one with the largest difference between the networks first"
        if len(compared_rows(scale.rows)) > 1
        else "the one with the worst figure first"
    )
    if shown == of:
        return f"All {of} images, {order}." if of > 1 else "1 image."
    return f"{shown} of {of} images, {order}." if shown > 1 else f"1 of {of} images: {order.removesuffix(' first')}."


def _load(results: Results, scale: ScaleResults, dataset: str, image: str, pictures: Pictures) -> _Example:
    rows = [row.name for row in scale.rows if dataset in row.evaluations]
    outputs = {name: pictures.output(name, dataset, image) for name in rows}
    hr, lr = pictures.hr(dataset, image), pictures.lr(dataset, image)
    title = without_scale(image, scale.scale, pictures.names(dataset))
    return _Example(results, scale, dataset, image, title, hr, lr, outputs)


def _card(example: _Example, store: _Store, whole: dict[tuple[str, str], list[np.ndarray]]) -> Card:
    example.check()
    scale = example.scale.scale
    rows = [row for row in example.scale.rows if row.name in example.outputs]
    arrays = [example.lr, *example.outputs.values()]
    sources: list[dict[str, Any]] = [
        {"name": LR, "factor": scale, "figures": [f"{_size_text(*example.lr.shape[1::-1])} pixels"]}
    ]
    sources += [{"name": row.name, "figures": example.figures(row)} for row in rows]
    if example.hr is not None:
        known = whole.setdefault((example.dataset, example.title), [])
        arrays.insert(0, _whole_of(example.hr, known))
        sources.insert(0, {"name": HR, "figures": ["ground truth"]})
    stored = store.add(arrays)
    for source, place in zip(sources, stored, strict=True):
        source["key"] = place.key
    left, right = _first_choice(rows)
    before = len(sources) - len(rows)
    height, width = example.size
    view = {
        "width": width,
        "height": height,
        "sources": sources,
        "left": before + left,
        "right": before + right,
        "region": example.region(),
    }
    new = [place for place in stored if place.base64 is not None]
    return Card(example.title, _size_text(width, height), view, new)


def _whole_of(hr: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
    """An HR image that this one is the upper left part of, as scales cut them differently; itself if there is none."""
    for image in known:
        if np.array_equal(image[: hr.shape[0], : hr.shape[1]], hr):
            return image
    known.append(hr)
    return hr


def _choices(results: Results) -> list[str]:
    """What can be compared in any image, in the order of the lists."""
    rows = dict.fromkeys(row.name for scale in results.scales for row in scale.rows)
    return [HR, LR, *rows]


def _first_choice(rows: Sequence[Row]) -> tuple[int, int]:
    """What is shown at first: bicubic interpolation, or the LR image before the rows, and the last ranked network."""
    left = next((index for index, row in enumerate(rows) if not row.parameters), -1)
    right = next((index for index, row in reversed(list(enumerate(rows))) if is_ranked(row)), len(rows) - 1)
    return left, right


def _data_url(content: bytes) -> str:
    """An image file, coded as `lossless` does, as the address of an <img>."""
    mime, smallest = lossless(imfrombytes(content, source="the visual comparison"))
    return f"data:{mime};base64,{base64.b64encode(smallest).decode('ascii')}"


def _size_text(width: int, height: int) -> str:
    return f"{width} \N{MULTIPLICATION SIGN} {height}"


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _template() -> Template:
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    folder = files("basicsr.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ("css", "js"):
        environment.globals[name] = (folder / f"report.{name}").read_text(encoding="utf-8")
    return environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
