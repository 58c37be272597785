"""What tells one set of images from another, and notes on images, so that only changed ones are read at a start.

Notes lie in BASICSR_CACHE, by default ${XDG_CACHE_HOME:-~/.cache}/basicsr, in a file for each folder or database and
each rank. They are a convenience: unreadable files are ignored, an entry that makes no sense counts as unknown, and a
false note about a good image hides nothing for longer than until it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from basicsr.data.mixing import SeveralSets
from basicsr.data.storage import ImageRoot, Stamp, is_weighted, stamp_of, stored_images
from basicsr.files.atomic_files import write_atomically
from basicsr.utils.errors import CheckpointError, DataError

# Changes whenever another verdict on the same file becomes possible.
VERSION = 4

_LARGEST_FILE = 1 << 29
_THREADS = 16
_TO_A_TASK = 64
_DIGESTS_TO_A_TASK = 16
_BLOCK = 1 << 20

Bar = Callable[[Iterator[Any], int], Iterator[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")


def results_with_notes(
    kind: str,
    root: ImageRoot,
    names: Sequence[str],
    look: Callable[[Executor, list[str]], Iterable[Result]],
    to_note: Callable[[Result], list[Any]],
    from_note: Callable[[list[Any]], Result | None],
    rank: int = 0,
    world_size: int = 1,
) -> list[Result]:
    """The results for a root's images; `look` finds those that no note of this kind knows or whose files have changed.

    `from_note` returns None or raises for notes of no use.
    """
    path = "\n".join([*map(os.path.abspath, root.folders), *([root.variant] if root.variant else [])])
    head = {"version": VERSION, "root": path}
    prefix = f"{kind}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}"
    own_file = cache_folder() / f"{prefix}-{rank}of{world_size}.json"
    notes: dict[str, Any] = {}
    with suppress(OSError):
        for file in sorted(own_file.parent.glob(f"{prefix}-*.json")):
            notes.update(_read_notes(file, head))

    def known(key: str, stamp: Stamp | None) -> Result | None:
        note = notes.get(key)
        if stamp is None or not isinstance(note, list) or note[:2] != list(stamp):
            return None
        try:
            return from_note(note[2:])
        except (TypeError, ValueError):
            return None

    files, keys = [root.file(name) for name in names], [root.relative(name) for name in names]
    unique = list(dict.fromkeys(files))
    pool = ThreadPoolExecutor(_THREADS)
    try:
        # Stamps are taken before looking: what changes meanwhile is looked at again next time.
        stamps = dict(zip(unique, in_tasks(pool, stamp_of, unique), strict=True))
        results = [known(key, stamps[file]) for key, file in zip(keys, files, strict=True)]
        waiting = [name for name, result in zip(names, results, strict=True) if result is None]
        found = iter(list(look(pool, waiting)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # after Ctrl+C only begun tasks are waited for
    complete = [next(found) if result is None else result for result in results]
    if waiting:
        noted = zip(keys, map(stamps.get, files), complete, strict=True)
        entries = {key: [*stamp, *to_note(result)] for key, stamp, result in noted if stamp is not None}
        encoded = json.dumps({**head, "images": entries}, separators=(",", ":")).encode("utf-8")
        with suppress(OSError, CheckpointError):
            own_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(own_file, lambda file: file.write(encoded))
    return complete


def _read_notes(file: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        if file.is_file() and file.stat().st_size <= _LARGEST_FILE:
            content = json.loads(file.read_bytes())
            if {name: content[name] for name in head} == head and isinstance(content["images"], dict):
                return content["images"]
    return {}


def cache_folder() -> Path:
    """$BASICSR_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/basicsr; it need not exist."""
    if own := os.environ.get("BASICSR_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "basicsr"


def in_tasks(
    pool: Executor, function: Callable[[Item], Result], items: Sequence[Item], size: int = _TO_A_TASK
) -> Iterator[Result]:
    """The results of a function, in order; threads or processes take `size` items at a time."""
    # Tasks are handed over here, not with the first result: processes must begin before a bar starts its thread.
    tasks = [items[start : start + size] for start in range(0, len(items), size)]
    return chain.from_iterable(pool.map(partial(_each, function), tasks))


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What tells one list of images from another, wherever it lies, as files or in LMDB.

    `images` is their number; `names` the SHA-256 of the HR images' names in the order of use, relative to their folder
    and without ending, or None if the dataset names none; `weights` those of its folders, `none` if all are 1; `pixels
    of image 0 (gt)` and so on the SHA-256 of the first, middle and last image of each kind, decoded, or None of one
    that cannot be read. Of several sets, what is of the second and later ones begins with their names.
    """
    if isinstance(dataset, SeveralSets):
        first, *others = ((name, fingerprint(one)) for name, one in dataset.sets.items())
        return {**first[1], **{f"{name}: {what}": value for name, found in others for what, value in found.items()}}
    stored = stored_images(dataset)
    if stored is None:
        return {"images": len(dataset), "names": None}
    role, files = next(iter(stored.files.items()))
    digest = hashlib.sha256()
    for file in files:
        digest.update(stored.roots[role].key(file).encode("utf-8", "surrogateescape") + b"\n")
    found: dict[str, Any] = {"images": len(files), "names": digest.hexdigest()}
    weights = [f"{share.weight:g} of {share.count}" for share in stored.shares]
    found["weights"] = ", ".join(weights) if is_weighted(stored.shares) else "none"
    for role, files in stored.files.items():
        for index in sorted({0, len(files) // 2, len(files) - 1}):
            try:
                pixels = stored.roots[role].open(files[index]).read()
                content = f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()
                found[f"pixels of image {index} ({role})"] = hashlib.sha256(content).hexdigest()
            except DataError:
                found[f"pixels of image {index} ({role})"] = None
    return found


def files_digest(dataset: Any) -> str | None:
    """SHA-256 of all files' names and sizes of a dataset; None for datasets that name no images."""
    if (stored := stored_images(dataset)) is None:
        return None
    digest = hashlib.sha256()
    for role, names in stored.files.items():
        root = stored.roots[role]
        for file in dict.fromkeys(map(root.file, names)):
            size, _ = stamp_of(file) or (-1, 0)  # the check of all images says what is wrong with it
            name = root.below(file)
            digest.update(f"{role} {size} {name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def digests_of(names: Sequence[str], root: ImageRoot, bar: Bar = lambda items, total: items) -> list[str]:
    """SHA-256 of a root's images, read again only if changed; raises DataError if one cannot be read."""

    def read(pool: Executor, waiting: list[str]) -> Iterator[str]:
        return bar(in_tasks(pool, partial(_digest, root), waiting, _DIGESTS_TO_A_TASK), len(waiting))

    def from_note(note: list[Any]) -> str | None:
        (digest,) = note
        return digest if isinstance(digest, str) and len(digest) == 64 else None

    return results_with_notes("digests", root, names, read, lambda digest: [digest], from_note)


def _digest(root: ImageRoot, name: str) -> str:
    digest = hashlib.sha256()
    try:
        with root.opened(name) as source:
            for start in range(0, source.size, _BLOCK):
                digest.update(source.read(start, min(_BLOCK, source.size - start)))
    except OSError as error:
        raise DataError(f"cannot read {root.label(name)}: {error.strerror}; check the path") from error
    return digest.hexdigest()
