"""One row of the table of devices: a network at a scale, for a target, in a precision; and where it is kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr.files.atomic_files import write_atomically
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.text import first_line, one_line

if TYPE_CHECKING:  # they import PyTorch
    from basicsr.export.base import Student as Exportable
    from basicsr.export.int8 import Int8
    from basicsr.export.tracing import Precision

PYTORCH = "pytorch"


@dataclass(frozen=True)
class Settings:
    """What all rows are made by.

    Attributes:
        calibration: folder of LR images, on which ranges of int8 are found; {scale} stands for the scale.
        validation: folder of HR images, and of LR images where they are not MATLAB's bicubic of these; with {scale}.
        max_drop: PSNR in dB that a file in int8 may lose.
        one_size: height and width of files for one size, for targets that take no other.
    """

    calibration: str
    validation: tuple[str, ...]
    max_drop: float
    one_size: tuple[int, int]

    def images(self, student: Exportable) -> Int8:
        """Images to calibrate and to measure with; raises DataError where they do not fit the student."""
        from basicsr.export.image_sources import int8_images  # it imports PyTorch

        scale = student.pretrained.scale
        return int8_images(
            student,
            calibration=self.calibration.format(scale=scale),
            validation=[folder.format(scale=scale) for folder in self.validation],
            max_drop=self.max_drop,
        )


@dataclass(frozen=True)
class Student:
    """A network at a scale, by a checkpoint.

    Attributes:
        name: of the network in the table.
        path: of its checkpoint.
        scale: factor of enlargement.
        sha256: of the checkpoint.
        trained: whether its weights are more than random, so that its PSNR means something.
    """

    name: str
    path: Path
    scale: int
    sha256: str
    trained: bool

    @property
    def label(self) -> str:
        """Name and scale."""
        return f"{self.name} x{self.scale}"


@dataclass
class Row:
    """What is known of one file, or why there is none.

    Attributes:
        student, scale, target, precision: of what.
        key: digest of what it was made from.
        parameters, multiply_adds: of the shipped network; multiply-adds of an image of 256x256.
        files: names in the output folder.
        megabytes: of all files together, 10^6 bytes.
        difference, allowed: largest from PyTorch on the sizes tried, and what is allowed; of int8 the root mean square.
        psnr, float_psnr: mean over the validation images, of the file and of the float network in PyTorch, in dB.
        size: height and width that the file is for; None: any.
        seconds: that making and checking took.
        runtime: and its version.
        remarks: sentences.
        reason: why there is no file, in one line; '' where there is one.
    """

    student: str
    scale: int
    target: str
    precision: Precision
    key: str
    parameters: int | None = None
    multiply_adds: int | None = None
    files: list[str] = dataclasses.field(default_factory=list)
    megabytes: float | None = None
    difference: float | None = None
    allowed: float | None = None
    psnr: float | None = None
    float_psnr: float | None = None
    size: list[int] | None = None
    seconds: float | None = None
    runtime: str = ""
    remarks: list[str] = dataclasses.field(default_factory=list)
    reason: str = ""

    @property
    def label(self) -> str:
        """Of its latency."""
        return f"{self.student} x{self.scale}, {self.target}, {self.precision}"


@dataclass(frozen=True)
class Work:
    """A row that is to be made."""

    student: Student
    target: str
    precision: Precision
    key: str

    def row(self, **known: Any) -> Row:
        """It with what is known."""
        return Row(self.student.name, self.student.scale, self.target, self.precision, self.key, **known)

    @property
    def label(self) -> str:
        """As of its row."""
        return self.row().label


def key_of(student: Student, target: str, precision: str, settings: Settings, version: str) -> str:
    """Digest of what a row is made from: weights, images by name, size and date, settings, the runtime's version."""
    parts: list[Any] = [student.sha256, student.scale, target, precision, version, settings.max_drop, settings.one_size]
    for folder in (settings.calibration, *settings.validation):
        parts.append(_listing(Path(folder.format(scale=student.scale))))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    try:
        facts = [(file.name, file.stat()) for file in sorted(folder.iterdir())]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    return [(name, status.st_size, status.st_mtime_ns) for name, status in facts]


class Rows:
    """The rows that are there, one file each in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, work: Work) -> Row | None:
        """What was made before from the same; None if nothing was, or it cannot be read."""
        try:
            content = json.loads(self._file(work.key).read_text(encoding="utf-8"))
            return Row(**content)
        except (OSError, ValueError, TypeError):
            return None

    def write(self, row: Row) -> None:
        """Keeps a row."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(row), indent=1) + "\n"
        write_atomically(self._file(row.key), lambda file: file.write(text.encode()))

    def forget(self, works: Sequence[Work]) -> None:
        """Forgets the rows that have no file."""
        for work in works:
            row = self.read(work)
            if row is not None and row.reason:
                self._file(work.key).unlink()

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def reason_of(error: BaseException) -> str:
    """An error as one line: our own whole, of others' the beginning."""
    return one_line(str(error)) if isinstance(error, UserError) else first_line(error)
