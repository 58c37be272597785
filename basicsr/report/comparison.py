"""The visual comparison: for each region the whole HR image, reduced, and crops of HR and of every network's output.

Crops are enlarged by a whole number without smoothing. Below each stand PSNR and SSIM of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from basicsr.config.schema import Region
from basicsr.metrics.psnr_ssim import SSIM_WINDOW, calculate_psnr, calculate_ssim
from basicsr.report.pictures import SavedPictures
from basicsr.report.regions import choose_regions, image_name, images_that_differ, load_output, size_text
from basicsr.report.results import ScaleResults
from basicsr.utils.errors import DataError

INK, FAINT, PAPER, ACCENT = (32, 32, 36), (96, 96, 102), (255, 255, 255), (228, 62, 40)
_SEARCHED = 4  # images in which to look for each region that is wanted
_MOST_IN_A_ROW = 5  # crops
_FOOTER = "Crops are enlarged without smoothing. PSNR and SSIM: luma in the crop."


_Place = tuple[float, float]
_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Example:
    """One region, and HR and the outputs with the names to write below: uint8 (H, W, 3) BGR of one size."""

    title: str
    images: Sequence[tuple[str, np.ndarray]]
    region: Region

    @property
    def hr(self) -> np.ndarray:
        return self.images[0][1]

    def crop(self, image: np.ndarray) -> np.ndarray:
        x, y, size = self.region.x, self.region.y, self.region.size
        return image[y : y + size, x : x + size]


class _Layout:
    """Pixels of a strip: the overview, then the crops' cells, up to five in a row, else in two rows."""

    def __init__(self, target: int, examples: Sequence[_Example]) -> None:
        self.target = target
        self.cell = max(example.region.size * self.zoom(example) for example in examples)
        self.unit = self.cell / 192
        crops = len(examples[0].images)
        self.columns = crops if crops <= _MOST_IN_A_ROW else math.ceil(crops / 2)
        rows = math.ceil(crops / self.columns)
        self.gap, self.caption, self.margin = (round(length * self.unit) for length in (10, 50, 14))
        self.height = rows * (self.cell + self.caption)
        widest = max(example.hr.shape[1] / example.hr.shape[0] for example in examples)
        limit = (1.5 if rows == 1 else 2.2) * self.cell
        self.overview = round(min(widest * (self.height - self.caption), limit))
        self.width = 2 * self.margin + self.overview + self.columns * (self.cell + self.gap)

    def zoom(self, example: _Example) -> int:
        """The whole number that brings a crop nearest to the target."""
        return max(round(self.target / example.region.size), 1)

    def corner(self, number: int) -> tuple[int, int]:
        """Left and top of a crop's cell in the strip."""
        row, column = divmod(number, self.columns)
        left = self.margin + self.overview + self.gap + column * (self.cell + self.gap)
        return left, row * (self.cell + self.caption)


def check_regions(regions: Sequence[Region], pictures: SavedPictures, *, scale: int) -> None:
    """Raises DataError, before anything is measured, if a region does not lie in its image or that cannot be read."""
    for region in regions:
        _find(pictures, region, scale)


def compare_scale(
    scale: ScaleResults,
    pictures: SavedPictures,
    *,
    count: int,
    regions: Sequence[Region] = (),
    better: Mapping[str, str] | None = None,
    cell: int = 384,
) -> tuple[np.ndarray, list[Region]] | None:
    """One scale's comparison, uint8 (H, W, 3) BGR, with its regions, of which `count` are chosen if none are given."""
    datasets = scale.datasets()
    shown = [region for region in regions if region.dataset in datasets]
    if not regions and count:
        names = [row.name for row in scale.compared()]
        images = images_that_differ(scale, better)[: _SEARCHED * count]
        shown = choose_regions(pictures, names, images, count, scale=scale.scale)
    if not shown or not scale.rows:
        return None
    picture = draw_comparison(pictures, [row.name for row in scale.rows], shown, scale=scale.scale, cell=cell)
    return picture, shown


