<<<<<<< HEAD
"""Opening files that others name: a pipe in a file's place would be waited for, for ever."""
=======
"""The one door to files that others put among the images: it never waits, and takes nothing for a file that is none."""
>>>>>>> 2b4bf12 (One reader for all images: true pixels or a refusal that names the property, from the header on)

from __future__ import annotations

import errno
import os
import stat
from io import FileIO

<<<<<<< HEAD
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
        if error.errno in (errno.ENXIO, errno.EISDIR) and (kind := _kind_of(os.stat(path).st_mode)):
            error.strerror = kind
        elif os.path.islink(path):
            error.strerror = f"{error.strerror}; it is a link to {os.readlink(path)}"
        raise
    try:
        if kind := _kind_of(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, kind, os.fspath(path))
        return FileIO(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def _kind_of(mode: int) -> str | None:
    """What stands in a file's place; None for a file."""
    return next((f"it is no file but {name}" for test, name in _KINDS if test(mode)), None)
=======
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """Opens a file for reading, without a buffer.

    A pipe that nobody writes to would otherwise be waited for, and a device such as /dev/zero never ends.

    Raises:
        OSError: it cannot be opened, or is no file; `strerror` says why.
        ValueError: the path has a NUL byte.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | _BINARY)
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, f"it is no file but {_KINDS.get(kind, 'something else')}", os.fspath(path))
    return FileIO(handle, "rb")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file; raises as `open_regular`, and where it cannot be read."""
    with open_regular(path) as file:
        return file.readall()


_BINARY = getattr(os, "O_BINARY", 0)
>>>>>>> 2b4bf12 (One reader for all images: true pixels or a refusal that names the property, from the header on)
