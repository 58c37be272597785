"""Stored images, opened before it is known which part of them is wanted.

A dataset opens an image, reads its size, chooses a window and asks for that. Files that must be decoded whole
are; of uncompressed images, binary PPM, only the window is read.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import Any, NamedTuple, Protocol

import numpy as np

from basicsr.files.file_client import FileClient
from basicsr.files.image_headers import FOLLOWING, is_alone_ppm
from basicsr.files.images import imfrombytes
from basicsr.files.ppm_files import LONGEST_HEADER, PpmHeader, pixels_of, read_ppm_header
from basicsr.files.regular_files import open_regular
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.text import printable


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
        chosen: whether a list names them, so that others in the folder are left out on purpose.
    """

    files: Mapping[str, Sequence[str]]
    roots: Mapping[str, str]
    lmdb: bool
    scale: int = 1
    exact: bool = False
    gt_patch_size: int | None = None
    chosen: bool = False

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


class PpmImage(ABC):
    """An uncompressed image, of which the rows of a window are read.

    Args:
        header: what it begins with.
        source: what to call it in errors.
    """

    def __init__(self, header: PpmHeader, source: str) -> None:
        self._header, self._source = header, source

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self._header.height, self._header.width

    @property
    def depth(self) -> int:
        """Bits to a channel, 8 or 16."""
        return self._header.depth

    def read(self, window: Window | None = None) -> np.ndarray:
        """The pixels of `window`, or all: (H, W, 3), BGR, uint8 or uint16; memory of their own, in the order RGB.

        Raises:
            DataError: they cannot be read, or are no longer there.
        """
        header = self._header
        top, left, height, width = window or (0, 0, header.height, header.width)
        bottom = min(top + height, header.height)
        return self._pixels(slice(header.start + top * header.row, header.start + bottom * header.row), left, width)

    @abstractmethod
    def _pixels(self, rows: slice, left: int, width: int) -> np.ndarray:
        """Some columns of whole rows, which are these bytes of the file."""

    def _cut(self, content: bytes | memoryview, rows: slice, left: int, width: int) -> np.ndarray:
        if len(content) != rows.stop - rows.start:
            raise DataError(f"cannot read image {self._source}: it was cut short while in use; copy the file again")
        return pixels_of(content, self._header, left, width)


class PpmFile(PpmImage):
    """One in a file. Its rows are read, not mapped: mapped ones would end the process where the file is cut short.

    Args:
        file: open for reading; closed when this object goes.
        header: what it begins with.
        source: what to call it in errors.
    """

    def __init__(self, file: FileIO, header: PpmHeader, source: str) -> None:
        super().__init__(header, source)
        self._file = file

    def __del__(self) -> None:
        self._file.close()

    def _pixels(self, rows: slice, left: int, width: int) -> np.ndarray:
        try:
            self._file.seek(rows.start)
            content = self._file.read(rows.stop - rows.start)
        except OSError as error:
            raise DataError(f"cannot read image {self._source}: {error.strerror}; check the disk") from error
        return self._cut(content, rows, left, width)


class PpmValue(PpmImage):
    """One in an LMDB database, copied out of the database's memory.

    Args:
        view: gives the value for the length of a block.
        header: what it begins with.
        source: what to call it in errors.
    """

    def __init__(
        self, view: Callable[[], AbstractContextManager[bytes | memoryview]], header: PpmHeader, source: str
    ) -> None:
        super().__init__(header, source)
        self._view = view

    def _pixels(self, rows: slice, left: int, width: int) -> np.ndarray:
        with self._view() as value:
            return self._cut(value[rows], rows, left, width)


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
        name = self.name(path, key)
        if self._databases:
            return self._opened_value(path, key, name)
        if path[-4:].lower() == ".ppm" and (image := _opened_ppm(path, name)):
            return image
        return DecodedImage(imfrombytes(self._client.get(path, key), source=name))

    def _opened_value(self, path: str, key: str, name: str) -> StoredImage:
        view = partial(self._client.view, path, key)
        with view() as value:
            header = read_ppm_header(bytes(value[:LONGEST_HEADER]), len(value))
            if header and is_alone_ppm(bytes(value[header.end : header.end + FOLLOWING])):
                return PpmValue(view, header, name)
            content = bytes(value)
        return DecodedImage(imfrombytes(content, source=name))

    def name(self, path: str, key: str) -> str:
        """What to call an image of root `key` in errors: its path, or the database and the key in it."""
        return name_of(path, self._databases.get(key))


def _opened_ppm(path: str, name: str) -> PpmFile | None:
    """A file whose windows can be read; None where it must be decoded whole, or refused."""
    with suppress(OSError, ValueError), ExitStack() as closing:  # ValueError: a name with a NUL byte
        file = closing.enter_context(open_regular(path))
        header = read_ppm_header(file.read(LONGEST_HEADER), os.fstat(file.fileno()).st_size)
        if header and _is_alone_in(file, header):
            closing.pop_all()
            return PpmFile(file, header, name)
    return None


def _is_alone_in(file: FileIO, header: PpmHeader) -> bool:
    file.seek(header.end)
    return is_alone_ppm(file.read(FOLLOWING))


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
