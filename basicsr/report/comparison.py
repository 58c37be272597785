"""The visual comparison: for each region the whole HR image, reduced, and crops of HR and of every network's output.

Crops are enlarged by a whole number without smoothing. Below each stand PSNR and SSIM, of the crop or of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from basicsr.config.schema import Region
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.report.regions import choose_regions, compared_rows, image_name, images_that_differ
from basicsr.report.results import Pictures, ScaleResults
from basicsr.utils.errors import DataError

INK, FAINT, PAPER, ACCENT = (32, 32, 36), (96, 96, 102), (255, 255, 255), (228, 62, 40)
_SEARCHED = 4  # images in which to look for each region that is wanted
_LEAST_FOR_SSIM = 11
_MOST_IN_A_ROW = 5  # crops

FiguresOf = Literal["region", "image"]


@dataclass(frozen=True)
class _Example:
    """One region; all arrays are uint8 (H, W, 3) BGR of one size, `outputs` by the names to write below."""

    title: str
    hr: np.ndarray
    outputs: Mapping[str, np.ndarray]
    region: Region

    def cut(self, image: np.ndarray) -> np.ndarray:
        x, y, size = self.region.x, self.region.y, self.region.size
        return image[y : y + size, x : x + size]


@dataclass(frozen=True)
class _Layout:
    """Pixels of one example's strip; all lengths follow from the cell, which is a crop's place."""

    target: int  # what an enlarged crop should measure
    cell: int  # what the largest one measures
    crops: int
    overview: int  # width of the reduced HR image's place

    @property
    def unit(self) -> float:
        return self.cell / 192

    @property
    def columns(self) -> int:
        return self.crops if self.crops <= _MOST_IN_A_ROW else math.ceil(self.crops / 2)

    @property
    def rows(self) -> int:
        return math.ceil(self.crops / self.columns)

    @property
    def gap(self) -> int:
        return round(10 * self.unit)

    @property
    def caption(self) -> int:
        return round(50 * self.unit)

    @property
    def margin(self) -> int:
        return round(14 * self.unit)

    @property
    def width(self) -> int:
        return 2 * self.margin + self.overview + self.columns * (self.cell + self.gap)

    @property
    def height(self) -> int:
        return self.rows * (self.cell + self.caption)

    def corner(self, number: int) -> tuple[int, int]:
        """Left and top of a crop's cell in the strip."""
        row, column = divmod(number, self.columns)
        left = self.margin + self.overview + self.gap + column * (self.cell + self.gap)
        return left, row * (self.cell + self.caption)


def check_regions(regions: Sequence[Region], pictures: Pictures, *, scale: int) -> None:
    """Looks, before anything is measured, whether regions lie in their images.

    Raises:
        DataError: one does not, or its image is not there or cannot be read.
    """
    for region in regions:
        _find(pictures, region, scale)


def compare_scale(
    scale: ScaleResults,
    pictures: Pictures,
    *,
    count: int,
    regions: Sequence[Region] = (),
    better: Mapping[str, str] | None = None,
    cell: int = 384,
) -> tuple[np.ndarray, list[Region]] | None:
    """The visual comparison of one scale's networks.

    Args:
        scale: whose rows to compare, in their order.
        pictures: of that scale.
        count: how many regions to choose where none are given.
        regions: what to show; those of datasets that this scale does not have are passed over.
        better: `lower` by the name of a metric where that is better.
        cell: about what an enlarged crop measures, in pixels.

    Returns:
        The picture, uint8 (H, W, 3) BGR, and the regions it shows; None if there is nothing to show.

    Raises:
        DataError: an image cannot be read, or a region does not lie in its image.
    """
    datasets = scale.datasets()
    shown = [region for region in regions if region.dataset in datasets]
    if not regions and count:
        names = [row.name for row in compared_rows(scale.rows)]
        images = images_that_differ(scale, _SEARCHED * count, better)
        shown = choose_regions(pictures, names, images, count, scale=scale.scale)
    if not shown or not scale.rows:
        return None
    picture = draw_comparison(pictures, [row.name for row in scale.rows], shown, scale=scale.scale, cell=cell)
    return picture, shown


