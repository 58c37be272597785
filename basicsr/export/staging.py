"""Files that get their names all together or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from basicsr.utils.errors import CheckpointError
from basicsr.utils.text import first_line

FOLDERS = (".mlpackage",)  # endings of what is a folder


@contextmanager
def all_or_none(folder: Path, targets: Sequence[Path]) -> Iterator[Path]:
    """Yields a new folder for files that are moved to the targets at its end; if anything fails all stays as it was."""
    missing = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        reason = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        raise CheckpointError(f"cannot make the folder --output {folder}: {reason}; choose another") from error
    for target in targets:
        with saving(target):  # before any work, and again when it is moved
            pass
    try:
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise CheckpointError(f"cannot write into the folder --output {folder}: {error.strerror}") from error
    replaced = staging / "replaced"
    try:
        yield staging
        with ExitStack() as undo:
            for target in targets:
                with saving(target):
                    replaced.mkdir(exist_ok=True)
                    undo.callback(_put_back, target, replaced / target.name, staging / target.name)
                    if os.path.lexists(target):
                        os.replace(target, replaced / target.name)
                    os.replace(staging / target.name, target)
            undo.pop_all()
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        if not any(replaced.glob("*")):  # else an earlier file could not be put back, and lies here
            shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(missing)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes folders, the innermost first, in which there is nothing."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _put_back(target: Path, earlier: Path, new: Path) -> None:
    """Undoes the move of `new` to `target`, where `earlier` was, if it has been made."""
    with suppress(OSError):
        if os.path.lexists(earlier):
            os.replace(earlier, target)
        elif not os.path.lexists(new):
            shutil.rmtree(target) if target.is_dir() else target.unlink()


@contextmanager
def saving(target: Path) -> Iterator[None]:
    """Raises CheckpointError, naming the target, if there is a folder or for an OSError, such as a full disk.

    A target that is a folder itself, as Core ML's packages are, may replace one.
    """
    try:
        if target.is_dir() and not target.name.endswith(FOLDERS):
            raise CheckpointError(f"cannot save {target}: there is a folder of this name; choose another --name")
        yield
    except OSError as error:
        raise CheckpointError(f"cannot save {target}: {error.strerror or first_line(error)}") from error
