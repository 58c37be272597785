"""What tells one set of images from another: names, sizes, pixels, and SHA-256 of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any

from basicsr.data.checks.notes import Bar, NoteCache, in_tasks
from basicsr.data.storage import ImageRoot, StoredImages, stamp_of, stored_images
from basicsr.utils.errors import DataError

_BLOCK = 1 << 20
_TO_A_TASK = 16


def fingerprint(dataset: Any) -> dict[str, Any]:
    """What tells one list of images from another, wherever it lies, as files or in LMDB.

    Returns:
        `images`, their number; `names`, the SHA-256 of the HR images' names in the order of use, relative to their
        folder and without ending; `pixels of image 0 (gt)` and so on, that of a few images of each kind, decoded. None
        for datasets that name no images, and for an image that cannot be read.
    """
    stored = stored_images(dataset)
    if stored is None:
        return {"images": len(dataset), "names": None}
    role, files = next(iter(stored.files.items()))
    digest = hashlib.sha256()
    for file in files:
        digest.update(stored.roots[role].key(file).encode("utf-8", "surrogateescape") + b"\n")
    return {"images": len(files), "names": digest.hexdigest(), **_pixels(stored)}


def _pixels(stored: StoredImages) -> dict[str, str | None]:
    """SHA-256 of the first, the middle and the last image of each kind, decoded; None of one that cannot be read."""
    digests: dict[str, str | None] = {}
    for role, files in stored.files.items():
        for index in sorted({0, len(files) // 2, len(files) - 1}):
            try:
                pixels = stored.roots[role].open(files[index]).read()
                content = f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()
                digest = hashlib.sha256(content).hexdigest()
            except DataError:
                digest = None
            digests[f"pixels of image {index} ({role})"] = digest
    return digests


def files_digest(dataset: Any) -> str | None:
    """SHA-256 of all files' names and sizes of a dataset; None for datasets that name no images."""
    if (stored := stored_images(dataset)) is None:
        return None
    digest = hashlib.sha256()
    for role, names in stored.files.items():
        root = stored.roots[role]
        for file in dict.fromkeys(map(root.file, names)):
            size, _ = stamp_of(file) or (-1, 0)  # the check of all images says what is wrong with it
            name = file.removeprefix(root.path).lstrip("/\\")
            digest.update(f"{role} {size} {name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def digests_of(names: Sequence[str], root: ImageRoot, bar: Bar = lambda items, total: items) -> list[str]:
    """SHA-256 of a root's images, read again only if changed; raises DataError if one cannot be read."""

    def read(pool: Executor, waiting: list[str]) -> Iterator[str]:
        return bar(in_tasks(pool, partial(_digest, root), waiting, _TO_A_TASK), len(waiting))

    return NoteCache[str]("digests", root, lambda digest: [digest], _noted).results(names, read)


def _noted(note: list[Any]) -> str | None:
    (digest,) = note
    return digest if isinstance(digest, str) and len(digest) == 64 else None


def _digest(root: ImageRoot, name: str) -> str:
    digest = hashlib.sha256()
    try:
        with root.opened(name) as source:
            for start in range(0, source.size, _BLOCK):
                digest.update(source.read(start, min(_BLOCK, source.size - start)))
    except OSError as error:
        raise DataError(f"cannot read {root.label(name)}: {error.strerror}; check the path") from error
    return digest.hexdigest()
