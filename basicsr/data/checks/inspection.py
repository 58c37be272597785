"""Looks at a stored image without decoding it: at its header and its end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from basicsr.data.storage import ImageRoot
from basicsr.files.header_readers import read_header
from basicsr.files.image_headers import MOST_PIXELS, HeaderError, ImageHeader, Source, find_fault
from basicsr.files.images import AGAIN, find_damage, imfrombytes
from basicsr.utils.errors import DataError

_ENDS = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
# Channels of a colourful image are on average further apart than those of a gray one that was saved as a JPEG.
_COLOURFUL = 8 / 255
_ANY_ROOT = ImageRoot()


class Inspection(NamedTuple):
    """Why an image cannot be used; else its header, and if it was decoded, whether its colours are more than gray."""

    fault: str | None
    header: ImageHeader | None = None
    colourful: bool | None = None


def examine(
    name: str, root: ImageRoot = _ANY_ROOT, *, decode: bool = False, most_pixels: int = MOST_PIXELS
) -> Inspection:
    """Inspects an image by its header and end, and reads all of it with `decode` or if the end tells too little."""
    try:
        with root.opened(name) as source:
            header = read_header(source)
            if fault := find_fault(header, most_pixels):
                return Inspection(fault)
            complete = _is_complete(source, header)
        if decode:
            return Inspection(None, header, is_colourful(imfrombytes(root.content(name))))
        if not complete and (fault := _find_damage(root.content(name), header, most_pixels)):
            return Inspection(fault)
        return Inspection(None, header)
    except HeaderError as error:
        return Inspection(f"{error}; {AGAIN}")
    except OSError as error:
        return Inspection(f"{error.strerror or error}; check the path")
    except DataError as error:
        return Inspection(without_name(str(error), "image"))


def without_name(message: str, label: str) -> str:
    """A message about reading an image without the words that say which."""
    return message.removeprefix(f"cannot read image {label}: ").removeprefix(f"cannot read {label}: ")


def is_colourful(pixels: np.ndarray) -> bool:
    """Whether colours, (H, W, 3) uint8 or uint16, are more than gray."""
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    spread = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
    return bool(spread.mean() > _COLOURFUL * 255)


def _is_complete(source: Source, header: ImageHeader) -> bool:
    """Whether the end of the file shows that all of it is there; False where that is not clear."""
    if end := _ENDS.get(header.format):
        return source.read(source.size - len(end), len(end)) == end
    return 0 < header.end <= source.size


def _find_damage(content: bytes, header: ImageHeader, most_pixels: int) -> str | None:
    if header.format in ("PNG", "JPEG"):
        damage = find_damage(content)
        return damage and f"{damage}; {AGAIN}"
    try:
        imfrombytes(content, most_pixels=most_pixels)
    except DataError as error:
        if len(content) < header.end:
            return f"the file is truncated ({len(content):,d} bytes of {header.end:,d}); {AGAIN}"
        return without_name(str(error), "image")
    return None
