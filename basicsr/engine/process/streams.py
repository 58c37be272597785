"""Standard output and error that may be closed, full or broken: a program whose work is in files goes on without."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO

_CLOSED = OSError(errno.EBADF, "it is closed")


class _Outlet(io.FileIO):
    """A standard stream that drops what cannot be written and keeps the reason; a broken pipe on stdout raises."""

    def __init__(self, descriptor: int, known: OSError | None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._known = known
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self.failure = self.failure or self._known
        while self.failure is None:
            try:
                written = super().write(data)
            except OSError as error:
                if isinstance(error, BrokenPipeError) and self.fileno() == 1:
                    raise
                self.failure = error
            else:
                if written is not None:
                    return written
                select.select([], [self.fileno()], [])  # somebody has made the terminal non-blocking
        return len(data)


def guard_streams() -> None:
    """Replaces standard streams by ones that cannot fail, and opens closed descriptors on nothing."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is None or (_number_of(stream) == descriptor and _outlet_of(stream) is None):
            setattr(sys, name, _guarded(descriptor, stream))


def output_failure() -> OSError | None:
    """Flushes standard output; returns why some of it is lost, else None. BrokenPipeError if its reader has gone."""
    outlet = _outlet_of(sys.stdout)
    sys.stdout.flush()
    return outlet.failure if outlet is not None else None


def _outlet_of(stream: TextIO | None) -> _Outlet | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Outlet) else None


def _guarded(descriptor: int, stream: TextIO | None) -> TextIO:
    if stream is not None:
        stream.flush()
    outlet = _Outlet(descriptor, _CLOSED if stream is None else None)
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),  # type: ignore[type-var]
        encoding=stream.encoding if stream is not None else "utf-8",
        errors="backslashreplace",  # names of files may have letters that the terminal's encoding lacks
        line_buffering=descriptor == 2 or outlet.isatty(),
    )


def _number_of(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError):
        return stream.fileno() if isinstance(stream, io.TextIOWrapper) else None
    return None
