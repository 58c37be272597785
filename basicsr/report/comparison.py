"""The images of an evaluation, the squares in which networks differ most, and the picture that compares them there.

For each square of an image, the mean squared error of each network in it is taken, then the standard deviation of these
errors over the networks. It is multiplied by s / (s + 8), s being the standard deviation of the HR image's luma in the
square, because a difference in a plain area cannot be seen. A border of `scale` pixels is left out, as in the metrics.
Bicubic interpolation, from which all networks differ, is compared only where there is one network beside it; one
network alone is shown where its error is largest. Each image gives one square.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from basicsr.config.schema import Region
from basicsr.config.yaml_files import dump_yaml
from basicsr.files.images import imfrombytes, shown_channels, tensor2img
from basicsr.files.regular_files import read_regular
from basicsr.metrics.evaluator import EvaluationDataset
from basicsr.metrics.metric_util import to_y_channel
from basicsr.metrics.psnr_ssim import SSIM_WINDOW, calculate_psnr, calculate_ssim
from basicsr.report.tables import ScaleResults, write_text
from basicsr.utils.errors import DataError

INK, FAINT, PAPER, ACCENT = (32, 32, 36), (96, 96, 102), (255, 255, 255), (228, 62, 40)
_SEARCHED = 4  # images in which to look for each region that is wanted
_MOST_IN_A_ROW = 5  # crops
_FOOTER = "Crops are enlarged without smoothing. PSNR and SSIM: luma in the crop."
LEAST_SIDE = 8
_SIZES = (128, 96, 64, 48)  # divide a cell of 384 pixels
_VISIBLE_STRUCTURE = 8.0
_AS_GOOD_AS_EQUAL = 100.0  # dB
_MOST_BYTES = 128 * 2**20  # of decoded images that are kept


@dataclass
class SavedPictures:
    """Images of one scale, uint8 (H, W, 3) BGR; HR and LR images are decoded once and kept within 128 MiB."""

    datasets: Mapping[str, EvaluationDataset]
    image_names: Mapping[str, Sequence[str]]  # by dataset, in its order
    folder: Path  # of the saved outputs
    by_network: bool  # whether each network has a folder of its own there
    suffix: str  # of the saved files' names
    _samples: dict[tuple[str, str], tuple[np.ndarray | None, np.ndarray]] = field(default_factory=dict)

    def path(self, row: str, dataset: str, image: str) -> Path:
        """The file of an output."""
        folder = self.folder / row if self.by_network else self.folder
        return folder / dataset / f"{image}_{self.suffix}.png"

    def names(self, dataset: str) -> Sequence[str]:
        """Names of a dataset's images, in its order."""
        return self.image_names[dataset]

    def hr(self, dataset: str, image: str) -> np.ndarray | None:
        """The HR image; None where the dataset has none."""
        return self._sample(dataset, image)[0]

    def lr(self, dataset: str, image: str) -> np.ndarray:
        """The LR image."""
        return self._sample(dataset, image)[1]

    def output(self, row: str, dataset: str, image: str) -> np.ndarray:
        """The output of the row's network; raises DataError if the saved file is missing or damaged."""
        path = self.path(row, dataset, image)
        try:
            return imfrombytes(read_regular(path), source=str(path))
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; run the test again") from error

    def _sample(self, dataset: str, image: str) -> tuple[np.ndarray | None, np.ndarray]:
        found = self._samples.pop((dataset, image), None)
        if found is None:
            images = self.datasets[dataset]
            restored = getattr(images, "restored", lambda given: given)
            sample = images[self.image_names[dataset].index(image)]
            hr = _bgr(restored(sample["gt"])) if "gt" in sample else None
            found = hr, _bgr(restored(sample["lq"]))
        self._samples[dataset, image] = found  # the last used come last
        while len(self._samples) > 1:
            kept = (image for sample in self._samples.values() for image in sample)
            if sum(image.nbytes for image in kept if image is not None) <= _MOST_BYTES:
                break
            del self._samples[next(iter(self._samples))]
        return found


