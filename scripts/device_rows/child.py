"""Makes the rows of one network at one scale, in a process of its own: what crashes there leaves the others alone.

    python scripts/device_rows/child.py FOLDER

FOLDER/plan.json has `student`, `settings` and `works`: targets, precisions and keys. The key of the row being made lies
in FOLDER/running, rows in FOLDER/rows, files in FOLDER/files.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (2, 1)]

import numpy as np
import torch

from basicsr.export.base import ExportFormat, export_formats, load_student
from basicsr.export.base import Student as Exportable
from basicsr.export.descriptors import traits_of, verdict
from basicsr.export.exporting import export
from basicsr.export.int8 import Int8, Judge
from basicsr.runtimes.base import runtimes
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.errors import DataError, MachineError
from device_rows.rows import PYTORCH, Row, Rows, Settings, Student, Work, reason_of

_SIDE = 256  # of the image that multiply-adds are counted for


@dataclass
class Maker:
    """Makes rows of one student."""

    folder: Path
    student: Student
    settings: Settings
    _float_psnr: dict[tuple[tuple[int, int] | None, tuple[int, int] | None], float] = field(default_factory=dict)

    @cached_property
    def exportable(self) -> Exportable:
        """The network."""
        return load_student(self.student.path, scale=self.student.scale)

    @cached_property
    def images(self) -> Int8:
        """Images to calibrate and to measure with."""
        return self.settings.images(self.exportable)

    def made(self, work: Work) -> Row:
        """The row, with a reason where anything went wrong."""
        started = time.perf_counter()
        row = work.row()
        try:
            network = self.exportable.pretrained.network
            channels = self.exportable.pretrained.in_channels
            row.parameters = count_parameters(network)
            row.multiply_adds = count_multiply_adds(network, (channels, _SIDE, _SIDE))
            if work.target == PYTORCH:
                self._in_pytorch(row)
            else:
                self._exported(row, export_formats()[work.target])
        except Exception as error:  # whatever a library raises is the reason
            row.reason, row.files = reason_of(error), []
        row.seconds = round(time.perf_counter() - started, 2)
        return row

    def _in_pytorch(self, row: Row) -> None:
        row.runtime = f"{PYTORCH} {torch.__version__}"
        row.psnr = row.float_psnr = self._psnr_in_float(None)

    def _exported(self, row: Row, entry: ExportFormat) -> None:
        entry.require()
        network = self.exportable.pretrained
        found = verdict(traits_of(network.network), entry)
        size = self.settings.one_size if found.answer == "with --size" else None
        exported = export(
            self.exportable,
            self.folder / "files",
            targets=[entry.name],
            precision=row.precision,
            size=size,
            name=f"{self.student.name}_x{row.scale}",
            int8=self.images if row.precision == "int8" else None,
            report=lambda line: print(line, flush=True),
        )
        runtime = runtimes()[entry.runtime]
        row.files = [file.name for file in exported.files]
        row.megabytes = sum(map(_bytes_of, exported.files)) / 1e6
        worst = max(exported.checks, key=lambda check: check.difference)
        row.difference, row.allowed = worst.difference, worst.tolerance
        row.remarks = list(exported.remarks)
        row.size = None if size is None else list(size)
        row.runtime = f"{runtime.name} {runtime.version()}"
        try:
            loaded = entry.load(exported.files[0])
            most = loaded.facts.most
            row.psnr = Judge(self.images, self.exportable, size).psnr(
                lambda lq: torch.from_numpy(np.asarray(loaded(lq.numpy()))), most
            )
            row.float_psnr = self._psnr_in_float(size, most)
        except (DataError, MachineError) as error:  # no image is large enough, or it runs on other machines only
            row.remarks.append(reason_of(error))

    def _psnr_in_float(self, size: tuple[int, int] | None, most: tuple[int, int] | None = None) -> float:
        """Of the network in PyTorch; of the middles of images where files are for one size, or for one at `most`."""
        if (size, most) not in self._float_psnr:
            self._float_psnr[size, most] = Judge(self.images, self.exportable, size).float_psnr(most)
        return self._float_psnr[size, most]


def _bytes_of(file: Path) -> int:
    parts = [part for part in file.rglob("*") if part.is_file()] if file.is_dir() else [file]
    return sum(part.stat().st_size for part in parts)


def main(folder: Path, plan: Mapping[str, Any]) -> None:
    """Makes the rows of a plan, one after the other."""
    student = Student(**{**plan["student"], "path": Path(plan["student"]["path"])})
    given = plan["settings"]
    settings = Settings(given["calibration"], tuple(given["validation"]), given["max_drop"], tuple(given["one_size"]))
    maker, rows = Maker(folder, student, settings), Rows(folder / "rows")
    for target, precision, key in plan["works"]:
        (folder / "running").write_text(key, encoding="utf-8")
        rows.write(maker.made(Work(student, target, precision, key)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads((Path(sys.argv[1]) / "plan.json").read_text(encoding="utf-8")))
