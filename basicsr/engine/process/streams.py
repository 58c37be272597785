"""Standard output and error that may be closed, full or broken: a program whose work is in files goes on without."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TextIO

_CLOSED = OSError(errno.EBADF, "it is closed")


class _Outlet(io.FileIO):
    """A standard stream whose failures end nothing: what cannot be written is dropped, and the reason kept.

    Only where the reader of standard output has gone, as `head` does, the failure is raised.

    Args:
        descriptor: 1 or 2, which is left open.
        failure: why nothing can be written, where that is known.
    """

    def __init__(self, descriptor: int, failure: OSError | None = None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._known = failure
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self.failure = self.failure or self._known
        while self.failure is None:
            try:
                written = super().write(data)
            except BrokenPipeError as error:
                if self.fileno() == 1:
                    raise
                self.failure = error
            except OSError as error:
                self.failure = error
            else:
                if written is not None:
                    return written
                select.select([], [self.fileno()], [])  # somebody has made the terminal non-blocking
        return len(data)


def guard_streams() -> None:
    """Puts streams that cannot fail in the place of standard output and error.

    Descriptors that are closed are opened on nothing, so that no file that the program opens gets their number and
    is written to in their place.
    """
    closed = [descriptor for descriptor in (0, 1, 2) if not _is_open(descriptor)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        ours = stream is None or (isinstance(stream, io.TextIOWrapper) and _number_of(stream) == descriptor)
        if ours and _outlet_of(stream) is None:
            setattr(sys, name, _guarded(descriptor, stream))


def output_failure() -> OSError | None:
    """Why some of what was printed to standard output is lost; None where nothing is. Flushes it.

    Raises:
        BrokenPipeError: its reader has gone.
    """
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
        errors="backslashreplace",  # names of files may have letters that the terminal's encoding has not
        line_buffering=descriptor == 2 or outlet.isatty(),
    )


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _number_of(stream: TextIO) -> int:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return -1
