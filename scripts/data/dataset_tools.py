"""What the scripts for datasets share: processes with a progress bar, errors in one line, and safe reruns."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
from tqdm import tqdm

from basicsr.data.bands_storage import BandFolder
from basicsr.data.data_util import count_mismatch, set_name
from basicsr.data.image_sets import ImageSet, find_images
from basicsr.data.storage import ImageRoot
from basicsr.engine.process.command import run_command
from basicsr.files.band_files import write_bands
from basicsr.files.file_client import FileClient
from basicsr.files.image_folders import is_pattern
from basicsr.files.image_headers import MOST_PIXELS
from basicsr.files.images import imwrite
from basicsr.utils.errors import DataError, Interrupted, MachineError
from basicsr.utils.misc import scandir
from basicsr.utils.process_settings import end_with_parent
from basicsr.utils.text import printable

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT_PER_WORKER = 4


def run(main: Callable[[], int]) -> int:
    """Runs a script's `main` as `run_command` does, and says that it can go on after Ctrl+C."""

    def work() -> int:
        try:
            return main()
        except KeyboardInterrupt:
            raise Interrupted("interrupted; run the same command again to go on") from None

    return run_command(work)


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--workers`, by default one for each core."""
    parser.add_argument(
        "--workers",
        type=positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: %(default)s)",
    )


def positive(text: str) -> int:
    """For argparse: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def not_negative(text: str) -> int:
    """For argparse: a whole number from 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def made(number: int, total: int, what: str) -> str:
    """`made 3 images`, `made 3 of 5 images, the others were there`, or `all 5 images were there`."""
    if number == total:
        return f"made {total:,d} {what}{'s' if total != 1 else ''}"
    if number == 0:
        return f"all {total:,d} {what}s were there"
    return f"made {number:,d} of {total:,d} {what}s, the others were there"


def warn(line: str) -> None:
    """Prints a warning on standard error."""
    print(f"warning: {printable(line)}", file=sys.stderr)


def add_input_option(add: Callable[..., Any], text: str, name: str = "--input", **further: Any) -> None:
    """Adds an option for folders of images, and `--meta-info` with `--input`."""
    add(name, nargs="+", metavar="DIR", help=f"{text}: folders, with those below, or patterns: 'sets/*/HR'", **further)
    if name == "--input":
        add("--meta-info", nargs="+", metavar="FILE", help="list of the images to take, one for each folder")


def add_channels_option(add: Callable[..., Any]) -> None:
    """Adds `--channels`."""
    text = "images of N bands that are no colours, 2 or 4 to 16, in TIFF or .npy files"
    add("--channels", type=positive, metavar="N", help=text)


def images_of(folders: Sequence[str], meta_info: Sequence[str] | None = None, channels: int | None = None) -> ImageSet:
    """The images of an option as `add_input_option` adds it; of `channels` bands where that is given."""
    return find_images(storage_of(channels), {"gt": list(folders)}, meta_info_file=meta_info)


def storage_of(channels: int | None) -> dict[str, Any]:
    """`io_backend` of images in folders, of `channels` bands where that is given."""
    return {"type": "disk"} if channels is None else {"type": "bands", "channels": channels}


def root_of(channels: int | None) -> ImageRoot:
    """Reads such images by their paths."""
    return ImageRoot() if channels is None else BandFolder(bands=channels)


def ending_of(source: Path, channels: int | None) -> str:
    """How the name of an image ends that is made of another: PNG, of bands the format stays."""
    return ".png" if channels is None else source.suffix.lower()


def write_image(pixels: np.ndarray, path: Path, channels: int | None, parameters: Sequence[int] | None = None) -> None:
    """Writes an image that `read_image` with these `channels` reads; `parameters` are OpenCV's, of PNG files."""
    if channels is None:
        imwrite(pixels, path, parameters)
    else:
        write_bands(path, pixels)


def by_name(images: ImageSet, numbered: bool = False) -> dict[str, Path]:
    """The images by what results call them; where `numbered`, by the numbers of their folders.

    Raises:
        DataError: two images would have one name.
    """
    root, found = images.roots["gt"], dict[str, Path]()
    for paths in images.paths:
        path = paths["gt_path"]
        name = root.key(path) if numbered else root.title(path)
        other = found.setdefault(name, Path(path))
        if str(other) != str(Path(path)):
            raise DataError(f"{printable(f'{other} and {path} would both be called {name}')}; rename one")
    return found


def warn_of(*sets: ImageSet) -> None:
    """Warns of what else lies beside images, and of benchmarks that are not complete."""
    for line in dict.fromkeys(chain.from_iterable(map(_beside, sets))):
        warn(line)


def _beside(images: ImageSet) -> Iterator[str]:
    for root in images.roots.values() if not images.chosen else ():
        yield from root.warnings(len(images.paths))
        for folder, share in zip(root.folders, images.shares, strict=True):
            if difference := count_mismatch(set_name(folder), share.count):
                yield f"{folder}: {difference}"


def check_apart(images: ImageSet, output: Path, option: str, *, below: bool = True) -> None:
    """Raises DataError where an output is a folder of the images or `below` it, and so among them at the next start."""
    target = Path(os.path.realpath(output))
    folders = {os.path.dirname(path) for paths in images.paths for path in paths.values()}
    folders |= {path for root in images.roots.values() for path in root.given if not is_pattern(path)}
    for folder in sorted(folders):
        source = Path(os.path.realpath(folder))
        if source == target or (below and source in target.parents):
            raise DataError(
                f"{option} {output} must not be {folder}, which holds images to take, nor below it; name another folder"
            )


def in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, description: str
) -> Iterator[Result]:
    """Yields `function(task)` for all tasks, in order, from worker processes and with a progress bar.

    Raises:
        Whatever `function` raises; tasks not yet begun are given up then.
    """
    method = "fork" if sys.platform == "linux" else "spawn"
    pool = ProcessPoolExecutor(
        max(min(workers, len(tasks)), 1),
        multiprocessing.get_context(method),
        initializer=_prepare_worker,
        initargs=(os.getpid(),),
    )
    running: deque[Future[Result]] = deque()
    waiting = iter(tasks)
    try:
        for task in waiting:
            running.append(pool.submit(function, task))
            if len(running) == _IN_FLIGHT_PER_WORKER * workers:
                break
        for _ in tqdm(range(len(tasks)), desc=description, unit="image", dynamic_ncols=True):
            yield running.popleft().result()
            for task in waiting:
                running.append(pool.submit(function, task))
                break
    except BrokenProcessPool as error:
        raise MachineError("a process was killed, maybe for lack of memory; give a lower --workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_image(path: Path, channels: int | None = None, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """An image, (H, W, 3) BGR, uint8 or uint16, or (H, W, `channels`), also float32, in [0, 1].

    Raises DataError where it is damaged or larger than `most_pixels`.
    """
    return root_of(channels).decoded(FileClient().get(path), str(path), most_pixels)


def is_current(outputs: Sequence[Path], source: Path) -> bool:
    """Whether all outputs exist and none is older than what it is made from, which must be there."""
    try:
        made = source.stat().st_mtime
    except OSError:  # reading it tells
        return False
    return all(output.is_file() and output.stat().st_mtime >= made for output in outputs)


def strip_suffix(stem: str, suffix: str, folder: str) -> str:
    """`stem` without the `suffix` that it must end with.

    Raises:
        DataError: it ends otherwise.
    """
    if not stem.endswith(suffix) or stem == suffix:
        raise DataError(f"image {stem} of {folder} does not end in '{suffix}'; change --strip-suffix")
    return stem.removesuffix(suffix)


def claim_folder(folder: Path, script: str, parameters: Mapping[str, Any]) -> None:
    """Makes a folder for a script's images, and notes in it how they are made.

    Raises:
        DataError: its images were made in another way, or by others, so that a rerun would mix two kinds.
    """
    note = folder / f".{script}.json"
    content = json.dumps(parameters, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = note.read_text("utf-8") if note.is_file() else None
        if known is None and (there := next(scandir(folder, BandFolder.suffixes, recursive=True), None)):
            there = printable(there)
            raise DataError(f"{folder} holds images that this script did not make, as {there}; write to another folder")
        if known not in (None, content):
            raise DataError(f"{folder} was made with {known}, not {content}; remove it or write to another folder")
        note.write_text(content, "utf-8")
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from error


def _prepare_worker(parent: int) -> None:
    """Leaves Ctrl+C to the parent, which ends the workers in good order, and ends with it where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
    cv2.setNumThreads(0)
