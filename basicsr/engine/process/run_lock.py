"""One program to a folder: two that write the same checkpoints or results would ruin both."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import CheckpointError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.text import printable

LOCK = ".lock"
"""Name of the lock in a folder."""
_SECONDS = 0.5  # a process that was killed holds its lock until its last child has gone
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY)


@contextmanager
def owned(folders: Sequence[Path], doing: str = "trains there") -> Iterator[Callable[[], None]]:
    """Holds `folders` against other processes, on all ranks; yields what to call after they were made anew."""
    with ExitStack() as held:
        locks: list[FolderLock] = []

        def take() -> None:
            locks.extend(held.enter_context(FolderLock(folder, doing)) for folder in folders)

        def take_again() -> None:
            for lock in locks:
                lock.take_inside()

        on_master(take)
        yield lambda: on_master(take_again)


class FolderLock(ExitStack):
    """Holds a folder until it is closed, by whatever path others reach it; `doing` tells them what its owner does.

    One lock is a file beside the folder that links lead to, since the folder may be missing or be renamed; another one
    lies in the folder, and is the same through a bind mount. The operating system frees both when the process ends. If
    the file system has no locks, as some network disks, their existence is the lock: the next process on the same
    machine removes what a killed one has left, and names one on another machine.

    Raises:
        CheckpointError: another process holds it, nothing can be written there, or it lies behind a broken link.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        super().__init__()
        self._folder, self._doing = folder, doing
        self._inside: set[tuple[int, int]] = set()
        for part in (folder, *folder.parents):
            if os.path.islink(part) and not os.path.exists(part):
                raise CheckpointError(
                    f"{part} is a link to {os.readlink(part)}, which is not there; mount its disk, or remove the link"
                )
        real = Path(os.path.realpath(folder))
        beside = real.with_name(f".{real.name}.lock")
        try:
            if not beside.parent.exists():
                beside.parent.mkdir(parents=True, exist_ok=True)
                self.callback(_remove_if_empty, beside.parent)
            self._take(beside, folder.parent)
            self.take_inside()
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            raise CheckpointError(f"cannot write {folder.parent}: {error.strerror or error}") from error

    def take_inside(self) -> None:
        """Holds the folder itself, if it is there; to be called again when it was made anew."""
        if not self._folder.is_dir():
            return
        real = Path(os.path.realpath(self._folder))
        found = real.stat()
        if (found.st_dev, found.st_ino) not in self._inside:
            self._take(real / LOCK, self._folder)
            self._inside.add((found.st_dev, found.st_ino))

    def _take(self, file: Path, shown: Path) -> None:
        held = Path(f"{file}.held")
        left = _owner_in(held)
        lock: BaseFileLock = FileLock(file, timeout=_SECONDS, fallback_to_soft=False)
        try:
            try:
                lock.acquire()
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                lock = SoftFileLock(held, timeout=_SECONDS)
                lock.acquire()
            if not isinstance(lock, SoftFileLock):
                file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except Timeout as error:
            owner = _owner_in(Path(lock.lock_file)) or "another process"
            advice = "wait for it, stop it, or give another name"
            if isinstance(lock, SoftFileLock):
                advice += f"; if it has gone, remove {lock.lock_file}"
            raise CheckpointError(f"{self._folder} is in use: {owner} {self._doing}; {advice}") from error
        except OSError as error:
            raise CheckpointError(f"cannot write {shown}: {error.strerror or error}") from error
        if isinstance(lock, SoftFileLock) and left is not None:
            get_root_logger().warning(f"{self._folder}: took over the lock of {left}, which has gone")
        # By its folder's handle: the folder may have been renamed by then.
        self.callback(_let_go, lock, os.open(file.parent, os.O_RDONLY))


def _owner_in(file: Path) -> str | None:
    """Who wrote a lock's file: 'process 12 on node3'."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace")[:400].splitlines()
    except OSError:
        return None
    if len(lines) >= 2 and lines[0].isdigit():  # as filelock writes it
        return printable(f"process {lines[0]} on {lines[1].partition('?')[0]}")
    return printable(lines[0]) if lines else None


def _let_go(lock: BaseFileLock, folder: int) -> None:
    with suppress(OSError):
        os.unlink(os.path.basename(lock.lock_file), dir_fd=folder)  # while it is held: nobody can have made it anew
    os.close(folder)
    with suppress(OSError):
        lock.release()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
