"""Cuts large images into overlapping squares, which are faster to read in training: 0001_s001.png, 0001_s002.png ...

    python scripts/data/extract_subimages.py --input datasets/DIV2K/DIV2K_train_HR \\
        --output datasets/DIV2K/DIV2K_train_HR_sub --crop-size 480 --step 240 \\
        --lr-input datasets/DIV2K/DIV2K_train_LR_bicubic

cuts HR and LR images together, by one grid: `--lr-input` is the folder of X2, X3, X4, whose squares go to X2_sub,
X3_sub, X4_sub beside them. Sizes are those of HR squares. All squares begin at multiples of all scales (12 for x2, x3
and x4), so crop size and step must be multiples of that; sides of images need not be: what fills none is left out below
and right, and told. A pair's squares have one name, so `filename_tmpl: '{}'`.

    python scripts/data/extract_subimages.py --input GoPro/train/target --output GoPro/train/target_sub \\
        --lr-input GoPro/train/input --scales 1 --crop-size 512 --step 256

is for a folder of LR images of one scale, with squares in GoPro/train/input_sub. Squares lie in folders as their images
do. They are PNG files; of images of several bands (`--channels N`) they keep the format. Several folders of `--input`
and `--lr-input` pair up in their order. Without `--lr-input` HR images are cut alone. A rerun does what is left, and
what has changed since.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.engine.process.command import quiet_start

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import cv2
import dataset_tools
import numpy as np

from basicsr.data.checks.inspection import examine
from basicsr.data.image_sets import ImageSet, find_images
from basicsr.data.storage import stamp_of
from basicsr.data.transforms import Size, check_depths, check_whole_pair
from basicsr.files.band_files import BAND_SUFFIXES
from basicsr.files.image_folders import is_pattern
from basicsr.files.image_headers import MOST_TO_CUT
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.text import printable

_SHOWN = 20
_LR_NAME = re.compile(r"^x\d+$|(^|[^a-z])(lr|lq)([^a-z]|bic|$)")


@dataclass(frozen=True)
class Grid:
    """Where squares begin.

    Attributes:
        crop_size: side of a square, HR pixels.
        step: from one square to the next.
        thresh_size: so many pixels may be left over at the far edge; more get a square of their own there.
        scales: of the LR images that are cut with the HR images.
    """

    crop_size: int
    step: int
    thresh_size: int
    scales: tuple[int, ...]

    @property
    def multiple(self) -> int:
        """Squares begin at multiples of it, in HR pixels, and so at whole pixels of every LR image."""
        return math.lcm(*self.scales)

    def check(self) -> None:
        """Raises OptionsError where crop size or step is no multiple of `multiple`."""
        for name, value in (("--crop-size", self.crop_size), ("--step", self.step)):
            if value % self.multiple:
                near = max(round(value / self.multiple), 1) * self.multiple
                scales = ", ".join(f"x{scale}" for scale in self.scales)
                raise OptionsError(
                    f"{name} {value}: must be a multiple of {self.multiple}, so that it is whole LR pixels at {scales};"
                    f" take {near}"
                )

    def starts(self, length: int) -> list[int]:
        """Where squares begin along a side of that many HR pixels."""
        starts = list(range(0, length - self.crop_size + 1, self.step))
        if length - (starts[-1] + self.crop_size) > self.thresh_size:
            starts.append(length - self.crop_size)
        return starts


class Part(NamedTuple):
    """An image of a pair: the HR image (scale 1), or one of its LR images; and where its squares go."""

    source: Path
    output: Path
    scale: int


@dataclass(frozen=True)
class Task:
    """An HR image with its LR images, and how to cut them."""

    stem: str
    parts: tuple[Part, ...]
    grid: Grid
    compression: int
    channels: int | None = None  # of images of several bands

    def squares(self, number: int) -> list[Path]:
        """The files of a square, of every part."""
        return [
            part.output / f"{self.stem}_s{number:03d}{dataset_tools.ending_of(part.source, self.channels)}"
            for part in self.parts
        ]

    @property
    def done(self) -> Path:
        """A hidden file that is written when all squares are: how many, and of which sources."""
        folder, name = os.path.split(self.stem)
        return self.parts[0].output / folder / f".{name}.done"

    def record(self, squares: int) -> str:
        """What `done` holds."""
        return json.dumps({"squares": squares, "sources": [stamp_of(part.source) for part in self.parts]})

    def is_done(self) -> bool:
        """Whether all squares are there, made of the sources as they are now."""
        try:
            noted = self.done.read_text("utf-8")
            count = json.loads(noted)["squares"]
            there = all(path.is_file() for number in range(count) for path in self.squares(number + 1))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return there and noted == self.record(count)


def area(task: Task, sizes: list[Size]) -> Size:
    """Height and width that all parts of a task have in common, in HR pixels: multiples of the grid's.

    Args:
        task: what to cut.
        sizes: height and width of each part, in its own pixels.

    Raises:
        DataError: HR and LR do not belong together, or a square does not fit in.
    """
    (hr, *_), grid = task.parts, task.grid
    for part, size in zip(task.parts[1:], sizes[1:], strict=True):
        check_whole_pair(sizes[0], size, part.scale, str(hr.source), str(part.source))
    sides = [
        min(size[axis] * part.scale for part, size in zip(task.parts, sizes, strict=True)) // grid.multiple
        for axis in (0, 1)
    ]
    height, width = (side * grid.multiple for side in sides)
    if min(height, width) < grid.crop_size:
        raise DataError(
            f"{hr.source} of {sizes[0][0]}x{sizes[0][1]} is smaller than --crop-size {grid.crop_size}; lower it"
        )
    return height, width


def look(task: Task) -> tuple[str | None, int]:
    """What is wrong with a task's images, without decoding them, and how many pixels at most are in no square."""
    try:
        root = dataset_tools.root_of(task.channels)
        findings = [examine(str(part.source), root, most_pixels=MOST_TO_CUT) for part in task.parts]
        for part, finding in zip(task.parts, findings, strict=True):
            if finding.header is None:
                return printable(f"{part.source}: {finding.fault}"), 0
        sizes = [finding.header.size for finding in findings if finding.header is not None]
        height, width = area(task, sizes)
    except DataError as error:
        return printable(str(error)), 0
    return None, max(sizes[0][0] - height, sizes[0][1] - width)


