"""A run's figures as text: experiments/NAME/history.jsonl, a JSON object a line.

    {"iter": 100, "losses/l_pix": 0.0312, "lr/student": 0.0002, "time/iteration": 0.21, "time/data": 0.001}
    {"iter": 5000, "metrics/Set5/psnr": 37.91, "metrics/Set5/ssim": 0.9601}

A figure that is not finite is null. A process that is killed may leave half of a last line, which readers leave out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.utils.atomic_files import write_atomically
from basicsr.utils.errors import CheckpointError, DataError

HISTORY = "history.jsonl"
ITERATION = "iter"


class History:
    """Appends to the history of a run.

    Args:
        path: of the file. What a run that was cut off left of later iterations is taken out.
        start: number of iterations already done.
        validating: whether the last of them is still to be validated; then its metrics are taken out too.

    Raises:
        CheckpointError: the file cannot be written.
        DataError: it is damaged.
    """

    shows_images = False

    def __init__(self, path: Path, start: int, validating: bool = False) -> None:
        if path.exists():
            kept = "".join(_line(entry) for entry in _parsed(path) if _stays(entry, start, validating))
            write_atomically(path, lambda file: file.write(kept.encode()))
        self._path = path
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Appends a line and hands it to the operating system, where it outlives this process.

        Raises:
            CheckpointError: the disk is full, or another reason.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write(_line({ITERATION: iteration, **finite}))
            self._file.flush()
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error.strerror}") from error

    def image(self, name: str, iteration: int, image: Any) -> None:
        """Text holds no images."""

    def close(self, exit_code: int) -> None:
        """Closes the file.

        Raises:
            CheckpointError: what it was given last cannot be written.
        """
        try:
            self._file.close()
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error.strerror}") from error


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of a history: figures by name, and the iteration as `iter`; NaN where a figure was not finite.

    Raises:
        DataError: there is no such file, or a line before the last is damaged.
    """
    return [{name: math.nan if value is None else value for name, value in entry.items()} for entry in _parsed(path)]


def _parsed(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            entry = json.loads(line)
            iteration = entry[ITERATION]
        except (ValueError, KeyError, TypeError):
            iteration = None
        if not isinstance(iteration, int):
            raise DataError(f"{path}, line {number} is no line of a history; mend it or take it out")
        entries.append(entry)
    return entries


def _stays(entry: Mapping[str, Any], start: int, validating: bool) -> bool:
    again = validating and entry[ITERATION] == start and any(name.startswith("metrics/") for name in entry)
    return bool(entry[ITERATION] <= start) and not again


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"
