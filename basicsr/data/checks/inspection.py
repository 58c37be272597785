"""Looks at a stored image without decoding it: at its header and its end."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from basicsr.data.storage import ImageRoot
from basicsr.files.image_headers import MOST_PIXELS, HeaderError, ImageHeader
from basicsr.files.images import AGAIN, find_damage
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
            header = root.header(source)
            length = source.size
            if fault := root.fault(header, most_pixels):
                return Inspection(fault)
            if end := _ENDS.get(header.format):
                complete = source.read(length - len(end), len(end)) == end
            else:
                complete = 0 < header.end <= length
        if decode:
            return Inspection(None, header, is_colourful(root.decoded(root.content(name), "image")))
        if not complete and end:
            damage = find_damage(root.content(name))
            return Inspection(f"{damage}; {AGAIN}") if damage else Inspection(None, header)
        if not complete:
            try:
                root.decoded(root.content(name), "image", most_pixels)
            except DataError:
                if length < header.end:
                    return Inspection(f"the file is truncated ({length:,d} bytes of {header.end:,d}); {AGAIN}")
                raise
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


def is_colourful(pixels: np.ndarray) -> bool | None:
    """Whether colours, (H, W, 3) uint8 or uint16, are more than gray; None of bands."""
    if pixels.shape[2] != 3:
        return None
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    spread = pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2)
    return bool(spread.mean() > _COLOURFUL * 255)
