"""SHA-256 of stored images, remembered by size and time of change.

Notes lie in BASICSR_CACHE beside those of `check_cache`, a file for each folder or database. They are a convenience:
what cannot be read or written is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from basicsr.data.checks.inspection import ImageLocation, opened, stamp_of
from basicsr.data.checks.notes import cache_folder
from basicsr.files.atomic_files import write_atomically
from basicsr.utils.errors import CheckpointError, DataError

_VERSION = 1
_LARGEST_FILE = 1 << 29
_BLOCK = 1 << 20
_THREADS = 8
_TO_A_TASK = 16

Bar = Callable[[Iterator[str], int], Iterator[str]]


def digests_of(files: Sequence[str], root: str, lmdb: bool, bar: Bar = lambda items, total: items) -> list[str]:
    """SHA-256, in hexadecimal, of files or of the values of an LMDB database; those that have not changed are known.

    Args:
        files: paths, or keys.
        root: folder or database.
        lmdb: whether it is a database.
        bar: shows progress over those that are read.

    Raises:
        DataError: one cannot be read.
    """
    path = _notes_of(root)
    known = _read(path, os.path.abspath(root))
    whole = stamp_of(os.path.join(root, "data.mdb")) if lmdb else None
    stamps = [whole if lmdb else stamp_of(file) for file in files]
    found = [_known(known.get(file), stamp) for file, stamp in zip(files, stamps, strict=True)]
    waiting = [number for number, digest in enumerate(found) if digest is None]
    places = [ImageLocation(files[number], root if lmdb else None) for number in waiting]
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            fresh = list(bar(_in_order(pool, places), len(places)))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl+C waits for what has begun only
            raise
    for number, digest in zip(waiting, fresh, strict=True):
        found[number] = digest
    digests = [digest or "" for digest in found]
    if waiting:
        # Stamps were taken before reading: what changes meanwhile is read again next time.
        entries = zip(files, stamps, digests, strict=True)
        _write(path, root, {file: [*stamp, digest] for file, stamp, digest in entries if stamp is not None})
    return digests


def _in_order(pool: ThreadPoolExecutor, places: Sequence[ImageLocation]) -> Iterator[str]:
    tasks = [places[start : start + _TO_A_TASK] for start in range(0, len(places), _TO_A_TASK)]
    for digests in pool.map(lambda task: [_digest(location) for location in task], tasks):
        yield from digests


def _digest(location: ImageLocation) -> str:
    digest = hashlib.sha256()
    try:
        with opened(location) as source:
            for start in range(0, source.size, _BLOCK):
                digest.update(source.read(start, min(_BLOCK, source.size - start)))
    except OSError as error:
        raise DataError(f"cannot read {location.name}: {error.strerror}; check the path") from error
    return digest.hexdigest()


def _notes_of(root: str) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.abspath(root))).hexdigest()[:24]
    return cache_folder() / f"digests-{name}.json"


def _known(entry: Any, stamp: tuple[int, int] | None) -> str | None:
    """A digest from a note of which nothing is taken for granted."""
    if stamp is None or not isinstance(entry, list) or len(entry) != 3 or tuple(entry[:2]) != stamp:
        return None
    return entry[2] if isinstance(entry[2], str) and len(entry[2]) == 64 else None


def _read(path: Path, root: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            return {}
        content = json.loads(path.read_bytes())
        if content["version"] == _VERSION and content["root"] == root and isinstance(content["files"], dict):
            return content["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        pass
    return {}


def _write(path: Path, root: str, entries: dict[str, Any]) -> None:
    content = json.dumps({"version": _VERSION, "root": os.path.abspath(root), "files": entries}, separators=(",", ":"))
    with suppress(OSError, CheckpointError, UnicodeEncodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content.encode("utf-8")))
