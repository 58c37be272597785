"""What a run says: lines in the terminal and in its log, and one line of progress."""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path

_QUIET_SECONDS = 30.0  # between lines of progress where there is no terminal


class Progress:
    """Prints lines, keeps them in a file with the time, and shows how far the step is, on one line.

    Args:
        log: the file, which is appended to; None keeps nothing.
    """

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._terminal = sys.stdout.isatty()
        self._shown = ""
        self._shown_at = time.monotonic()

    def say(self, line: str) -> None:
        """Prints a line, and keeps it."""
        self._clear()
        print(line, flush=True)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def show(self, line: str) -> None:
        """Shows how far it is, in place of what was shown before; where there is no terminal, now and then a line."""
        if self._terminal:
            self._clear()
            print(line[:160], end="", flush=True)
            self._shown = line[:160]
        elif time.monotonic() - self._shown_at >= _QUIET_SECONDS:
            self._shown_at = time.monotonic()
            print(line, flush=True)

    def _clear(self) -> None:
        if self._shown:
            print(f"\r{' ' * len(self._shown)}\r", end="", flush=True)
            self._shown = ""


def duration(seconds: float) -> str:
    """Such as '0:12:34'."""
    return str(datetime.timedelta(seconds=round(seconds)))