def cut(task: Task) -> int:
    """Writes the squares of an image and of its LR images; returns how many of each, 0 if they were there."""
    if task.is_done():
        return 0
    task.done.unlink(missing_ok=True)
    before = task.record(0)
    images = [dataset_tools.read_image(part.source, task.channels, MOST_TO_CUT) for part in task.parts]
    for part, image in zip(task.parts[1:], images[1:], strict=True):
        check_depths(_bits(images[0]), _bits(image), str(task.parts[0].source), str(part.source))
    height, width = area(task, [(image.shape[0], image.shape[1]) for image in images])
    corners = [(top, left) for top in task.grid.starts(height) for left in task.grid.starts(width)]
    parameters = [cv2.IMWRITE_PNG_COMPRESSION, task.compression]
    for number, (top, left) in enumerate(corners, start=1):
        for part, image, path in zip(task.parts, images, task.squares(number), strict=True):
            side, y, x = (value // part.scale for value in (task.grid.crop_size, top, left))
            dataset_tools.write_image(image[y : y + side, x : x + side], path, task.channels, parameters)
    number = len(corners) + 1
    while paths := [path for path in task.squares(number) if path.exists()]:  # of an earlier, larger image
        for path in paths:
            path.unlink()
        number += 1
    if task.record(0) == before:  # no source has changed meanwhile
        task.done.write_text(task.record(len(corners)), "utf-8")
    return len(corners)


def _bits(image: np.ndarray) -> int:
    return image.dtype.itemsize * 8


def find_lr(options: argparse.Namespace) -> dict[int, tuple[list[str], Path, str]]:
    """By scale: folders of the LR images, folder of their squares, and template of their names.

    Raises:
        OptionsError: `--scales` or `--lr-output` must be given, or is of another folder.
    """
    roots: list[str] = options.lr_input or []
    if not roots:
        return {}
    if len(roots) > 1 and options.lr_output is None:
        raise OptionsError("several folders of --lr-input need --lr-output, for the squares of all")
    output: Path = options.lr_output or Path(roots[0])
    of_each = [{int(entry.name[1:]) for entry in Path(root).glob("X*") if entry.name[1:].isdigit()} for root in roots]
    if found := sorted(set.intersection(*of_each)):
        template = options.filename_tmpl or "{}x{scale}"
        ending = "" if options.lr_output else "_sub"
        return {
            scale: (
                [os.path.join(root, f"X{scale}") for root in roots],
                output / f"X{scale}{ending}",
                template.replace("{scale}", str(scale)),
            )
            for scale in dict.fromkeys(options.scales or found)
        }
    if options.scales is None or len(options.scales) != 1:
        given = " ".join(roots)
        raise OptionsError(f"--lr-input {given}: no folders X2, X3 ... in it; say by --scales of which one scale it is")
    (scale,) = options.scales
    if is_pattern(roots[0]) and options.lr_output is None:
        raise OptionsError(f"--lr-input {roots[0]} is a pattern; give --lr-output, for the squares")
    template = (options.filename_tmpl or "{}").replace("{scale}", str(scale))
    return {scale: (roots, options.lr_output or output.with_name(f"{output.name}_sub"), template)}


def find_tasks(options: argparse.Namespace) -> tuple[list[Task], list[ImageSet]]:
    """What to cut, each HR image with all its LR images; and the sets that these are from.

    Raises:
        UserError: options contradict each other, folders are missing or empty, or images have no partner.
    """
    lr, channels = find_lr(options), options.channels
    grid = Grid(options.crop_size, options.step, options.thresh_size, tuple(lr) or (1,))
    grid.check()
    sets = [dataset_tools.images_of(options.input, options.meta_info, options.channels)]
    sources = dataset_tools.by_name(sets[0])
    partners: dict[str, list[Part]] = {str(source): [] for source in sources.values()}
    for scale, (folders, output, template) in lr.items():
        try:
            images = find_images(
                dataset_tools.storage_of(options.channels),
                {"lq": folders, "gt": options.input},
                filename_tmpl=template,
                meta_info_file=options.meta_info,
            )
        except DataError as error:
            error.extend(after=" (filename_tmpl: --filename-tmpl)")
            raise
        sets.append(images)
        for paths in images.paths:
            partners[str(Path(paths["gt_path"]))].append(Part(Path(paths["lq_path"]), output, scale))
    tasks = [
        Task(name, (Part(source, options.output, 1), *partners[str(source)]), grid, options.compression, channels)
        for name, source in sources.items()
    ]
    return tasks, sets


def check_folders(tasks: list[Task], sets: list[ImageSet]) -> None:
    """Raises DataError where squares would lie among the images that are cut, or those of two kinds in one folder."""
    outputs = [part.output for part in tasks[0].parts]
    for number, output in enumerate(outputs):
        for images in sets:
            dataset_tools.check_apart(images, output, "--lr-output" if number else "--output")
        if os.path.realpath(output) in {os.path.realpath(other) for other in outputs[:number]}:
            raise DataError(f"{output} would get squares of HR and LR images; name another folder for one of them")


def claim(tasks: list[Task]) -> None:
    """Notes in each output folder how its squares are made; raises DataError where it holds others."""
    grid = tasks[0].grid
    for part in tasks[0].parts:
        note: dict[str, object] = {"crop_size": grid.crop_size, "step": grid.step, "thresh_size": grid.thresh_size}
        note |= {"together": grid.scales, "scale": part.scale}
        note |= {"channels": tasks[0].channels} if tasks[0].channels is not None else {}
        dataset_tools.claim_folder(part.output, "extract_subimages", note)


def left_over(tasks: list[Task]) -> list[str]:
    """Says which squares in the output folders are of images that are no longer there."""
    stems, endings = {task.stem for task in tasks}, (".png",) if tasks[0].channels is None else BAND_SUFFIXES
    lines = []
    for part in tasks[0].parts:
        found = (path for path in part.output.rglob("*_s*") if path.suffix in endings)
        squares = (path.relative_to(part.output) for path in found)
        there = sorted({str(square.with_suffix("")).rpartition("_s")[0] for square in squares} - stems)
        if there:
            lines.append(f"{part.output} has squares of images that are not in the input: {', '.join(there[:3])}")
    return lines


def tell(tasks: list[Task], counts: list[int], rest: int) -> None:
    """Prints what was made.

    Args:
        tasks: all.
        counts: squares that were made of each image; 0 where they were there.
        rest: HR pixels along a side, at most, that are in no square because they fill no multiple.
    """
    grid, images = tasks[0].grid, sum(map(bool, counts))
    whole = f"{len(tasks):,d} image{'s' if len(tasks) > 1 else ''}"
    source = whole if images == len(tasks) else f"{images:,d} of {whole}; those of the others were there"
    for part in tasks[0].parts:
        squares = f"made {sum(counts):,d} squares of {grid.crop_size // part.scale} pixels out of {source}"
        print(f"{part.output}: {squares if images else f'all squares of {whole} were there'}")
    if rest and grid.multiple > 1:
        print(
            f"sides are cut to a multiple of {grid.multiple}: up to {rest} HR pixels below and right are in no square"
        )
    if len(tasks[0].parts) == 1:
        print("cut alone: LR images of these must be cut together with them, by --lr-input")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    options = _parse(argv)
    if options.strip_suffix is not None or _is_lr(options):
        raise OptionsError(
            "LR images are cut together with their HR images, so that both have one grid: give --input HR --output"
            " HR_sub --lr-input LR (a folder with X2, X3, X4; or one scale's, with --scales S), sizes in HR pixels"
        )
    tasks, sets = find_tasks(options)
    check_folders(tasks, sets)
    looked = list(dataset_tools.in_processes(look, tasks, options.workers, "images looked at"))
    if problems := [problem for problem, _ in looked if problem is not None]:
        shown = problems[:_SHOWN] + ([f"and {len(problems) - _SHOWN} more"] if problems[_SHOWN:] else [])
        raise DataError("\n  ".join([f"{len(problems)} of {len(tasks)} images cannot be cut:", *shown]))
    claim(tasks)
    dataset_tools.warn_of(*sets)
    counts = list(dataset_tools.in_processes(cut, tasks, options.workers, "images cut"))
    tell(tasks, counts, max(rest for _, rest in looked))
    for line in left_over(tasks):
        dataset_tools.warn(f"{line}; training would take them too: remove them")
    return 0


def _is_lr(options: argparse.Namespace) -> bool:
    """Whether LR images are about to be cut without their HR images, as far as the folder's name tells."""
    return options.lr_input is None and any(
        _LR_NAME.search(os.path.basename(os.path.realpath(folder)).lower()) for folder in options.input
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add, positive = parser.add_argument, dataset_tools.positive
    dataset_tools.add_input_option(add, "HR images to cut", required=True)
    add("--output", type=Path, required=True, metavar="DIR", help="gets their squares")
    dataset_tools.add_input_option(add, "their LR images, each with X2, X3 ... in it, or of one scale", "--lr-input")
    add("--lr-output", type=Path, metavar="DIR", help="gets folders X2, X3 ... of squares, or those of the one scale")
    add("--scales", type=positive, nargs="+", metavar="S", help="of the LR images (default: all there are)")
    add("--filename-tmpl", metavar="T", help="names of LR images (default: {}x{scale} below X2 ..., else {})")
    add("--crop-size", "--crop_size", type=positive, required=True, metavar="N", help="side of HR squares")
    add("--step", type=positive, required=True, metavar="N", help="from one to the next, HR pixels")
    add("--thresh-size", "--thresh_size", type=dataset_tools.not_negative, default=0, metavar="N", help="rest to leave")
    add("--strip-suffix", help=argparse.SUPPRESS)
    dataset_tools.add_channels_option(add)
    add("--compression", type=int, choices=range(10), default=3, metavar="0..9", help="PNG level (default: 3)")
    dataset_tools.add_workers_option(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))
