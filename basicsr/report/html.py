"""The HTML report: one file for any browser, offline, of the template `report.html`, `report.css` and `report.js`.

Images are coded without loss, stored once, and written one by one: never are all of them decoded.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from basicsr.report.comparison import (
    LEAST_SIDE,
    SavedPictures,
    images_that_differ,
    load_output,
    most_different_square,
    square_size,
    without_scale,
)
from basicsr.report.tables import (
    Results,
    Row,
    ScaleResults,
    Table,
    gaps,
    labelled_figure,
    weights_used,
)

if TYPE_CHECKING:
    from jinja2 import Template

HR, LR = "HR", "LR, nearest"
_LARGEST_WEBP = 16383  # pixels a side
_WORKERS = max(min(os.cpu_count() or 1, 4), 1)
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def write_report(
    path: Path,
    results: Results,
    pictures: Mapping[int, SavedPictures],
    *,
    images_per_dataset: int,
    tables: Sequence[Table],
    plots: Mapping[str, str],
    comparisons: Mapping[int, bytes],
    date: str | None = None,
    kind: str = "Evaluation of super-resolution networks",
    facts: Mapping[str, str] = {},
    details: Mapping[str, str] = {},
) -> int:
    """Writes the report and returns its size in bytes; the same arguments give the same bytes.

    `pictures` and `comparisons`, the bytes of image files, are by scale; `plots` are <svg> elements by title. Of each
    scale and dataset, those `images_per_dataset` images whose figures differ most are shown. `kind` stands above the
    title, `facts` below it before others, and `details` are texts by title, folded at the end.
    """

    def data_url(content: bytes) -> str:
        mime, smallest = lossless(imfrombytes(content, source="the visual comparison"))
        return f"data:{mime};base64,{base64.b64encode(smallest).decode('ascii')}"

    skipped = gaps(results)
    names = list(dict.fromkeys(row.name for scale in results.scales for row in scale.rows))
    context = {
        "title": results.name,
        "results": results,
        "date": date,
        "kind": kind,
        "facts": facts,
        "details": details,
        "networks": names,
        "skipped": skipped,
        "tables": [(table, [note for note in table.notes if note not in skipped]) for table in tables],
        "weights": weights_used(results),
        "plots": [(title, svg_element(svg, f"plot{number}-")) for number, (title, svg) in enumerate(plots.items())],
        "comparisons": [(scale, data_url(image)) for scale, image in comparisons.items()],
        "pictures": bool(pictures) and images_per_dataset > 0,
        "choices": [HR, LR, *names],
        "scales": [scale.scale for scale in results.scales if scale.scale in pictures],
        "galleries": _galleries(results, pictures, images_per_dataset),
    }

    def write(file: BinaryIO) -> None:
        for text in _template().generate(**context):
            file.write(text.encode("utf-8", "backslashreplace"))  # names of files need not be text

    return write_atomically(path, write)[1]


def svg_element(svg: str, prefix: str) -> str:
    """An <svg> element for an HTML page: ids and references get the prefix; style sheets and metadata are removed."""
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
    """The images in the report; each is coded once, at its first use."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, ...], bytes], str] = {}

    def add(self, images: Sequence[np.ndarray]) -> tuple[list[str], list[tuple[str, str, str]]]:
        """The keys of images, uint8 (H, W, 3) BGR; and key, MIME type and Base64 text of those that are new."""
        digests = [(image.shape, sha256(image.tobytes()).digest()) for image in images]
        new = {digest: image for digest, image in zip(digests, images, strict=True) if digest not in self._known}
        with ThreadPoolExecutor(_WORKERS) as pool:
            files = list(pool.map(lossless, new.values()))
        stored = []
        for digest, (mime, content) in zip(new, files, strict=True):
            self._known[digest] = f"image{len(self._known)}"
            stored.append((self._known[digest], mime, base64.b64encode(content).decode("ascii")))
        return [self._known[digest] for digest in digests], stored


