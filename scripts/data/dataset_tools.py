"""What the scripts for datasets share: processes with a progress bar, errors in one line, and safe reruns."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
from tqdm import tqdm

from basicsr.data.data_util import count_mismatch, folder_warnings, set_name
from basicsr.engine.process.command import run_command
from basicsr.files.file_client import FileClient
from basicsr.files.image_folders import IMAGE_SUFFIXES
from basicsr.files.image_headers import MOST_PIXELS
from basicsr.files.images import imfrombytes
from basicsr.utils.errors import DataError, Interrupted, MachineError
from basicsr.utils.misc import scandir
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


def tell_of_folders(folders: Iterable[Path]) -> None:
    """Warns of what else lies beside the images of folders, and of benchmarks that are not complete."""
    for folder in dict.fromkeys(folders):
        for sentence in folder_warnings(str(folder)):
            warn(f"{folder}: {sentence}")
        count = sum(1 for _ in scandir(folder, IMAGE_SUFFIXES, recursive=True))
        if count and (difference := count_mismatch(set_name(str(folder)), count)):
            warn(f"{folder}: {difference}")


def in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int, description: str
) -> Iterator[Result]:
    """Yields `function(task)` for all tasks, in order, from worker processes and with a progress bar.

    Raises:
        Whatever `function` raises; tasks not yet begun are given up then.
    """
    method = "fork" if sys.platform == "linux" else "spawn"
    pool = ProcessPoolExecutor(
        max(min(workers, len(tasks)), 1), multiprocessing.get_context(method), initializer=_prepare_worker
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


def read_image(path: Path, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """An image, (H, W, 3) BGR, uint8 or uint16; raises DataError where it is damaged or larger than `most_pixels`."""
    return imfrombytes(FileClient().get(path), source=str(path), most_pixels=most_pixels)


def is_current(outputs: Sequence[Path], source: Path) -> bool:
    """Whether all outputs exist and none is older than what it is made from, which must be there."""
    try:
        made = source.stat().st_mtime
    except OSError:  # reading it tells
        return False
    return all(output.is_file() and output.stat().st_mtime >= made for output in outputs)


def strip_suffix(stem: str, suffix: str, folder: Path) -> str:
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
        if known is None and (there := next(scandir(folder, IMAGE_SUFFIXES), None)):
            there = printable(there)
            raise DataError(f"{folder} holds images that this script did not make, as {there}; write to another folder")
        if known not in (None, content):
            raise DataError(f"{folder} was made with {known}, not {content}; remove it or write to another folder")
        note.write_text(content, "utf-8")
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from error


def _prepare_worker() -> None:
    """Leaves Ctrl+C to the parent, which ends the workers in good order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
