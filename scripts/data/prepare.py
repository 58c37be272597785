"""Prepares a published set from the archives that you have downloaded: DIV2K, Flickr2K, DF2K, LSDIR, benchmark.

    python scripts/data/prepare.py DIV2K --archives ~/Downloads
    python scripts/data/prepare.py DF2K --archives ~/Downloads --scales 2 4 --only unpack lr subimages lmdb

Archives are found by name, checked by size and digest as far as these are public, and unpacked to where the options
expect the images; nothing is downloaded, and archives stay as they are. Without --archives, or where some are missing,
it says where each comes from. `benchmark` is Set5, Set14, BSD100 and Urban100.

Steps: `unpack`; `lr`, which makes the LR images (MATLAB's bicubic) that no archive has; `lists`, which writes names and
sizes for `meta_info_file`; and, of training images, `subimages` (squares) and `lmdb` (databases, of the squares if
these are asked for too, which then are removed: --keep leaves them). By default unpack, lr and lists. The same command
again does what is left.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from basicsr.engine.process.command import quiet_start

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import archives
import create_lmdb
import dataset_tools
import extract_subimages
import generate_lr
from published_sets import SETS, Archive, HrFolder, PublishedSet, Target

from basicsr.data.checks.inspection import examine
from basicsr.data.data_util import images_by_stem
from basicsr.files.atomic_files import write_atomically
from basicsr.files.image_folders import IMAGE_SUFFIXES
from basicsr.utils.errors import DataError
from basicsr.utils.misc import scandir, sizeof_fmt

STEPS = ("unpack", "lr", "subimages", "lmdb", "lists")
_DEFAULT_STEPS = ("unpack", "lr", "lists")
_SQUARE, _STEP = 480, 240  # HR pixels, BasicSR's for DIV2K
# Bytes made, by those of the HR images, about: each scale's LR images, squares that overlap by half, packed again.
_OF_SQUARES, _OF_PACKED = 4.0, 1.05


def main(argv: Sequence[str] | None = None, sets: Mapping[str, PublishedSet] = SETS) -> int:
    """The command; `sets` has the published sets by name."""
    options = _parse(argv, sets)
    chosen = sets[options.name]
    found, missing = archives.find(_wanted(chosen, options.scales), options.archives)
    _tell_of_archives(chosen, found, missing)
    needed = [archive for archive in chosen.archives if archive.required]
    absent = [archive for archive in missing if archive.required]
    if "unpack" in options.only and absent and not (options.incomplete and found):
        more = "" if not found else ", or --incomplete to go on without"
        raise DataError(
            f"archives that {options.name} needs are missing ({len(absent)} of {len(needed)}): download them (above)"
            f" and name their folder by --archives{more}"
        )
    output = Path(options.output)
    _check_space(chosen, found, options)
    if "unpack" in options.only:
        _unpack(chosen, found, output, options)
    for folder in chosen.folders:
        if (output / folder.folder).is_dir():
            _make(folder, output, options, is_training=folder.folder in chosen.train)
    _tell_of_options(chosen, output, options)
    return 0


def _wanted(chosen: PublishedSet, scales: Sequence[int]) -> list[Archive]:
    """The archives that hold HR images, or LR images of these scales."""
    return [archive for archive in chosen.archives if any(target.scale in (1, *scales) for target in archive.targets)]


def _tell_of_archives(chosen: PublishedSet, found: Sequence[archives.Found], missing: Sequence[Archive]) -> None:
    print(f"from {chosen.page}{f' ({chosen.remark})' if chosen.remark else ''}")
    for entry in found:
        print(f"  {entry.archive.name}: {entry.path}")
    for archive in missing:
        size = f", {sizeof_fmt(archive.size)}" if archive.size else ""
        need = "needed" if archive.required else "may be missing"
        print(f"  {archive.name}: not there ({need}); {archive.url}{size}")
    sys.stdout.flush()


def _targets(archive: Archive, scales: Sequence[int]) -> list[Target]:
    return [target for target in archive.targets if target.scale in (1, *scales)]


def _check_space(chosen: PublishedSet, found: Sequence[archives.Found], options: argparse.Namespace) -> None:
    """Raises DataError where the disk has no room for what is to be made, about."""
    output = Path(options.output)
    needed = hr = 0.0
    for entry in found:
        size = _unpacked_size(entry, options.scales)
        there = all((output / target.folder).is_dir() for target in _targets(entry.archive, options.scales))
        hr += size if any(target.scale == 1 for target in entry.archive.targets) else 0
        needed += 0 if there or "unpack" not in options.only else size
    lr = sum(1 / scale**2 for scale in options.scales)
    for step, factor in (("lr", lr), ("subimages", _OF_SQUARES * (1 + lr)), ("lmdb", _OF_PACKED * (1 + lr))):
        if step in options.only and not _is_made(step, chosen, output):
            squares = _OF_SQUARES if step == "lmdb" and "subimages" in options.only else 1
            needed += hr * factor * squares
    place = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DataError(
            f"{options.name} needs about {sizeof_fmt(needed)} more in {output}, {sizeof_fmt(free)} are free; make room,"
            " name another --output, or leave out steps or scales"
        )


def _unpacked_size(entry: archives.Found, scales: Sequence[int]) -> int:
    size = entry.path.stat().st_size
    if zipfile.is_zipfile(entry.path):
        return sum(member.size for member in archives.members(entry.path))
    share = len(_targets(entry.archive, scales)) / len(entry.archive.targets)
    return int(size * max(share, 0.5))


def _is_made(step: str, chosen: PublishedSet, output: Path) -> bool:
    """Whether the results of a step are there, for all that tells from names."""
    folders = chosen.folders if step == "lr" else [folder for folder in chosen.folders if folder.folder in chosen.train]
    marks = {"lr": "{lr}", "subimages": "{folder}_sub", "lmdb": "{folder}_sub.lmdb"}
    return all((output / marks[step].format(lr=folder.lr, folder=folder.folder)).exists() for folder in folders)


def _unpack(chosen: PublishedSet, found: Sequence[archives.Found], output: Path, options: argparse.Namespace) -> None:
    """Checks and unpacks the archives, each once; raises DataError where images are missing afterwards."""
    records = archives.Records(output / f".prepare_{options.name}.json")
    for entry in found:
        print(f"{entry.archive.name}: {archives.check(entry, records)}", flush=True)
    for entry in found:
        targets = _targets(entry.archive, options.scales)
        folders = [target.folder for target in targets]
        if records.of(entry).get("unpacked") != folders or not all(map(_is_complete, targets, [output] * len(targets))):
            count = archives.unpack(entry, output, targets)
            records.note(entry, unpacked=folders)
            print(f"{entry.archive.name}: unpacked, {count:,d} images", flush=True)
        for target in targets:
            if not _is_complete(target, output):
                there = _count(output / target.folder)
                raise DataError(
                    f"{output / target.folder} has {there:,d} images, {entry.archive.name} should have"
                    f" {target.count:,d}; remove what does not belong there, or download it again"
                )
    if not options.incomplete:
        unpacked = {target.folder for entry in found for target in _targets(entry.archive, options.scales)}
        for folder in chosen.folders:
            there = _count(output / folder.folder)
            if folder.folder in unpacked and there != folder.count:
                raise DataError(f"{output / folder.folder} has {there:,d} images, published are {folder.count:,d}")


def _is_complete(target: Target, output: Path) -> bool:
    return target.count is None or _count(output / target.folder) == target.count


def _count(folder: Path) -> int:
    return sum(1 for _ in scandir(folder, IMAGE_SUFFIXES)) if folder.is_dir() else 0


def _make(folder: HrFolder, output: Path, options: argparse.Namespace, *, is_training: bool) -> None:
    """What follows from a folder of HR images, by the commands that make it."""
    hr, lr = output / folder.folder, output / folder.lr
    workers = ["--workers", str(options.workers)]
    if "lr" in options.only:
        # A folder without the script's note holds images of an archive.
        to_make = [scale for scale in options.scales if not _count(lr / f"X{scale}") or _was_made(lr / f"X{scale}")]
        if to_make:
            scales = [str(scale) for scale in to_make]
            generate_lr.main(["--input", str(hr), "--output", str(lr), "--scales", *scales, *workers])
    if "lists" in options.only:
        _write_list(hr)
    if not is_training:
        return
    squares = hr.with_name(f"{hr.name}_sub")
    if "subimages" in options.only and not _database_of(squares).exists():
        sizes = ["--crop-size", str(_SQUARE), "--step", str(_STEP), "--scales", *map(str, options.scales)]
        extract_subimages.main(["--input", str(hr), "--output", str(squares), "--lr-input", str(lr), *sizes, *workers])
    if "lists" in options.only and squares.is_dir():
        _write_list(squares)
    if "lmdb" in options.only:
        _pack(hr, lr, options)


def _was_made(folder: Path) -> bool:
    return (folder / ".generate_lr.json").is_file()


def _pack(hr: Path, lr: Path, options: argparse.Namespace) -> None:
    """Packs HR and LR images, or their squares, into databases; then removes the squares unless they are kept."""
    of_squares = "subimages" in options.only
    ending = "_sub" if of_squares else ""
    folders = {hr.with_name(f"{hr.name}{ending}"): ""}
    folders |= {lr / f"X{scale}{ending}": "" if of_squares else f"x{scale}" for scale in options.scales}
    for folder, suffix in folders.items():
        database = _database_of(folder)
        if database.exists() and not folder.is_dir():
            print(f"{database}: complete, nothing to do")
            continue
        strip = ["--strip-suffix", suffix] if suffix else []
        workers = ["--workers", str(options.workers)]
        create_lmdb.main(["--input", str(folder), "--output", str(database), *strip, *workers])
    if of_squares and not options.keep:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _database_of(folder: Path) -> Path:
    """NAME.lmdb beside the folder; DIV2K_train_LR_bicubic_X2.lmdb for DIV2K_train_LR_bicubic/X2."""
    if folder.name.startswith("X"):
        return folder.parent.with_name(f"{folder.parent.name}_{folder.name}.lmdb")
    return folder.with_name(f"{folder.name}.lmdb")


def _write_list(folder: Path) -> None:
    """Writes meta_info_FOLDER.txt beside a folder: `name.png (height,width,channels)`, a line each."""
    lines = []
    for name, path in images_by_stem(str(folder)).values():
        finding = examine(path)
        if finding.header is None:
            raise DataError(f"{path}: {finding.fault}")
        height, width = finding.header.size
        lines.append(f"{name} ({height},{width},{finding.header.channels})\n")
    content = "".join(lines).encode()
    written = folder.with_name(f"meta_info_{folder.name}.txt")
    if not written.is_file() or written.read_bytes() != content:
        write_atomically(written, lambda file: file.write(content))
    print(f"{written}: {len(lines):,d} images")


def _tell_of_options(chosen: PublishedSet, output: Path, options: argparse.Namespace) -> None:
    """The folders of training images as options name them."""
    if not any((output / name).is_dir() for name in chosen.train):
        return
    scale = options.scales[0]
    there = [folder for folder in chosen.folders if folder.folder in chosen.train and (output / folder.folder).is_dir()]
    hr = [str(output / folder.folder) for folder in there]
    lr = [str(output / folder.lr / f"X{scale}") for folder in there]
    gt, lq = (entries[0] if len(entries) == 1 else f"[{', '.join(entries)}]" for entries in (hr, lr))
    print(f"in the options: dataroot_gt: {gt}, dataroot_lq: {lq}, filename_tmpl: '{{}}x{scale}'")


def _parse(argv: Sequence[str] | None, sets: Mapping[str, PublishedSet]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("name", choices=tuple(sets), metavar="NAME", help=", ".join(sets))
    add("--archives", type=_folder, nargs="+", default=[], metavar="DIR", help="where the downloaded archives lie")
    add("--output", default="datasets", metavar="DIR", help="gets a folder of the set (default: datasets)")
    add("--scales", type=int, nargs="+", choices=(2, 3, 4), default=[2, 3, 4], help="of LR images (default: 2 3 4)")
    add("--only", nargs="+", choices=STEPS, default=list(_DEFAULT_STEPS), metavar="STEP", help=f"of {', '.join(STEPS)}")
    add("--keep", action="store_true", help="keep squares that have been packed into databases")
    add("--incomplete", action="store_true", help="go on with the archives that are there")
    dataset_tools.add_workers_option(parser)
    return parser.parse_args(argv)


def _folder(text: str) -> Path:
    return Path(os.path.expanduser(text))


if __name__ == "__main__":
    sys.exit(dataset_tools.run(main))
