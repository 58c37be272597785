"""Remembers what was found out about images, so that the next start needs to look at changed ones only.

Notes lie in BASICSR_CACHE, by default ${XDG_CACHE_HOME:-~/.cache}/basicsr, a file for each folder or database and each
rank. They are a convenience: what cannot be read or written is left out, what is not as expected counts as unknown,
and a false note about a good image can hide nothing for longer than until it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from basicsr.data.checks.inspection import Finding
from basicsr.files.atomic_files import write_atomically
from basicsr.files.image_headers import ImageHeader
from basicsr.utils.errors import CheckpointError
from basicsr.utils.text import printable

# Changes whenever another verdict on the same file becomes possible.
VERSION = 4

_LARGEST_FILE = 1 << 29
_LONGEST_FAULT = 500

Stamp = tuple[int, int]


class CheckCache:
    """The notes about the images of one folder or database.

    Args:
        root: the folder or database.
        rank: this process's number; each writes a file of its own and reads those of all.
        world_size: number of processes.
    """

    def __init__(self, root: str, rank: int, world_size: int) -> None:
        self._root = os.path.abspath(root)
        digest = hashlib.sha256(os.fsencode(self._root)).hexdigest()[:24]
        self._folder = cache_folder()
        self._path = self._folder / f"images-{digest}-{rank}of{world_size}.json"
        self._entries: dict[str, Any] = {}
        with suppress(OSError):
            for path in sorted(self._folder.glob(f"images-{digest}-*.json")):
                self._entries.update(_read(path, self._root))

    def find(self, name: str, stamp: Stamp, decoded: bool) -> Finding | None:
        """What is known of an image, if it has not changed since.

        Args:
            name: of the image, relative to the root.
            stamp: size and time of its file, or of the database's.
            decoded: whether only what decoding showed is enough.
        """
        entry = self._entries.get(name)
        if not isinstance(entry, list):
            return None
        try:
            size, time, was_decoded, fault, header, colourful = entry
            if (size, time) != stamp or (decoded and not was_decoded):
                return None
            return _checked(fault, header, colourful)
        except (TypeError, ValueError):
            return None

    def save(self, findings: Mapping[str, tuple[Stamp, Finding]], decoded: bool) -> None:
        """Writes notes; where that is not possible, nothing happens.

        Args:
            findings: by the image's name relative to the root.
            decoded: whether the images were decoded for them.
        """
        entries = {
            name: [*stamp, decoded, finding.fault, finding.header and _as_list(finding.header), finding.colourful]
            for name, (stamp, finding) in findings.items()
        }
        content = json.dumps({"version": VERSION, "root": self._root, "images": entries}, separators=(",", ":"))
        with suppress(OSError, CheckpointError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, lambda file: file.write(content.encode("utf-8")))


def cache_folder() -> Path:
    """$BASICSR_CACHE, else ${XDG_CACHE_HOME:-~/.cache}/basicsr; whether it exists is another matter."""
    if own := os.environ.get("BASICSR_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "basicsr"


def _read(path: Path, root: str) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
            return {}
        content = json.loads(path.read_bytes())
        if content["version"] == VERSION and content["root"] == root and isinstance(content["images"], dict):
            return content["images"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError):
        pass
    return {}


def _as_list(header: ImageHeader) -> list[Any]:
    return [header.format, header.height, header.width, header.channels, header.bits, header.space]


def _checked(fault: Any, header: Any, colourful: Any) -> Finding | None:
    """A finding from a note of which nothing is taken for granted."""
    if isinstance(fault, str) and fault:
        return Finding(printable(fault[:_LONGEST_FAULT]))
    kind, height, width, channels, bits, space = header
    numbers = all(type(number) is int and 0 < number < 2**31 for number in (height, width, channels, bits))
    if fault is not None or not numbers or not isinstance(kind, str) or not isinstance(space, str):
        return None
    if colourful is not None and not isinstance(colourful, bool):
        return None
    return Finding(None, ImageHeader(kind, height, width, channels, bits, space), colourful)
