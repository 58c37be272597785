"""Writing files so that a crash leaves either the old file or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from basicsr.utils.errors import CheckpointError

TEMPORARY = ".*.tmp"
"""Pattern of the names of unfinished files."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoSpaceError(CheckpointError):
    """The disk is full, or a quota or a limit on the size of files is reached."""


@dataclass(frozen=True)
class Staged:
    """A file that is on the disk as `temporary`, to become `path`; SHA-256 in hexadecimal, size in bytes."""

    path: Path
    temporary: Path
    sha256: str
    size: int

    def commit(self) -> None:
        """Renames it, in one step."""
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Removes it, if that is possible."""
        with suppress(OSError):
            self.temporary.unlink()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> tuple[str, int]:
    """Writes a file whole or not at all, and returns its SHA-256 and size; CheckpointError leaves the old file."""
    staged = stage(path, path.with_name(f".{path.name}.{os.getpid()}.tmp"), write)
    try:
        staged.commit()
    except OSError as error:
        staged.discard()
        raise CheckpointError(f"cannot save {path}: {error.strerror}") from error
    return staged.sha256, staged.size


def stage(path: Path, temporary: Path, write: Callable[[BinaryIO], object]) -> Staged:
    """Writes and syncs the future `path` as `temporary`; raises NoSpaceError or CheckpointError and leaves nothing."""
    recorder: _Recorder | None = None
    try:
        with open(temporary, "w+b") as file:
            recorder = _Recorder(file)
            write(recorder)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            return Staged(path, temporary, _sha256(file), file.tell())
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # torch.save raises another error than the failed write.
        cause = recorder.failure if recorder is not None and recorder.failure is not None else error
        if not isinstance(cause, OSError):
            raise
        kind = NoSpaceError if cause.errno in _NO_SPACE else CheckpointError
        raise kind(f"cannot save {path}: {cause.strerror or cause}") from error


class _Recorder:
    """A file opened for writing that remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_writable(folder: Path) -> None:
    """Writes and removes a file in a folder or its nearest parent: permissions do not show a full disk."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".try_", suffix=".tmp") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return _sha256(file)


def sync_folder(folder: Path) -> None:
    """Waits until the disk has a folder's entries; network mounts that cannot do so are left alone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
