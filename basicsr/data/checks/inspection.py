"""Looks at stored images without decoding them: a file's header and its end, or those of a value in LMDB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from basicsr.files.file_client import FileClient, stored_value
from basicsr.files.image_headers import MOST_PIXELS, Content, HeaderError, ImageHeader, Source, find_fault, read_header
from basicsr.files.images import find_damage, imfrombytes
from basicsr.files.regular_files import open_regular
from basicsr.utils.errors import DataError

_AGAIN = "copy or download the file again"
_FIRST_BYTES = 4096
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"
# Channels of a colourful image are on average further apart than those of a gray one that was saved as a JPEG.
_COLOURFUL = 8 / 255


class ImageLocation(NamedTuple):
    """Where an image lies: a file, or a key of an LMDB database."""

    name: str
    database: str | None = None


class Finding(NamedTuple):
    """What was found out about an image.

    Attributes:
        fault: why it cannot be used, None if it can.
        header: what it announces; None where there is a fault.
        colourful: whether its colours are more than gray; None where it was not decoded.
    """

    fault: str | None
    header: ImageHeader | None = None
    colourful: bool | None = None


class File:
    """An open file as a source; its first bytes are read at once.

    Raises:
        OSError: it cannot be opened or read, or is no file.
    """

    def __init__(self, path: str) -> None:
        self._file = open_regular(path)
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self._first = self._file.read(_FIRST_BYTES)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end."""
        if offset + length <= len(self._first) or offset >= self.size:
            return self._first[offset : offset + length]
        self._file.seek(offset)
        return self._file.read(length)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@contextmanager
def opened(location: ImageLocation) -> Iterator[Source]:
    """The image as a source, for the length of the block.

    Raises:
        OSError: the file cannot be opened.
        DataError: the database or the key cannot.
    """
    if location.database is not None:
        with stored_value(location.database, location.name) as value:
            yield Content(value)
        return
    file = File(location.name)
    try:
        yield file
    finally:
        file.close()


def content_of(location: ImageLocation) -> bytes:
    """All bytes of an image; raises DataError where they cannot be read."""
    if location.database is None:
        return FileClient().get(location.name)
    with stored_value(location.database, location.name) as value:
        return bytes(value)


def examine(location: ImageLocation, decode: bool = False, most_pixels: int = MOST_PIXELS) -> Finding:
    """What can be said of an image from its header and its end, or with `decode` from all of it.

    A whole file is read only where its end does not show whether it is complete: where bytes follow the end of a PNG
    or JPEG file, or pixels are stored in a way that tells no length.
    """
    try:
        with opened(location) as source:
            header = read_header(source)
            if fault := find_fault(header, most_pixels):
                return Finding(fault)
            ends = _ends_well(source, header)
        if decode:
            return _decoded(location, header)
        if not ends and (fault := _find_damage(location, header, most_pixels)):
            return Finding(fault)
        return Finding(None, header)
    except HeaderError as error:
        return Finding(f"{error}; {_AGAIN}")
    except OSError as error:
        return Finding(f"{error.strerror or error}; check the path")
    except DataError as error:
        return Finding(without_name(str(error), "image"))


def decoded(location: ImageLocation) -> np.ndarray:
    """The pixels, (H, W, 3) BGR; raises DataError where decoding fails."""
    return imfrombytes(content_of(location), source=location.name)


def without_name(message: str, source: str) -> str:
    """A message about reading an image without the words that say which."""
    return message.removeprefix(f"cannot read image {source}: ").removeprefix(f"cannot read {source}: ")


def _ends_well(source: Source, header: ImageHeader) -> bool:
    """Whether the end of the file shows that all of it is there; False where that is not clear."""
    if header.format == "PNG":
        return source.read(source.size - len(_PNG_END), len(_PNG_END)) == _PNG_END
    if header.format == "JPEG":
        return source.read(source.size - len(_JPEG_END), len(_JPEG_END)) == _JPEG_END
    return 0 < header.end <= source.size


def _find_damage(location: ImageLocation, header: ImageHeader, most_pixels: int) -> str | None:
    content = content_of(location)
    if header.format in ("PNG", "JPEG"):
        damage = find_damage(content)
        return damage and f"{damage}; {_AGAIN}"
    try:
        imfrombytes(content, most_pixels=most_pixels)
    except DataError as error:
        if len(content) < header.end:
            return f"the file is truncated ({len(content):,d} bytes of {header.end:,d}); {_AGAIN}"
        return without_name(str(error), "image")
    return None


def _decoded(location: ImageLocation, header: ImageHeader) -> Finding:
    return Finding(None, header, is_colourful(imfrombytes(content_of(location))))


def is_colourful(pixels: np.ndarray) -> bool:
    """Whether colours, (H, W, 3) uint8 or uint16, are more than gray."""
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    spread = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
    return bool(spread.mean() > _COLOURFUL * 255)


def stamp_of(path: str | Path) -> tuple[int, int] | None:
    """Size and time of the last change in nanoseconds; None where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
