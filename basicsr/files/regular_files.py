"""Files by names from strangers: a pipe, a device or a folder is refused, and so are names outside a folder."""

from __future__ import annotations

import errno
import io
import os
import stat
import unicodedata
from io import FileIO
from pathlib import PurePosixPath, PureWindowsPath

from basicsr.utils.errors import DataError
from basicsr.utils.text import printable

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_LARGEST_FILE = 1 << 28  # bytes; 5 million names of 50 bytes
_LONGEST_LINE = 4096
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # categories of characters


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """Opens a file unbuffered; raises OSError, also if it is no file, and ValueError for a NUL byte in its name."""
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


def read_lines(path: str | os.PathLike[str], what: str) -> list[tuple[int, str]]:
    """The stripped lines of a UTF-8 file that are not blank, with their numbers from 1; `what` names it in errors.

    Raises DataError: unreadable, over 256 MiB, not UTF-8, a line of over 4096 characters or with control characters.
    """
    name = f"{what} {os.fspath(path)}".strip()
    try:
        with io.BufferedReader(open_regular(path)) as file:
            content = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read {name}: {reason}; check the path") from error
    if len(content) > _LARGEST_FILE:
        raise DataError(f"{name} is larger than {_LARGEST_FILE >> 20} MiB, too large for a list of images; split it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is no text in UTF-8 (byte {error.start}); save it as UTF-8") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip(" \t\r")
        if len(line) > _LONGEST_LINE:
            raise DataError(f"line {number} of {name} has over {_LONGEST_LINE} characters; it is no list of images")
        if not line.isprintable() and any(unicodedata.category(char) in _CONTROLS for char in line):
            raise DataError(f"line {number} of {name} has control characters: {printable(line[:80])}; rename the image")
        if line:
            lines.append((number, line))
    return lines


def leaves_folder(name: str) -> bool:
    """Whether a name could lead out of its folder on any system, name the folder itself, or be hidden there."""
    parts = name.replace("\\", "/").split("/")
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    return bool(absolute) or ".." in parts or parts[-1][:1] in ("", ".")
