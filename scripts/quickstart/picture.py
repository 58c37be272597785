"""Draws crops of the quickstart's validation images side by side, pixel by pixel.

    python scripts/quickstart/picture.py [--results results/quickstart] [--regions results/quickstart/regions.csv]

Each image contributes the square where the networks differ most. Reads the images that test.py saved below
visualization/ and writes comparison.png, and the squares it chose as regions.csv, into the same folder. Given such a
file, possibly changed by hand, it draws those squares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from basicsr.engine.command import run_command
from basicsr.report.comparison import draw_comparison
from basicsr.report.regions import choose_regions, read_regions, write_regions
from basicsr.utils.errors import DataError
from basicsr.utils.img_util import imfrombytes, imwrite

SCALE = 2
CELL = 192
DATASET = "quickstart"  # the name that the options of test.py give the images

# Folder of test.py's images, and what the picture calls them.
NETWORKS = {
    "bicubic": "bicubic",
    "scratch": "student",
    "mcadkd": "student, MCAD-KD",
    "teacher": "teacher",
}


class QuickstartPictures:
    """The validation images and what test.py made of them; see `basicsr.report.results.Pictures`.

    Args:
        hr_folder: HR images.
        lr_folder: LR images.
        results: test.py's folder.

    Raises:
        DataError: there are no HR images.
    """

    def __init__(self, hr_folder: Path, lr_folder: Path, results: Path) -> None:
        self._hr_folder = hr_folder
        self._lr_folder = lr_folder
        self._results = results
        self._names = sorted(path.stem for path in hr_folder.glob("*.png"))
        if not self._names:
            raise DataError(f"{hr_folder} holds no PNG images; run: bash scripts/quickstart.sh")

    def names(self, dataset: str) -> Sequence[str]:
        """Names of the images."""
        return self._names

    def hr(self, dataset: str, image: str) -> np.ndarray:
        """The HR image, uint8 (H, W, 3) BGR."""
        return _read(self._hr_folder / f"{image}.png")

    def lr(self, dataset: str, image: str) -> np.ndarray:
        """The LR image, uint8 (h, w, 3) BGR."""
        return _read(self._lr_folder / f"{image}x{SCALE}.png")

    def output(self, row: str, dataset: str, image: str) -> np.ndarray:
        """What a network made of the LR image, uint8 (H, W, 3) BGR."""
        folder = self._results / "visualization" / row / dataset
        return _read(folder / f"{image}x{SCALE}_{self._results.name}.png")


def _read(path: Path) -> np.ndarray:
    try:
        return imfrombytes(path.read_bytes(), source=str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; run: bash scripts/quickstart.sh") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path("datasets/quickstart/val")
    parser.add_argument("--hr", type=Path, default=data / "HR", metavar="DIR")
    parser.add_argument("--lr", type=Path, default=data / f"LR_bicubic/X{SCALE}", metavar="DIR")
    parser.add_argument("--results", type=Path, default=Path("results/quickstart"), metavar="DIR")
    parser.add_argument("--regions", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    pictures = QuickstartPictures(arguments.hr, arguments.lr, arguments.results)
    if arguments.regions is not None:
        regions = read_regions(arguments.regions)
    else:
        images = [(DATASET, image) for image in pictures.names(DATASET)]
        networks = [name for name in NETWORKS if name != "bicubic"]
        regions = choose_regions(pictures, networks, images, len(images), scale=SCALE)
        write_regions(arguments.results / "regions.csv", regions)
    if not regions:
        raise DataError(
            "there is no region to draw; the images are smaller than a crop, or the file of regions is empty"
        )
    output = arguments.results / "comparison.png"
    picture = draw_comparison(pictures, list(NETWORKS), regions, scale=SCALE, labels=NETWORKS, cell=CELL)
    imwrite(picture, output)
    print(f"Crops side by side: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