def draw_comparison(
    pictures: SavedPictures, names: Sequence[str], regions: Sequence[Region], *, scale: int, cell: int = 384
) -> np.ndarray:
    """Draws one strip for each region: the HR image with a frame around it, then the crops of HR and `names`."""
    examples = [_load(pictures, names, region, scale) for region in regions]
    layout = _Layout(cell, examples)
    between, footer = round(12 * layout.unit), round(28 * layout.unit)
    height = 2 * layout.margin + len(examples) * (layout.height + between) + footer
    picture = Image.new("RGB", (layout.width, height), PAPER)
    for number, example in enumerate(examples):
        picture.paste(_draw_strip(example, layout), (0, layout.margin + number * (layout.height + between)))
    canvas = ImageDraw.Draw(picture)
    canvas.text((layout.margin, height - layout.margin), _FOOTER, FAINT, _font(12 * layout.unit), anchor="ls")
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


def _find(pictures: SavedPictures, region: Region, scale: int) -> tuple[str, np.ndarray, Region]:
    """The image's name, HR image and the region, moved by less than the scale as each scale crops HR images."""
    image = image_name(region, pictures.names(region.dataset), scale)
    hr = pictures.hr(region.dataset, image)
    if hr is None:
        raise DataError(f"{region.dataset} has no HR images, so {image} cannot be compared; choose another region")
    height, width = hr.shape[:2]
    x, y = min(region.x, width - region.size), min(region.y, height - region.size)
    if min(x, y) < 0 or max(region.x - x, region.y - y) >= scale:
        raise DataError(
            f"report: regions: the square of {region.size} pixels at ({region.x}, {region.y}) does not lie in"
            f" {region.dataset}'s {image} of {size_text(hr)} pixels"
        )
    return image, hr, region.model_copy(update={"x": x, "y": y})


def _load(pictures: SavedPictures, names: Sequence[str], region: Region, scale: int) -> _Example:
    image, hr, region = _find(pictures, region, scale)
    images = [("HR", hr)]
    for name in names:
        images.append((name, load_output(pictures, name, region.dataset, image, hr.shape[:2], scale)))
    return _Example(f"{region.dataset} x{scale}: {region.image}", images, region)


def _draw_strip(example: _Example, layout: _Layout) -> Image.Image:
    strip = Image.new("RGB", (layout.width, layout.height), PAPER)
    canvas = ImageDraw.Draw(strip)
    _draw_overview(strip, canvas, example, layout)
    zoom = layout.zoom(example)
    spare = (layout.cell - zoom * example.region.size) // 2
    for number, (name, image) in enumerate(example.images):
        crop = example.crop(image)
        left, top = layout.corner(number)
        strip.paste(_pillow(crop.repeat(zoom, axis=0).repeat(zoom, axis=1)), (left + spare, top + spare))
        figures = figures_text(crop, example.crop(example.hr)) if number else "PSNR (dB) / SSIM"
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
        low = max(x + inset, left), max(y + inset, top)
        high = min(x + side - inset, left + size[0]) - 1, min(y + side - inset, top + size[1]) - 1
        canvas.rectangle((*low, *high), outline=colour, width=thickness)
    middle = layout.margin + layout.overview / 2
    _write(canvas, (middle, top + size[1] + 21 * layout.unit), example.title, 17 * layout.unit, INK, layout.overview)


def figures_text(image: np.ndarray, hr: np.ndarray) -> str:
    """PSNR and SSIM of luma as they stand below a crop; a dash for SSIM where the crop is smaller than its window."""
    psnr = calculate_psnr(image, hr, crop_border=0, test_y_channel=True)
    if min(image.shape[:2]) < SSIM_WINDOW:
        return f"{psnr:.2f} / -"
    return f"{psnr:.2f} / {calculate_ssim(image, hr, crop_border=0, test_y_channel=True):.4f}"


def _write(canvas: ImageDraw.ImageDraw, place: _Place, text: str, size: float, colour: _Colour, width: float) -> None:
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
