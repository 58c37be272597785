"""One run to a folder: two processes that write the same checkpoints would ruin both runs."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from basicsr.engine.distributed import Place, on_master
from basicsr.utils.errors import CheckpointError


@contextmanager
def owned(folder: Path, place: Place) -> Iterator[None]:
    """Within the block, no other process may train in `folder`. All ranks must call.

    The lock is a file beside the folder, which the operating system frees when the process ends, however it does. Where
    the file system knows no locks there is none.

    Args:
        folder: experiments/NAME; need not be there.
        place: where this process stands.

    Raises:
        CheckpointError: another process is training there, or nothing can be written there.
    """
    file = folder.with_name(f".{folder.name}.lock")
    new_folder = not file.parent.exists()
    held: list[int] = []
    on_master(place, lambda: held.append(_locked(file, folder)))
    try:
        yield
    finally:
        for handle in held:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            os.close(handle)
            if new_folder:
                with suppress(OSError):  # it is kept if there is anything in it
                    file.parent.rmdir()


def _locked(file: Path, folder: Path) -> int:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
            _lock(handle, folder)
            if file.exists() and os.path.samestat(os.fstat(handle), file.stat()):
                break
            os.close(handle)  # whoever had it has removed it since
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return handle
    except OSError as error:
        raise CheckpointError(f"cannot write {file.parent}: {error.strerror}") from error


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = os.read(handle, 200).decode(errors="replace") or "another process"
        os.close(handle)
        raise CheckpointError(
            f"{folder} is in use: {owner} trains there; wait for it, stop it, or give the run another name"
        ) from None
    except OSError:
        pass  # no locks on this file system