def _galleries(results: Results, pictures: Mapping[int, SavedPictures], count: int) -> Iterator[dict[str, Any]]:
    """The images of each scale and dataset for the template, which has them read and coded one by one."""
    store = _Store()
    whole: dict[tuple[str, str], list[np.ndarray]] = {}  # HR images so far: other scales may show parts of them
    plan = [
        (scale, dataset, _chosen(scale, dataset, pictures[scale.scale], count, results.better))
        for scale in results.scales
        if scale.scale in pictures and count
        for dataset in scale.datasets()
    ]

    def cards(scale: ScaleResults, dataset: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            yield _card(results, scale, dataset, name, pictures[scale.scale], store, whole)
            bar.update()

    with tqdm(total=sum(len(names) for *_, names in plan), desc="report", unit="image", disable=None) as bar:
        for scale, dataset, names in plan:
            yield {
                "scale": scale.scale,
                "dataset": dataset,
                "remark": _remark(scale, len(names), len(pictures[scale.scale].names(dataset))),
                "cards": cards(scale, dataset, names),
            }


def _chosen(
    scale: ScaleResults, dataset: str, pictures: SavedPictures, count: int, better: Mapping[str, str]
) -> list[str]:
    """Images whose figures differ most, those most first; then those without figures, in their order."""
    names = pictures.names(dataset)
    ordered = [image for name, image in images_that_differ(scale, better) if name == dataset and image in names]
    return list(dict.fromkeys([*ordered, *names]))[:count]


def _remark(scale: ScaleResults, shown: int, of: int) -> str:
    if of == 1:
        return "1 image."
    first = "largest difference between the networks" if len(scale.compared()) > 1 else "worst figure"
    if shown == 1:
        return f"1 of {of} images: the one with the {first}."
    return f"{'All' if shown == of else f'{shown} of'} {of} images, the one with the {first} first."


def _card(
    results: Results,
    scale: ScaleResults,
    dataset: str,
    image: str,
    pictures: SavedPictures,
    store: _Store,
    whole: dict[tuple[str, str], list[np.ndarray]],
) -> dict[str, Any]:
    """One image to compare: `view` is for report.js, `stored` are the images that are not in the page yet."""
    rows = [row for row in scale.rows if dataset in row.evaluations]
    hr, lr = pictures.hr(dataset, image), pictures.lr(dataset, image)
    height, width = hr.shape[:2] if hr is not None else (side * scale.scale for side in lr.shape[:2])
    outputs = {}
    for row in rows:
        outputs[row.name] = load_output(pictures, row.name, dataset, image, (height, width), scale.scale)
    title = without_scale(image, scale.scale, pictures.names(dataset))
    arrays = [lr, *outputs.values()]
    sources: list[dict[str, Any]] = [
        {"name": LR, "factor": scale.scale, "figures": [f"{_times(*lr.shape[1::-1])} pixels"]},
        *({"name": row.name, "figures": _figures(results, row, dataset, image)} for row in rows),
    ]
    if hr is not None:
        known = whole.setdefault((dataset, title), [])
        # Scales crop HR images at the right and below: a larger one shows this one too.
        larger = (other for other in known if np.array_equal(other[:height, :width], hr))
        shown = next(larger, hr)
        if shown is hr:
            known.append(hr)
        arrays.insert(0, shown)
        sources.insert(0, {"name": HR, "figures": ["ground truth"]})
    keys, stored = store.add(arrays)
    for source, key in zip(sources, keys, strict=True):
        source["key"] = key
    # At first bicubic interpolation, or the LR image before the rows, and the last ranked network are shown.
    left = next((index for index, row in enumerate(rows) if not row.parameters), -1)
    right = max((index for index, row in enumerate(rows) if row.is_ranked), default=len(rows) - 1)
    before = len(sources) - len(rows)
    compared = [outputs[row.name] for row in scale.compared() if row.name in outputs]
    region = None  # left, top and side of the square in which the networks differ most, where that can be said
    if hr is not None and compared and (side := square_size(hr, scale.scale)) >= LEAST_SIDE:
        x, y, _ = most_different_square(hr, compared, side, border=scale.scale)
        region = [x, y, side]
    view = {
        "width": width,
        "height": height,
        "sources": sources,
        "left": before + left,
        "right": before + right,
        "region": region,
    }
    return {"name": title, "size": _times(width, height), "view": view, "stored": stored}


def _figures(results: Results, row: Row, dataset: str, image: str) -> list[str]:
    """The image's own figures, such as "PSNR 33.68"."""
    evaluation = row.evaluations[dataset]
    if image not in evaluation.images:
        return []
    values = evaluation.values[evaluation.images.index(image)].tolist()
    return [
        labelled_figure(name, value, results.higher_is_better(name))
        for name, value in zip(evaluation.metrics, values, strict=True)
    ]


def _times(width: int, height: int) -> str:
    return f"{width} \N{MULTIPLICATION SIGN} {height}"


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def lossless(image: np.ndarray) -> tuple[str, bytes]:
    """MIME type and file of an image, uint8 (H, W, 3) BGR, as WebP without loss or as PNG, whichever is smaller."""
    png = cv2.imencode(".png", image)[1].tobytes()
    if max(image.shape[:2]) > _LARGEST_WEBP:
        return "image/png", png
    file = io.BytesIO()
    # A higher method saves two hundredths and takes twice to fifty times as long.
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(file, "WEBP", lossless=True, method=2, quality=50)
    webp = file.getvalue()
    return ("image/webp", webp) if len(webp) < len(png) else ("image/png", png)


def _template() -> Template:
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined

    folder = files("basicsr.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    for name in ("css", "js"):
        environment.globals[name] = (folder / f"report.{name}").read_text(encoding="utf-8")
    return environment.from_string((folder / "report.html").read_text(encoding="utf-8"))
