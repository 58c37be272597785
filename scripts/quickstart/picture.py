"""Draws crops of the quickstart's validation images side by side, pixel by pixel.

    python scripts/quickstart/picture.py [--results results/quickstart]

Each image contributes the square where bicubic interpolation loses most of the HR image. Reads the images that test.py
saved below visualization/ and writes comparison.png into the same folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from basicsr.engine.command import run_command
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils.errors import DataError
from basicsr.utils.img_util import imfrombytes, imwrite

CROP = 48
ZOOM = 4
CELL = CROP * ZOOM
GAP = 14
MARGIN = 28
OVERVIEW = 256
HEADING = 34
CAPTION = 30
FOOTER = 30
INK, FAINT, PAPER = (32, 32, 36), (112, 112, 118), (255, 255, 255)

# Folder of test.py's images, and what the picture calls them.
NETWORKS = {
    "bicubic": "bicubic",
    "scratch": "student",
    "mcadkd": "student, MCAD-KD",
    "teacher": "teacher",
}


@dataclass(frozen=True)
class Example:
    """One validation image; all arrays are uint8 (H, W, 3) BGR of one size.

    Attributes:
        name: of the image.
        hr: the HR image.
        outputs: by network, in the order of the columns; the first is bicubic's.
    """

    name: str
    hr: np.ndarray
    outputs: Mapping[str, np.ndarray]


def most_lost_square(hr: np.ndarray, bicubic: np.ndarray, size: int) -> tuple[int, int]:
    """Top and left of the square of `size` pixels with the largest squared difference, off the border by 2 pixels.

    Args:
        hr: uint8 (H, W, 3).
        bicubic: likewise.
        size: side of the square.

    Raises:
        DataError: the images are too small or differ in size.
    """
    border = 2
    if hr.shape != bicubic.shape or min(hr.shape[:2]) < size + 2 * border:
        raise DataError(
            f"images of {hr.shape[:2]} and {bicubic.shape[:2]} (H, W) are given; they must be equally large,"
            f" at least {size + 2 * border} a side"
        )
    difference = hr.astype(np.int64) - bicubic
    energy = cv2.integral((difference**2).sum(2)[border:-border, border:-border].astype(np.float64))
    sums = energy[size:, size:] - energy[:-size, size:] - energy[size:, :-size] + energy[:-size, :-size]
    top, left = np.unravel_index(np.argmax(sums), sums.shape)
    return int(top) + border, int(left) + border


def cell_corner(row: int, column: int) -> tuple[int, int]:
    """Left and top, in the picture, of the crop in `row` and `column`, from 0; column 0 is the HR image's."""
    left = MARGIN + OVERVIEW + GAP + column * (CELL + GAP)
    return left, MARGIN + HEADING + row * (CELL + CAPTION + GAP)


def caption(crop: np.ndarray, hr: np.ndarray) -> str:
    """PSNR of a crop's luma, as text; both are uint8 (h, w, 3) BGR."""
    return f"{calculate_psnr(crop, hr, crop_border=0, test_y_channel=True):.2f} dB"


def draw(examples: Sequence[Example]) -> np.ndarray:
    """The picture, uint8 (H, W, 3) BGR: a row for each example, a column for the HR image and each network."""
    headings = ["HR", *examples[0].outputs]
    right, bottom = cell_corner(len(examples), len(headings))
    picture = Image.new("RGB", (right - GAP + MARGIN, bottom - GAP + FOOTER + MARGIN), PAPER)
    canvas = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(18), ImageFont.load_default(15)
    for column, heading in enumerate(headings):
        left, top = cell_corner(0, column)
        canvas.text((left + CELL / 2, top - 12), heading, INK, large, anchor="ms")
    for row, example in enumerate(examples):
        square = most_lost_square(example.hr, next(iter(example.outputs.values())), CROP)
        _draw_overview(picture, canvas, row, example, square, small)
        for column, image in enumerate((example.hr, *example.outputs.values())):
            left, top = cell_corner(row, column)
            crop = _cut(image, square)
            picture.paste(_pillow(crop.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)), (left, top))
            text = caption(crop, _cut(example.hr, square)) if column else "PSNR"
            canvas.text((left + CELL / 2, top + CELL + 20), text, INK if column else FAINT, small, anchor="ms")
    footer = f"Each crop: {CROP} x {CROP} pixels, magnified {ZOOM} times without smoothing; PSNR of its luma"
    canvas.text((MARGIN, picture.height - MARGIN), footer, FAINT, small, anchor="ls")
    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])


def _draw_overview(
    picture: Image.Image,
    canvas: ImageDraw.ImageDraw,
    row: int,
    example: Example,
    square: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """The whole HR image, reduced, with a frame around the square."""
    height, width = example.hr.shape[:2]
    factor = min(OVERVIEW / width, CELL / height)
    size = round(width * factor), round(height * factor)
    left, top = MARGIN + (OVERVIEW - size[0]) // 2, cell_corner(row, 0)[1] + (CELL - size[1]) // 2
    picture.paste(_pillow(example.hr).resize(size, Image.Resampling.LANCZOS), (left, top))
    x, y, side = left + square[1] * factor, top + square[0] * factor, CROP * factor
    for outset, colour in ((2, INK), (1, PAPER)):  # light in dark: seen on any ground
        frame = x - outset, y - outset, x + side + outset, y + side + outset
        canvas.rectangle(frame, outline=colour, width=2 * outset)
    canvas.text((MARGIN + OVERVIEW / 2, top + size[1] + 20), example.name, INK, font, anchor="ms")


def _cut(image: np.ndarray, square: tuple[int, int]) -> np.ndarray:
    top, left = square
    return image[top : top + CROP, left : left + CROP]


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[..., ::-1]))


def read_examples(hr_folder: Path, results: Path, dataset: str = "quickstart") -> list[Example]:
    """The validation images and what test.py made of them.

    Args:
        hr_folder: HR images.
        results: test.py's folder.
        dataset: the name that its options give the images.

    Raises:
        DataError: an image is missing or damaged.
    """
    examples = []
    for path in sorted(hr_folder.glob("*.png")):
        outputs = {
            label: _read(results / "visualization" / folder / dataset / f"{path.stem}x2_{results.name}.png")
            for folder, label in NETWORKS.items()
        }
        examples.append(Example(path.stem, _read(path), outputs))
    if not examples:
        raise DataError(f"{hr_folder} holds no PNG images; run: bash scripts/quickstart.sh")
    return examples


def _read(path: Path) -> np.ndarray:
    try:
        return imfrombytes(path.read_bytes(), source=str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; run: bash scripts/quickstart.sh") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hr", type=Path, default=Path("datasets/quickstart/val/HR"), metavar="DIR")
    parser.add_argument("--results", type=Path, default=Path("results/quickstart"), metavar="DIR")
    arguments = parser.parse_args(argv)
    output = arguments.results / "comparison.png"
    imwrite(draw(read_examples(arguments.hr, arguments.results)), output)
    print(f"Crops side by side: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