def draw_comparison(
    pictures: Pictures,
    names: Sequence[str],
    regions: Sequence[Region],
    *,
    scale: int,
    labels: Mapping[str, str] | None = None,
    figures_of: FiguresOf = "region",
    cell: int = 384,
) -> np.ndarray:
    """Draws one strip for each region: the HR image with a frame around the region, then the crops.

    Up to five crops stand in one row, more in two.

    Args:
        pictures: where the images are.
        names: of the rows, in the order of the crops.
        regions: at least one; squares of HR images.
        scale: of the pictures.
        labels: what to call a row where not by its name.
        figures_of: whether PSNR and SSIM are of the crop or, without a border of `scale` pixels, of the image; of luma.
        cell: about what an enlarged crop measures, in pixels; 384 suits a page's width in print.

    Returns:
        uint8 (H, W, 3) BGR.

    Raises:
        DataError: an image cannot be read, or a region does not lie in its image.
    """
    examples = [_load(pictures, names, region, scale, labels or {}) for region in regions]
    largest = max(region.size * _zoom(region.size, cell) for region in regions)
    layout = _Layout(cell, largest, 1 + len(names), 0)
    layout = replace(layout, overview=_overview_width(examples, layout))
    between, footer = round(12 * layout.unit), round(28 * layout.unit)
    height = 2 * layout.margin + len(examples) * (layout.height + between) + footer
    picture = Image.new("RGB", (layout.width, height), PAPER)
    for number, example in enumerate(examples):
        strip = _draw_strip(example, layout, None if figures_of == "region" else scale)
        picture.paste(strip, (0, layout.margin + number * (layout.height + between)))
    canvas = ImageDraw.Draw(picture)
    canvas.text(
        (layout.margin, height - layout.margin), _footer(figures_of, scale), FAINT, _font(12 * layout.unit), anchor="ls"
    )
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


def _find(pictures: Pictures, region: Region, scale: int) -> tuple[str, np.ndarray, Region]:
    """A region's image by name, the HR image, and the region as it lies in it.

    Scales cut HR images at the right and below to multiples of their own: by as much a region is moved where it must.
    """
    image = image_name(region, pictures.names(region.dataset), scale)
    hr = pictures.hr(region.dataset, image)
    if hr is None:
        raise DataError(f"{region.dataset} has no HR images, so {image} cannot be compared; choose another region")
    height, width = hr.shape[:2]
    x, y = min(region.x, width - region.size), min(region.y, height - region.size)
    if min(x, y) < 0 or max(region.x - x, region.y - y) >= scale:
        raise DataError(
            f"report: regions: the square of {region.size} pixels at ({region.x}, {region.y}) does not lie in"
            f" {region.dataset}'s {image} of {width} x {height} pixels"
        )
    return image, hr, region.model_copy(update={"x": x, "y": y})


def _load(pictures: Pictures, names: Sequence[str], region: Region, scale: int, labels: Mapping[str, str]) -> _Example:
    image, hr, region = _find(pictures, region, scale)
    height, width = hr.shape[:2]
    outputs = {labels.get(name, name): pictures.output(name, region.dataset, image) for name in names}
    for name, output in outputs.items():
        if output.shape != hr.shape:
            raise DataError(
                f"{name} made {image} {output.shape[1]} x {output.shape[0]} pixels large, the HR image has"
                f" {width} x {height}; were both made at x{scale}?"
            )
    return _Example(f"{region.dataset} x{scale}: {region.image}", hr, outputs, region)


def _zoom(size: int, target: int) -> int:
    """The whole number that brings a crop nearest to the target."""
    return max(round(target / size), 1)


def _overview_width(examples: Sequence[_Example], layout: _Layout) -> int:
    """As wide as the images are when they fill the strip's height, within limits."""
    widest = max(example.hr.shape[1] / example.hr.shape[0] for example in examples)
    limit = (1.5 if layout.rows == 1 else 2.2) * layout.cell
    return round(min(widest * (layout.height - layout.caption), limit))


