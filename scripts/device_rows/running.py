"""Rows made in processes of their own, one for each network and scale; one that crashes or hangs costs its row."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from subprocesses import Programs, Stopped

from basicsr.utils.errors import DataError
from device_rows.rows import Row, Rows, Settings, Work

_CHILD = Path(__file__).resolve().parent / "child.py"
_POLL_SECONDS = 0.2
_BETWEEN_SECONDS = 600.0  # that a process may take before its first row, and after its last


@dataclasses.dataclass
class Runner:
    """Makes rows.

    Attributes:
        folder: of everything.
        settings: of all rows.
        timeout: seconds for one row, after which it counts as hanging.
        programs: which hand signals on.
        lock: descriptor of the folder's lock.
        say: prints a line.
    """

    folder: Path
    settings: Settings
    timeout: float
    programs: Programs
    lock: int
    say: Callable[[str], object]

    def make(self, works: Sequence[Work]) -> None:
        """Makes the rows of one student that are not there yet; raises Stopped, DataError where nothing goes on."""
        rows = Rows(self.folder / "rows")
        while open_works := [work for work in works if rows.read(work) is None]:
            self._write_plan(open_works)
            ended = self._run(open_works, rows)
            if self.programs.received:
                raise Stopped
            if ended is None:
                continue
            culprit = next((work for work in open_works if work.key == self._running() and not rows.read(work)), None)
            if culprit is None:
                log = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise DataError(f"{works[0].student.label}: {ended} ({log[-1] if log else 'it said nothing'})")
            self._tell(self._failed(rows, culprit, ended))

    def _write_plan(self, works: Sequence[Work]) -> None:
        student = {**dataclasses.asdict(works[0].student), "path": str(works[0].student.path)}
        entries = [(work.target, work.precision, work.key) for work in works]
        plan = {"student": student, "settings": dataclasses.asdict(self.settings), "works": entries}
        (self.folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        (self.folder / "running").unlink(missing_ok=True)

    def _run(self, works: Sequence[Work], rows: Rows) -> str | None:
        """Runs the child to its end; how it ended, None if as it should."""
        with (self.folder / "log.txt").open("ab") as log:
            arguments = [str(_CHILD), str(self.folder)]
            child = self.programs.start(arguments, lock=self.lock, output=log, ends_with_us=True)
            told: set[str] = set()
            current, since = "", time.monotonic()
            while child.poll() is None:
                time.sleep(_POLL_SECONDS)
                for work in works:
                    if work.key not in told and (row := rows.read(work)) is not None:
                        told.add(work.key)
                        self._tell(row)
                if (running := self._running()) != current:
                    current, since = running, time.monotonic()
                at_work = running and running not in told
                if time.monotonic() - since > (self.timeout if at_work else max(self.timeout, _BETWEEN_SECONDS)):
                    return self._killed(child)
        for work in works:
            if work.key not in told and (row := rows.read(work)) is not None:
                self._tell(row)
        code = child.returncode
        if code == 0:
            return None
        return f"its process ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with {code}"

    def _killed(self, child: subprocess.Popen[bytes]) -> str:
        child.kill()
        child.wait()
        return f"not done after {self.timeout:g} seconds (--timeout)"

    def _running(self) -> str:
        """The key of the row that is, or was, being made."""
        try:
            return (self.folder / "running").read_text(encoding="utf-8")
        except OSError:
            return ""

    def _failed(self, rows: Rows, work: Work, reason: str) -> Row:
        row = work.row(reason=reason)
        rows.write(row)
        return row

    def _tell(self, row: Row) -> None:
        loss = "" if row.psnr is None else f", PSNR {row.psnr:.2f}"
        size = "" if row.megabytes is None else f", {row.megabytes:.2f} MB"
        parity = "" if row.difference is None else f", off by {row.difference:.1e}"
        self.say(f"{row.label}: {row.reason or f'done{size}{parity}{loss}'}")
