"""Binary PPM files (P6): uncompressed, so that a rectangle of pixels is read without the rest.

Of 16 bits the higher byte comes first. Only files without comments and of one picture are read here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from basicsr.files.image_headers import MOST_PIXELS

LONGEST_HEADER = 64  # more than any header that is read here
FOLLOWING = 16  # bytes behind the pixels that `is_alone_ppm` looks at

_HEADER = re.compile(rb"P6[ \t-\r]{1,9}([0-9]{1,9})[ \t-\r]{1,9}([0-9]{1,9})[ \t-\r]{1,9}(255|65535)[ \t-\r]")


class PpmHeader(NamedTuple):
    """Size of a PPM file's image, bits to a channel (8 or 16), and bytes before its first pixel."""

    height: int
    width: int
    depth: int
    start: int

    @property
    def row(self) -> int:
        """Bytes to a row."""
        return self.width * 3 * self.depth // 8

    @property
    def end(self) -> int:
        """Bytes up to the end of the last row."""
        return self.start + self.height * self.row


def read_ppm_header(beginning: bytes, size: int) -> PpmHeader | None:
    """The header of a file of `size` bytes whose first `LONGEST_HEADER` are given; None if it is not read here."""
    found = _HEADER.match(beginning)
    if found is None:
        return None
    width, height, largest = map(int, found.groups())
    header = PpmHeader(height, width, 8 if largest == 255 else 16, found.end())
    return header if 0 < height * width <= MOST_PIXELS and header.end <= size else None


def is_alone_ppm(following: bytes) -> bool:
    """Whether the `FOLLOWING` bytes behind a picture's pixels begin no other picture."""
    return re.match(rb"\s*P[1-7]\s", following) is None


def pixels_of(rows: bytes | memoryview, header: PpmHeader, left: int, width: int) -> np.ndarray:
    """A copy of the columns `left` to `left + width` of whole rows: (H, W, 3) BGR, uint8 or uint16, RGB in memory."""
    stored = np.dtype(np.uint8) if header.depth == 8 else np.dtype(">u2")
    pixels = np.frombuffer(rows, stored).reshape(-1, header.width, 3)[:, left : left + width]
    return pixels.astype(stored.newbyteorder("="), order="C")[..., ::-1]


def encode_ppm(img: np.ndarray) -> bytes:
    """An image, (H, W, 3) BGR, uint8 or uint16, as the bytes of a PPM file."""
    height, width, channels = img.shape
    assert channels == 3 and img.dtype in (np.uint8, np.uint16), "a PPM file holds 3 channels of 8 or 16 bits"
    largest = np.iinfo(img.dtype).max
    return b"P6\n%d %d\n%d\n" % (width, height, largest) + img[..., ::-1].astype(img.dtype.newbyteorder(">")).tobytes()
