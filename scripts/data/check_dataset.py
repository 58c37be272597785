"""Checks datasets before a run: every pair is there, every file is whole, every size fits.

    python scripts/data/check_dataset.py                              # all that is below datasets/
    python scripts/data/check_dataset.py --root datasets --scales 2   # and LR images of scale 2 must be there
    python scripts/data/check_dataset.py --hr HR --lr LR/X2 --scale 2 --filename-tmpl '{}x2'

Files are read, their checksums or end marks compared, and both images of a pair decoded and held against each other:
an LR image that fits at least 2 dB better where it is shifted is out of step, one that does not correlate with the HR
image shows something else (basicsr/data/checks/checking.py). `--no-compare` leaves that out, and is fast. HR images
for training must be exactly scale times the LR size; in benchmarks up to scale - 1 pixels may be left over, as the HR
image is cut in testing. The exit code is 3 where anything is wrong; warnings tell of what else lies in the folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.engine.process.command import quiet_start

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import dataset_tools
import numpy as np

from basicsr.data.checks.checking import EQUAL, find_misalignment, grouped
from basicsr.data.checks.inspection import examine, is_colourful
from basicsr.data.data_util import check_template
from basicsr.data.image_sets import find_images
from basicsr.data.transforms import advice, check_depths
from basicsr.files.file_client import FileClient
from basicsr.files.image_headers import ImageHeader
from basicsr.files.images import check_header, imfrombytes
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.text import printable


@dataclass(frozen=True)
class Pairing:
    """HR and LR folders that belong together."""

    hr: tuple[str, ...]
    lr: tuple[str, ...]
    scale: int
    filename_tmpl: str
    exact: bool
    meta_info: tuple[str, ...] | None = None
    channels: int | None = None  # of images of several bands


def find_pairings(root: Path, scales: list[int] | None) -> list[Pairing]:
    """The pairs of folders below `root`, laid out as datasets/README.md says, of all scales there are."""
    sets = [(root / f"DIV2K/DIV2K_{part}_HR", root / f"DIV2K/DIV2K_{part}_LR_bicubic") for part in ("train", "valid")]
    sets += [(folder / "HR", folder / "LR_bicubic") for folder in sorted((root / "benchmark").glob("*"))]
    pairings = []
    for hr, lr in sets:
        if not (hr.is_dir() or lr.is_dir()):
            continue
        found = sorted(int(folder.name[1:]) for folder in lr.glob("X*") if folder.name[1:].isdigit())
        if not hr.is_dir() or not (scales or found):
            dataset_tools.warn(f"{hr if lr.is_dir() else lr / 'X2'} is not there, so {hr.parent.name} is not checked")
        for scale in scales or found if hr.is_dir() else ():
            exact = hr.name == "DIV2K_train_HR"
            pairings.append(Pairing((str(hr),), (str(lr / f"X{scale}"),), scale, f"{{}}x{scale}", exact))
    if not pairings:
        raise DataError(f"{root} holds no pairs of HR and LR folders; see datasets/README.md for the layout")
    return pairings


def header_of(path: Path, decode: bool, channels: int | None = None) -> ImageHeader:
    """The header of a whole image file; raises DataError where it is damaged or of a kind that is not read."""
    if channels is not None:
        found = examine(str(path), dataset_tools.root_of(channels), decode=decode)
        if found.header is None:
            raise DataError(f"cannot read image {printable(str(path))}: {found.fault}")
        return found.header
    content = FileClient().get(path)
    if decode:
        imfrombytes(content, source=str(path))
    return check_header(content, str(path))


def check_pair(
    pair: dict[str, str], pairing: Pairing, decode: bool, compare: bool
) -> tuple[str, tuple[str, ...]] | None:
    """What is wrong with a pair, and the names of its images where each of them is sound; None where nothing is."""
    names = pair["gt_path"], pair["lq_path"]
    try:
        hr, lr = (header_of(Path(name), decode and not compare, pairing.channels) for name in names)
        images = [dataset_tools.read_image(Path(name), pairing.channels) for name in names if compare]
    except UserError as error:
        return str(error), ()
    try:
        check_depths(hr.depth, lr.depth, *names)
    except DataError as error:
        return str(error), names
    large, small = [(image.shape[0], image.shape[1]) for image in images] or [hr.size, lr.size]
    rests = [side - other * pairing.scale for side, other in zip(large, small, strict=True)]
    if not all(0 <= rest < (1 if pairing.exact else pairing.scale) for rest in rests):
        return (
            f"HR {names[0]} is {large[0]}x{large[1]}, LR {names[1]} is {small[0]}x{small[1]}: not {pairing.scale} times"
            f" as large; {advice(large, small, pairing.scale, names[0], pairing.hr, pairing.channels)}"
        ), names
    for header, other, pixels in zip((hr, lr), (1, 0), images[::-1], strict=False):
        if header.space == "gray" and is_colourful(pixels):
            return f"{names[1 - other]} is gray, but {names[other]} is in colour; convert one of them", names
    if images and pairing.scale == 1 and np.array_equal(images[0], images[1]):
        return f"HR {names[0]} and LR {names[1]}: {EQUAL}", names
    if images and (fault := find_misalignment(images[0], images[1], pairing.scale)):
        return f"HR {names[0]} and LR {names[1]}: {fault}", names
    return None


def check(pairing: Pairing, decode: bool, compare: bool, workers: int) -> tuple[int, int, list[str]]:
    """Number of pairs and of problems, and lines about these."""
    try:
        images = find_images(
            dataset_tools.storage_of(pairing.channels),
            {"lq": pairing.lr, "gt": pairing.hr},
            filename_tmpl=pairing.filename_tmpl,
            meta_info_file=pairing.meta_info,
        )
    except DataError as error:
        return 0, 1, [str(error)]
    dataset_tools.warn_of(images)
    pairs = images.paths
    work = partial(check_pair, pairing=pairing, decode=decode, compare=compare)
    results = dataset_tools.in_processes(work, pairs, workers, " ".join(pairing.lr))
    found = [problem for problem in results if problem is not None]
    return len(pairs), len(found), grouped(found)


def table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The rows as lines of aligned columns; the first is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def main() -> int:
    """The command."""
    options = _parse()
    if options.hr:
        check_template(options.filename_tmpl)
        exact = not options.allow_remainder
        lists = None if options.meta_info is None else tuple(options.meta_info)
        folders = tuple(options.hr), tuple(options.lr)
        pairings = [Pairing(*folders, options.scale, options.filename_tmpl, exact, lists, options.channels)]
    else:
        pairings = find_pairings(options.root, options.scales)
    rows: list[tuple[str, ...]] = [("HR", "LR", "scale", "pairs", "problems")]
    problems: list[str] = []
    for pairing in pairings:
        count, bad, lines = check(pairing, options.decode, not options.no_compare, options.workers)
        rows.append((" ".join(pairing.hr), " ".join(pairing.lr), str(pairing.scale), str(count), str(bad)))
        problems += lines
    print("\n".join(map(printable, [*table(rows), *(f"problem: {problem}" for problem in problems)])))
    return DataError.exit_code if problems else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets"), metavar="DIR", help="(default: datasets)")
    parser.add_argument("--scales", type=dataset_tools.positive, nargs="+", metavar="S", help="must all be there")
    dataset_tools.add_input_option(parser.add_argument, "check these HR images alone", "--hr")
    dataset_tools.add_input_option(parser.add_argument, "with these LR images, entry by entry", "--lr")
    parser.add_argument("--meta-info", nargs="+", metavar="FILE", help="list of the HR images, one for each folder")
    parser.add_argument("--scale", type=dataset_tools.positive, metavar="S", help="of these folders")
    parser.add_argument("--filename-tmpl", default="{}", metavar="T", help="name of an LR image (default: {})")
    parser.add_argument("--allow-remainder", action="store_true", help="HR may be larger by scale - 1 pixels")
    parser.add_argument("--no-compare", action="store_true", help="do not hold LR pixels against HR's")
    parser.add_argument("--decode", action="store_true", help="with --no-compare: decode every image all the same")
    dataset_tools.add_channels_option(parser.add_argument)
    dataset_tools.add_workers_option(parser)
    options = parser.parse_args()
    if len({options.hr is None, options.lr is None, options.scale is None}) > 1:
        parser.error("--hr, --lr and --scale go together")
    if options.channels is not None and options.hr is None:
        parser.error("--channels goes with --hr, --lr and --scale")
    return options


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))
