"""BasicSR's small helpers for seeds, folders and sizes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from basicsr.utils.errors import DataError

if TYPE_CHECKING:  # scripts that only list folders do not wait for its import
    import torch


def set_random_seed(seed: int) -> None:
    """Seeds Python's, numpy's and torch's global generators, all with `seed` itself."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_time_str() -> str:
    """The local time as `20240131_235959`, for names of files and folders."""
    return time.strftime("%Y%m%d_%H%M%S", time.localtime())


def scandir(
    dir_path: str | os.PathLike[str],
    suffix: str | tuple[str, ...] | None = None,
    recursive: bool = False,
    full_path: bool = False,
) -> Iterator[str]:
    """Yields the files of a folder in the order of their names, without hidden ones; raises DataError if it cannot.

    With `suffix`, only names that end so, in upper or lower case; `recursive`, also in folders below, but not in a
    linked folder that contains this one; `full_path`, paths that begin with `dir_path`, else relative to it.
    """
    endings = tuple(ending.lower() for ending in ((suffix,) if isinstance(suffix, str) else suffix or ("",)))

    def files_in(folder: str, above: tuple[str, ...]) -> Iterator[str]:
        above = (*above, os.path.realpath(folder)) if recursive else above
        for entry in entries_of(folder):
            if entry.name.startswith("."):
                continue
            if not is_folder(entry):
                if entry.name.lower().endswith(endings):
                    yield entry.path
            elif recursive and os.path.realpath(entry.path) not in above:
                yield from files_in(entry.path, above)

    root = os.fspath(dir_path)
    for path in files_in(root, ()):
        yield path if full_path else path[len(os.path.join(root, "")) :]


def entries_of(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, in the order of the names; raises DataError where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}; check the path") from error


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is a folder, or a link to one; False where that is unknown."""
    try:
        return entry.is_dir()
    except OSError:  # links in a circle, or in a folder that may be listed and no more
        return False


def sizeof_fmt(size: float, suffix: str = "B") -> str:
    """A number of bytes for humans to read, in steps of 1024: `1.5 KB`."""
    for unit in ("", "K", "M", "G", "T", "P", "E", "Z"):
        if abs(size) < 1024.0:
            return f"{size:3.1f} {unit}{suffix}"
        size /= 1024.0
    return f"{size:3.1f} Y{suffix}"


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished its work, before a clock is read."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def size_of(content: Any) -> int:
    """Bytes of the tensors in nested dicts and lists, about the size of a file of them."""
    import torch

    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return size_of(list(content.values()))
    return sum(map(size_of, content)) if isinstance(content, (list, tuple)) else 0
