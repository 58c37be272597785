"""Cuts large images into overlapping squares, which are faster to read in training: 0001_s001.png,
0001_s002.png ...

    python scripts/data/extract_subimages.py --input datasets/DIV2K/DIV2K_train_HR \\
        --output datasets/DIV2K/DIV2K_train_HR_sub --crop-size 480 --step 240
    python scripts/data/extract_subimages.py --input datasets/DIV2K/DIV2K_train_LR_bicubic/X2 \\
        --output datasets/DIV2K/DIV2K_train_LR_bicubic/X2_sub --crop-size 240 --step 120 --strip-suffix x2

Sizes for LR images are those for HR images divided by the scale; `--strip-suffix` gives pairs one name.
Images that are there already are left as they are.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import dataset_tools

from basicsr.data.data_util import images_by_stem
from basicsr.utils.errors import DataError
from basicsr.utils.img_util import imwrite


@dataclass(frozen=True)
class Task:
    """One image and how to cut it."""

    source: Path
    output: Path
    stem: str
    crop_size: int
    step: int
    thresh_size: int
    compression: int

    @property
    def done(self) -> Path:
        """An empty hidden file, written when all squares are."""
        return self.output / f".{self.stem}.done"


def positions(length: int, crop_size: int, step: int, thresh_size: int) -> list[int]:
    """Where squares begin along one side; more than `thresh_size` pixels left over get one at the far end."""
    starts = list(range(0, length - crop_size + 1, step))
    if length - (starts[-1] + crop_size) > thresh_size:
        starts.append(length - crop_size)
    return starts


def cut(task: Task) -> int:
    """Writes the squares of one image; returns how many."""
    if dataset_tools.is_current([task.done], task.source):
        return 0
    img = dataset_tools.read_image(task.source)
    height, width = img.shape[:2]
    size = task.crop_size
    if min(height, width) < size:
        raise DataError(f"{task.source} of {height}x{width} is smaller than --crop-size {size}; lower it")
    rows = positions(height, size, task.step, task.thresh_size)
    columns = positions(width, size, task.step, task.thresh_size)
    corners = [(top, left) for top in rows for left in columns]
    for number, (top, left) in enumerate(corners, start=1):
        path = task.output / f"{task.stem}_s{number:03d}.png"
        imwrite(img[top : top + size, left : left + size], path, [cv2.IMWRITE_PNG_COMPRESSION, task.compression])
    task.done.touch()
    return len(corners)


def main() -> int:
    """The command."""
    options = _parse()
    parameters = {key: vars(options)[key] for key in ("crop_size", "step", "thresh_size", "strip_suffix")}
    stems = images_by_stem(str(options.input))
    tasks = [
        Task(
            source=options.input / name,
            output=options.output,
            stem=dataset_tools.strip_suffix(stem, options.strip_suffix, options.input),
            crop_size=options.crop_size,
            step=options.step,
            thresh_size=options.thresh_size,
            compression=options.compression,
        )
        for stem, name in stems.items()
    ]
    dataset_tools.claim_folder(options.output, "extract_subimages", parameters)
    made = sum(dataset_tools.in_processes(cut, tasks, options.workers, "images cut"))
    print(f"{options.output}: made {made} squares of {len(tasks)} images, others were there")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, metavar="DIR", help="images to cut")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="gets the squares")
    parser.add_argument("--crop-size", type=dataset_tools.positive, required=True, metavar="N", help="side")
    parser.add_argument("--step", type=dataset_tools.positive, required=True, metavar="N", help="distance")
    parser.add_argument("--thresh-size", type=int, default=0, metavar="N", help="rest to leave out (default: 0)")
    parser.add_argument("--strip-suffix", default="", metavar="S", help="end of the names to drop, such as x2")
    parser.add_argument(
        "--compression", type=int, choices=range(10), default=3, metavar="0..9", help="PNG level (default: 3)"
    )
    dataset_tools.add_workers_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))