def _draw_strip(example: _Example, layout: _Layout, border: int | None) -> Image.Image:
    """`border`: what to cut off the image that figures are of; None if they are of the crop."""
    strip = Image.new("RGB", (layout.width, layout.height), PAPER)
    canvas = ImageDraw.Draw(strip)
    _draw_overview(strip, canvas, example, layout)
    hr_crop = example.cut(example.hr)
    for number, (name, image) in enumerate({"HR": example.hr, **example.outputs}.items()):
        crop = example.cut(image)
        zoom = _zoom(example.region.size, layout.target)
        spare = (layout.cell - zoom * example.region.size) // 2
        left, top = layout.corner(number)
        strip.paste(_pillow(crop.repeat(zoom, axis=0).repeat(zoom, axis=1)), (left + spare, top + spare))
        if number == 0:
            figures = "PSNR (dB) / SSIM"
        elif border is None:
            figures = figures_text(crop, hr_crop, 0)
        else:
            figures = figures_text(image, example.hr, border)
        middle, base = left + layout.cell / 2, top + layout.cell
        _write(canvas, (middle, base + 21 * layout.unit), name, 17 * layout.unit, INK, layout.cell)
        _write(canvas, (middle, base + 40 * layout.unit), figures, 15 * layout.unit, FAINT, layout.cell)
    return strip


def _draw_overview(strip: Image.Image, canvas: ImageDraw.ImageDraw, example: _Example, layout: _Layout) -> None:
    """The whole HR image, reduced, in the middle of its place, with a frame around the region."""
    height, width = example.hr.shape[:2]
    room = layout.height - layout.caption
    factor = min(layout.overview / width, room / height)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    left = layout.margin + (layout.overview - size[0]) // 2
    top = (room - size[1]) // 2
    resampling = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    strip.paste(_pillow(example.hr).resize(size, resampling), (left, top))
    x, y, side = left + example.region.x * factor, top + example.region.y * factor, example.region.size * factor
    line = max(round(1.5 * layout.unit), 1)
    for inset, colour, thickness in ((-2 * line, PAPER, 4 * line), (-line, ACCENT, 2 * line)):  # seen on any ground
        frame = (
            max(x + inset, left),
            max(y + inset, top),
            min(x + side - inset, left + size[0]) - 1,
            min(y + side - inset, top + size[1]) - 1,
        )
        canvas.rectangle(frame, outline=colour, width=thickness)
    middle = layout.margin + layout.overview / 2
    _write(canvas, (middle, top + size[1] + 21 * layout.unit), example.title, 17 * layout.unit, INK, layout.overview)


def figures_text(image: np.ndarray, hr: np.ndarray, border: int) -> str:
    """PSNR and SSIM of luma as they stand below a crop; a dash for SSIM where there is less than its window.

    Args:
        image: uint8 (H, W, 3) BGR.
        hr: likewise.
        border: pixels to leave out at each edge.
    """
    psnr = calculate_psnr(image, hr, crop_border=border, test_y_channel=True)
    if min(image.shape[:2]) - 2 * border < _LEAST_FOR_SSIM:
        return f"{psnr:.2f} / -"
    return f"{psnr:.2f} / {calculate_ssim(image, hr, crop_border=border, test_y_channel=True):.4f}"


def _footer(figures_of: FiguresOf, scale: int) -> str:
    where = "in the crop" if figures_of == "region" else f"of the whole image but {scale} pixels at its border"
    return f"Crops are enlarged without smoothing. PSNR and SSIM: luma {where}."


def _write(
    canvas: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: float,
    colour: tuple[int, int, int],
    width: float,
) -> None:
    """Writes a line, centred on its baseline; smaller, then shortened, where it would be wider than `width`."""
    text = " ".join(text.split())
    font = _font(size)
    if (natural := canvas.textlength(text, font)) > width:
        font = _font(max(size * width / natural, 0.7 * size))
    shown = text
    while canvas.textlength(shown, font) > width and len(text) > 1:
        text = text[:-1]
        shown = f"{text.rstrip()}…"
    canvas.text(place, shown, colour, font, anchor="ms")


def _font(size: float) -> ImageFont.FreeTypeFont:
    """The letters of the plots: matplotlib brings a font that has most of Europe's."""
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", max(size, 1))


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
