"""Stored images, opened before it is known which part of them is wanted.

A dataset opens an image, reads its size, chooses a window and asks for that. Files that must be decoded whole
are; a storage that can decode a window alone offers another class with the same attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from basicsr.utils.errors import OptionsError
from basicsr.utils.file_client import FileClient
from basicsr.utils.img_util import imfrombytes
from basicsr.utils.name_lists import printable


@dataclass(frozen=True)
class StoredImages:
    """Where a dataset's images lie and what they must be like, for those who look at them without loading.

    Attributes:
        files: by role, 'gt' and 'lq' or 'lq' alone: the path, or the key in an LMDB database, of each item's image.
            The first role's names are the dataset's.
        roots: folder or LMDB database of each role.
        lmdb: whether the roots are databases.
        scale: how many times larger HR is than LR.
        exact: whether HR must be just that, as in training; otherwise pixels may be left over below and right.
        gt_patch_size: side of the HR patches that must fit in; None for none.
    """

    files: Mapping[str, Sequence[str]]
    roots: Mapping[str, str]
    lmdb: bool
    scale: int = 1
    exact: bool = False
    gt_patch_size: int | None = None

    def name(self, role: str, index: int) -> str:
        """What to call an image in errors."""
        return name_of(self.files[role][index], self.roots[role] if self.lmdb else None)


class Window(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


class StoredImage(Protocol):
    """An opened image."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    @property
    def depth(self) -> int:
        """Bits to a channel, 8 or 16."""
        ...

    def read(self, window: Window | None = None) -> np.ndarray:
        """The pixels of `window`, or all: (H, W, 3), BGR, uint8 or uint16."""
        ...


class DecodedImage:
    """An image decoded whole when it was opened.

    Args:
        pixels: (H, W, 3), BGR.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self._pixels.shape[0], self._pixels.shape[1]

    @property
    def depth(self) -> int:
        """Bits to a channel, 8 or 16."""
        return self._pixels.dtype.itemsize * 8

    def read(self, window: Window | None = None) -> np.ndarray:
        """The pixels of `window`, or all: (H, W, 3), BGR, uint8 or uint16; not to be written to."""
        if window is None:
            return self._pixels
        rows = slice(window.top, window.top + window.height)
        return self._pixels[rows, window.left : window.left + window.width]


class ImageStorage:
    """Images of one or more roots, each root called by a key such as 'lq'.

    Args:
        io_backend: `type` ('disk' or 'lmdb') and the backend's options.
        roots: folder or LMDB database of each key.

    Raises:
        OptionsError: `io_backend` is none of these.
    """

    def __init__(self, io_backend: Mapping[str, Any], roots: Mapping[str, str]) -> None:
        backend = backend_type(io_backend)
        options = {key: value for key, value in io_backend.items() if key != "type"}
        if backend == "lmdb":
            options = {**options, "db_paths": list(roots.values()), "client_keys": list(roots)}
        self._client = FileClient(backend, **options)
        self._databases = dict(roots) if backend == "lmdb" else {}

    def open(self, path: str, key: str) -> StoredImage:
        """Opens the image at `path` (on disk) or under the key `path` (LMDB) of root `key`.

        Raises:
            DataError: there is none, or it cannot be decoded.
        """
        return DecodedImage(imfrombytes(self._client.get(path, key), source=self.name(path, key)))

    def name(self, path: str, key: str) -> str:
        """What to call an image of root `key` in errors: its path, or the database and the key in it."""
        return name_of(path, self._databases.get(key))


def name_of(path: str, database: str | None) -> str:
    """What to call an image in errors: its path, or the database and the key in it; always one line."""
    return printable(path if database is None else f"{database} (key '{path}')")


def backend_type(io_backend: Mapping[str, Any]) -> str:
    """`io_backend['type']`; raises OptionsError where it is missing."""
    if "type" not in io_backend:
        raise OptionsError("io_backend needs a 'type', disk or lmdb")
    return io_backend["type"]


def check_roots(roots: Sequence[str], backend: str) -> None:
    """Raises OptionsError where the paths' names do not fit the kind of storage."""
    for root in roots:
        if (backend == "lmdb") != root.rstrip("/\\").endswith(".lmdb"):
            needed = "must end in .lmdb" if backend == "lmdb" else "is an LMDB database"
            raise OptionsError(f"{root} {needed} for io_backend type {backend}; change the path or the type")
