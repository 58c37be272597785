"""Files that belong together: written in a folder beside their places, and moved there at the end, all or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from basicsr.export.tracing import first_line
from basicsr.utils.errors import CheckpointError


@contextmanager
def all_or_none(folder: Path, targets: Sequence[Path]) -> Iterator[Path]:
    """Yields a new folder in which to write files of the targets' names; at its end they are moved to their places.

    Files that are there already are replaced; if anything fails they stay as they are, and no other comes to be.

    Args:
        folder: of the targets; made if there is none.
        targets: places of the files.

    Raises:
        CheckpointError: the folder cannot be made or written to, or a target is a folder or cannot be replaced.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        raise CheckpointError(f"cannot make the folder --output {folder}: {reason}; choose another") from error
    for target in targets:
        with saving(target):
            _refuse_folder(target)
    try:
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise CheckpointError(f"cannot write into the folder --output {folder}: {error.strerror}") from error
    replaced = staging / "replaced"
    try:
        yield staging
        with saving(folder):
            replaced.mkdir()
        _move(staging, targets, replaced)
    finally:
        if not any(replaced.glob("*")):  # else an earlier file could not be put back, and lies here
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def saving(target: Path) -> Iterator[None]:
    """Turns an OSError, of a full disk for one, into a CheckpointError that names the target."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot save {target}: {error.strerror or first_line(error)}") from error


def _refuse_folder(target: Path) -> None:
    if target.is_dir():
        raise CheckpointError(f"cannot save {target}: there is a folder of this name; choose another --name")


def _move(staging: Path, targets: Sequence[Path], replaced: Path) -> None:
    moved = []
    try:
        for target in targets:
            with saving(target):
                _refuse_folder(target)  # again: it may have been made meanwhile
                if os.path.lexists(target):
                    os.replace(target, replaced / target.name)
                os.replace(staging / target.name, target)
                moved.append(target)
    except BaseException:
        for target in targets:
            with suppress(OSError):
                if os.path.lexists(replaced / target.name):
                    os.replace(replaced / target.name, target)
                elif target in moved:
                    target.unlink()
        raise
    shutil.rmtree(replaced, ignore_errors=True)