def _bgr(image: Tensor) -> np.ndarray:
    """An image as uint8 (H, W, 3) BGR, gray thrice, of bands those that are shown."""
    shown = shown_channels(image)
    return np.atleast_3d(tensor2img(shown)).repeat(3 // shown.shape[0], axis=2)


def images_that_differ(scale: ScaleResults, better: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Datasets and names of images: largest difference of the first metric between networks, or worst figure, first."""
    rows = scale.compared()
    spreads: dict[tuple[str, str], float] = {}
    for dataset in scale.datasets():
        evaluations = [row.evaluations[dataset] for row in rows if dataset in row.evaluations]
        if not evaluations or not evaluations[0].metrics:
            continue
        values = np.stack([evaluation.values[:, 0] for evaluation in evaluations])
        values = np.nan_to_num(values, nan=0.0, posinf=_AS_GOOD_AS_EQUAL)
        lower = (better or {}).get(evaluations[0].metrics[0]) == "lower"
        spread = values.std(0) if len(evaluations) > 1 else values[0] if lower else -values[0]
        keys = [(dataset, image) for image in evaluations[0].images]
        spreads |= dict(zip(keys, spread.tolist(), strict=True))
    return sorted(spreads, key=lambda key: -spreads[key])


def choose_regions(
    pictures: SavedPictures, names: Sequence[str], images: Sequence[tuple[str, str]], count: int, *, scale: int
) -> list[Region]:
    """The squares in which the networks called `names` differ most, at most one of each image that has HR."""
    scored: list[tuple[float, Region]] = []
    for dataset, image in images:
        hr = pictures.hr(dataset, image)
        if hr is None or (size := square_size(hr, scale)) < LEAST_SIDE:
            continue
        outputs = [load_output(pictures, name, dataset, image, hr.shape[:2], scale) for name in names]
        x, y, score = most_different_square(hr, outputs, size, border=scale)
        short = without_scale(image, scale, pictures.names(dataset))
        scored.append((score, Region(dataset=dataset, image=short, x=x, y=y, size=size)))
    scored.sort(key=lambda entry: -entry[0])
    return [region for _, region in scored[:count]]


def load_output(
    pictures: SavedPictures, name: str, dataset: str, image: str, size: tuple[int, ...], scale: int
) -> np.ndarray:
    """What the network `name` made of an image; raises DataError unless its height and width are `size`."""
    output = pictures.output(name, dataset, image)
    if output.shape[:2] != size:
        raise DataError(
            f"{name} made {dataset}'s {image} {size_text(output)} pixels large, not {size[1]} x {size[0]};"
            f" were both made at x{scale}?"
        )
    return output


def square_size(hr: np.ndarray, border: int) -> int:
    """Side of the square to cut from an image: about a quarter of its shorter side, 48 to 128 pixels if it has them."""
    shorter = min(hr.shape[:2])
    return min(next((size for size in _SIZES if size <= shorter / 4), _SIZES[-1]), shorter - 2 * border)


def most_different_square(
    hr: np.ndarray, outputs: Sequence[np.ndarray], size: int, *, border: int
) -> tuple[int, int, float]:
    """Left edge, upper edge and score of the square in which the outputs differ most; see above."""
    if min(hr.shape[:2]) < size + 2 * border:
        raise DataError(
            f"an image of {size_text(hr)} pixels has no square of {size} pixels {border} off the border; it must be"
            f" at least {size + 2 * border} a side"
        )
    inner = slice(border, hr.shape[0] - border), slice(border, hr.shape[1] - border)
    truth = hr[inner].astype(np.float64)
    errors = np.stack([_means(((output[inner] - truth) ** 2).mean(2), size) for output in outputs])
    luma = to_y_channel(hr[inner])[..., 0].astype(np.float64)
    deviation = np.sqrt(np.clip(_means(luma**2, size) - _means(luma, size) ** 2, 0, None))
    difference = errors.std(0) if len(outputs) > 1 else errors[0]
    score = difference * deviation / (deviation + _VISIBLE_STRUCTURE)
    y, x = np.unravel_index(int(score.argmax()), score.shape)
    return int(x) + border, int(y) + border, float(score[y, x])


def image_name(region: Region, names: Sequence[str], scale: int) -> str:
    """The image of a region; LR files' names may end in the scale, as in babyx2. Raises DataError if there is none."""
    for name in (region.image, f"{region.image}x{scale}"):
        if name in names:
            return name
    known = ", ".join(without_scale(name, scale, names) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    raise DataError(f"report: regions: {region.dataset} has no image '{region.image}' at x{scale}; it has {known}")


def without_scale(image: str, scale: int, names: Sequence[str]) -> str:
    """An image's name without a scale at its end: babyx2 is baby, unless that is another of the dataset's `names`."""
    short = image.removesuffix(f"x{scale}") or image
    return image if short in names else short


def write_regions(path: Path, regions: Sequence[Region]) -> None:
    """Writes the regions as options (YAML), from which the same comparison is drawn again."""
    write_text(path, dump_yaml({"report": {"regions": [region.to_data() for region in regions]}}))


def size_text(image: np.ndarray) -> str:
    """Width and height of an image: 120 x 90."""
    return f"{image.shape[1]} x {image.shape[0]}"


def _means(values: np.ndarray, size: int) -> np.ndarray:
    """Mean of every square of a map (H, W): (H - size + 1, W - size + 1)."""
    total = cv2.integral(values, sdepth=cv2.CV_64F)
    sums = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
    return sums / size**2


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
    """Draws a strip for each region: the whole HR image, reduced, with a frame; then crops of HR and of `names`.

    Crops are enlarged by a whole number without smoothing. Below each stand PSNR and SSIM of the crop.
    """
    examples = []
    for region in regions:
        image, hr, moved = _find(pictures, region, scale)
        images = [("HR", hr)]
        for name in names:
            images.append((name, load_output(pictures, name, region.dataset, image, hr.shape[:2], scale)))
        examples.append(_Example(f"{region.dataset} x{scale}: {region.image}", images, moved))
    layout = _Layout(cell, examples)
    between, footer = round(12 * layout.unit), round(28 * layout.unit)
    height = 2 * layout.margin + len(examples) * (layout.height + between) + footer
    picture = Image.new("RGB", (layout.width, height), PAPER)
    for number, example in enumerate(examples):
        strip = Image.new("RGB", (layout.width, layout.height), PAPER)
        _draw(strip, example, layout)
        picture.paste(strip, (0, layout.margin + number * (layout.height + between)))
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


def _draw(strip: Image.Image, example: _Example, layout: _Layout) -> None:
    canvas = ImageDraw.Draw(strip)
    height, width = example.hr.shape[:2]
    room = layout.height - layout.caption
    factor = min(layout.overview / width, room / height)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    left, top = layout.margin + (layout.overview - size[0]) // 2, (room - size[1]) // 2
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


def figures_text(image: np.ndarray, hr: np.ndarray) -> str:
    """PSNR and SSIM of luma as they stand below a crop; a dash for SSIM where the crop is smaller than its window."""
    psnr = calculate_psnr(image, hr, crop_border=0, test_y_channel=True)
    if min(image.shape[:2]) < SSIM_WINDOW:
        return f"{psnr:.2f} / -"
    return f"{psnr:.2f} / {calculate_ssim(image, hr, crop_border=0, test_y_channel=True):.4f}"


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
