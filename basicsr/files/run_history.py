"""A run's metrics as text: experiments/NAME/history.jsonl, a JSON object a line.

    {"iter": 100, "losses/l_pix": 0.0312, "lr/student": 0.0002, "time/iteration": 0.21, "time/data": 0.001}
    {"iter": 5000, "metrics/Set5/psnr": 37.91, "metrics/Set5/ssim": 0.9601}

A value that is not finite is null. A process that is killed may leave half of a last line, which readers skip.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from basicsr.files.atomic_files import write_atomically
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import CheckpointError, DataError
from basicsr.utils.logger import get_root_logger

HISTORY = "history.jsonl"
ITERATION = "iter"
_LARGEST = 2**63


class History:
    """Appends to a run's history, without lines after `start`, and with `validating` without metrics of `start`.

    A damaged history is kept under another name, with a warning. Raises CheckpointError if it cannot be written.
    """

    shows_images = False
    needed = True

    def __init__(self, path: Path, start: int, validating: bool = False) -> None:
        self._path = path
        with self._writing():
            if os.path.lexists(path):
                kept = [entry for entry in _sound(path) if entry[ITERATION] <= start]
                if validating:
                    kept = [entry for entry in kept if entry[ITERATION] < start or not _has_metrics(entry)]
                write_atomically(path, lambda file: file.write("".join(map(_line, kept)).encode()))
            self._file = path.open("a", encoding="utf-8")

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Appends a line and hands it to the operating system, where it outlives this process."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._writing():
            self._file.write(_line({ITERATION: iteration, **finite}))
            self._file.flush()

    def image(self, name: str, iteration: int, image: Any) -> None:
        """Text holds no images."""

    def close(self, exit_code: int) -> None:
        """Closes the file."""
        with self._writing():
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error.strerror}") from error


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of a history: values by name, the iteration as `iter`, null as NaN; raises DataError if damaged."""
    try:
        entries, damaged = _parsed(read_regular(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    if damaged:
        raise DataError(f"{path}, line {damaged[0]} is no line of a history; mend it or take it out")
    return [{name: math.nan if value is None else value for name, value in entry.items()} for entry in entries]


def _sound(path: Path) -> list[dict[str, Any]]:
    """The sound lines of a history; if others are among them, or it cannot be read, it is renamed."""
    try:
        entries, damaged = _parsed(read_regular(path))
    except OSError as error:
        entries, reason = [], f"cannot be read ({error.strerror}); a new history begins"
    else:
        if not damaged:
            return entries
        reason = f"has {len(damaged)} damaged lines, the first is line {damaged[0]}; it goes on without them"
    aside, number = path.with_name(f"{path.stem}_damaged{path.suffix}"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.stem}_damaged_{number}{path.suffix}")
    path.rename(aside)
    get_root_logger().warning(f"{path} {reason}; what was there is kept as {aside.name}")
    return entries


def _parsed(content: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """Its lines, except half of a last one, and the numbers of damaged lines."""
    *lines, _ = content.decode("utf-8", errors="replace").split("\n")
    entries: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        iteration = entry.get(ITERATION) if isinstance(entry, dict) else None
        if type(iteration) is int and iteration >= 0 and all(map(_is_value, entry.values())):
            entries.append(entry)
        else:
            damaged.append(number)
    return entries, damaged


def _is_value(value: object) -> bool:
    return value is None or type(value) is float or (type(value) is int and abs(value) < _LARGEST)


def _has_metrics(entry: Mapping[str, Any]) -> bool:
    return any(name.startswith("metrics/") for name in entry)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"
