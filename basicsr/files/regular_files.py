"""Opening files by names that users give: a pipe, a device or a folder is refused, not waited for."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """Opens a file for reading, unbuffered.

    Raises:
        OSError: it cannot be opened, or is no file; `strerror` says which.
        ValueError: the name has a NUL byte.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.EISDIR) and (kind := _not_a_file(os.stat(path).st_mode)):
            error.strerror = kind
        elif os.path.islink(path):
            error.strerror = f"{error.strerror}; it is a link to {os.readlink(path)}"
        raise
    try:
        if kind := _not_a_file(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, kind, os.fspath(path))
        return FileIO(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _not_a_file(mode: int) -> str | None:
    return next((f"it is no file but {name}" for test, name in _KINDS if test(mode)), None)
