"""Writing files so that a crash leaves either the old file or the new one, and reading tensors without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from basicsr.utils.errors import CheckpointError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> tuple[str, int]:
    """Writes a file by way of a temporary neighbour: write, flush, fsync, rename, fsync of the folder.

    Args:
        path: the file to create or replace.
        write: called with the open binary file.

    Returns:
        SHA-256 in hexadecimal and size in bytes of what was written.

    Raises:
        CheckpointError: the file could not be written; the old one, if any, is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = _sha256(file)
            size = file.tell()
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        reason = error if isinstance(error, OSError) else "not all of it could be written; is the disk full?"
        raise CheckpointError(f"cannot save {path}: {reason}") from error
    return digest, size


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return _sha256(file)


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Reads a file written by torch.save onto the CPU: tensors and plain Python values only, no code is run.

    Raises:
        CheckpointError: the file is missing, damaged, or holds objects other than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it is damaged or no checkpoint"
        if re.search("unsupported (global|class)", str(error), re.IGNORECASE):
            reason = "it holds Python objects other than tensors, which could run code; ask for a plain state dict"
        raise CheckpointError(f"checkpoint {path} was not loaded: {reason}") from error
    except Exception as error:  # a damaged pickle makes the unpickler fail in any way
        # PyTorch's advice to load without `weights_only` is not passed on: it would run the file's code.
        said = _first(error)
        reason = f" ({said})" if " " in said and "weights_only" not in str(error) else ""
        raise CheckpointError(f"checkpoint {path} was not loaded: it is damaged or no checkpoint{reason}") from error


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
