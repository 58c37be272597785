"""Checks datasets before a run: every pair is there, every file is whole, every size fits.

    python scripts/data/check_dataset.py                              # all that is below datasets/
    python scripts/data/check_dataset.py --root datasets --scales 2   # and LR images of scale 2 must be there
    python scripts/data/check_dataset.py --hr HR --lr LR/X2 --scale 2 --filename-tmpl '{}x2'

Files are read and their checksums or end marks compared; with `--decode` they are decoded as well. HR images
for training must be exactly scale times the LR size; in benchmarks up to scale - 1 pixels may be left over,
as the HR image is cut in testing. The exit code is 3 where anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import dataset_tools

from basicsr.data.data_util import check_template, paired_paths_from_folder
from basicsr.data.pairing import check_depths
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.file_client import FileClient
from basicsr.utils.image_headers import Content, HeaderError, ImageHeader, find_fault, read_header
from basicsr.utils.img_util import find_damage, imfrombytes

_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Pairing:
    """An HR folder and an LR folder that belong together."""

    hr: Path
    lr: Path
    scale: int
    filename_tmpl: str
    exact: bool


def find_pairings(root: Path, scales: list[int] | None) -> list[Pairing]:
    """The pairs of folders below `root`, laid out as datasets/README.md says, of all scales there are."""
    sets = [(root / f"DIV2K/DIV2K_{part}_HR", root / f"DIV2K/DIV2K_{part}_LR_bicubic") for part in ("train", "valid")]
    sets += [(folder / "HR", folder / "LR_bicubic") for folder in sorted((root / "benchmark").glob("*"))]
    pairings = []
    for hr, lr in sets:
        if hr.is_dir():
            found = sorted(int(folder.name[1:]) for folder in lr.glob("X*") if folder.name[1:].isdigit())
            for scale in scales or found:
                exact = hr.name == "DIV2K_train_HR"
                pairings.append(Pairing(hr, lr / f"X{scale}", scale, f"{{}}x{scale}", exact))
    if not pairings:
        raise DataError(f"{root} holds no pairs of HR and LR folders; see datasets/README.md for the layout")
    return pairings


def header_of(path: Path, decode: bool) -> ImageHeader:
    """The header of a whole image file; raises DataError where it is damaged or of a kind that is not read."""
    content = FileClient().get(path)
    if decode:
        imfrombytes(content, source=str(path))
    if damage := find_damage(content):
        raise DataError(f"cannot read image {path}: {damage}; copy or download the file again")
    try:
        header = read_header(Content(content))
    except HeaderError as error:
        raise DataError(f"cannot read image {path}: {error}; copy or download the file again") from error
    if fault := find_fault(header):
        raise DataError(f"cannot read image {path}: {fault}")
    return header


def check_pair(pair: dict[str, str], pairing: Pairing, decode: bool) -> str | None:
    """What is wrong with a pair, or None."""
    try:
        hr = header_of(Path(pair["gt_path"]), decode)
        lr = header_of(Path(pair["lq_path"]), decode)
        check_depths(hr.depth, lr.depth, pair["gt_path"], pair["lq_path"])
    except UserError as error:
        return str(error)
    rests = [large - small * pairing.scale for large, small in zip(hr.size, lr.size, strict=True)]
    if all(0 <= rest < (1 if pairing.exact else pairing.scale) for rest in rests):
        return None
    return (
        f"HR {pair['gt_path']} is {hr.height}x{hr.width}, LR {pair['lq_path']} is {lr.height}x{lr.width}: "
        f"not {pairing.scale} times as large"
    )


def check(pairing: Pairing, decode: bool, workers: int) -> tuple[int, list[str]]:
    """Number of pairs, and what is wrong with them."""
    try:
        pairs = paired_paths_from_folder([str(pairing.lr), str(pairing.hr)], ["lq", "gt"], pairing.filename_tmpl)
    except DataError as error:
        return 0, [str(error)]
    work = partial(check_pair, pairing=pairing, decode=decode)
    results = dataset_tools.in_processes(work, pairs, workers, str(pairing.lr))
    return len(pairs), [problem for problem in results if problem is not None]


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
        pairings = [Pairing(options.hr, options.lr, options.scale, options.filename_tmpl, exact)]
    else:
        pairings = find_pairings(options.root, options.scales)
    rows: list[tuple[str, ...]] = [("HR", "LR", "scale", "pairs", "problems")]
    problems: list[str] = []
    for pairing in pairings:
        count, found = check(pairing, options.decode, options.workers)
        rows.append((str(pairing.hr), str(pairing.lr), str(pairing.scale), str(count), str(len(found))))
        problems += found[:_SHOWN_PROBLEMS]
        if len(found) > _SHOWN_PROBLEMS:
            problems.append(f"{pairing.lr}: {len(found) - _SHOWN_PROBLEMS} problems more")
    print("\n".join([*table(rows), *(f"problem: {problem}" for problem in problems)]))
    return DataError.exit_code if problems else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets"), metavar="DIR", help="(default: datasets)")
    parser.add_argument("--scales", type=dataset_tools.positive, nargs="+", metavar="S", help="must all be there")
    parser.add_argument("--hr", type=Path, metavar="DIR", help="check these HR images alone")
    parser.add_argument("--lr", type=Path, metavar="DIR", help="with these LR images")
    parser.add_argument("--scale", type=dataset_tools.positive, metavar="S", help="of these folders")
    parser.add_argument("--filename-tmpl", default="{}", metavar="T", help="name of an LR image (default: {})")
    parser.add_argument("--allow-remainder", action="store_true", help="HR may be larger by scale - 1 pixels")
    parser.add_argument("--decode", action="store_true", help="decode every image, too")
    dataset_tools.add_workers_option(parser)
    options = parser.parse_args()
    if len({options.hr is None, options.lr is None, options.scale is None}) > 1:
        parser.error("--hr, --lr and --scale go together")
    return options


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))
