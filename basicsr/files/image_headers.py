"""What an image file announces before it is decoded, and which images are read at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

# 16384 x 16384, 0.8 GB in 8 bits: more than any photograph, and little enough to fail in good order.
MOST_PIXELS = 2**28
# What scripts/data/extract_subimages.py cuts into squares; no library here decodes more.
MOST_TO_CUT = 2**30
# The orientations of EXIF that make rows of columns.
TURNED = range(5, 9)

_BITS = {"PNG": (2, 4, 8, 16), "JPEG": (8,)}


class HeaderError(ValueError):
    """Why bytes are no header of an image, without the file's name."""


class Source(Protocol):
    """An image's bytes, of which parts are read."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end."""
        ...


class Content:
    """A source in memory; only the parts that are read are copied."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._view = memoryview(content)
        self.size = len(self._view)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end."""
        return bytes(self._view[offset : offset + length])


@dataclass(frozen=True)
class ImageHeader:
    """What a file announces; height and width are those of the upright image.

    Attributes:
        format: 'PNG', 'JPEG', 'BMP', 'TIFF', 'WebP' or 'PPM'.
        channels: as stored, alpha included; 3 for colours from a palette.
        bits: to a channel; 8 for colours from a palette.
        space: 'gray', 'colour', 'CMYK', or 'other'.
        end: bytes that the file must have at least for its pixels; 0 if unknown.
        largest: the value of full intensity, where the file states it, as PPM files do.
        orientation: how the stored rows are to be turned, 1 to 8 as in EXIF.
        frames: pictures in the file: of an animation, or pages.
        transparent: the tRNS chunk of a PNG file without alpha channel.
        oddity: why its pixels cannot be read.
    """

    format: str
    height: int
    width: int
    channels: int
    bits: int
    space: str
    floating: bool = False
    end: int = 0
    largest: int | None = None
    orientation: int = 1
    frames: int = 1
    transparent: bytes | None = None
    oddity: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the stored pixels, not turned."""
        return self.size[::-1] if self.orientation in TURNED else self.size

    @property
    def has_alpha(self) -> bool:
        """Whether the file has transparency."""
        return self.channels in (2, 4) or self.transparent is not None

    @property
    def depth(self) -> int:
        """Bits to a channel once decoded, 8 or 16."""
        return 16 if self.bits > 8 else 8


def find_fault(header: ImageHeader, most_pixels: int = MOST_PIXELS) -> str | None:
    """Why an image is refused, or None: whatever is too large or has no exact meaning in three channels is."""
    size = f"{header.height}x{header.width}"
    pixels = header.height * header.width
    if min(header.size) < 1:
        return f"its header announces {size} pixels; the file is damaged"
    if pixels > most_pixels:
        tool = "scripts/data/extract_subimages.py" if pixels <= MOST_TO_CUT else "an image editor first"
        return f"it announces {size} pixels (H x W), allowed are {most_pixels:,d} in all; cut it into squares by {tool}"
    if header.space == "CMYK":
        return "its pixels are CMYK, allowed are gray and RGB; convert it"
    if header.floating:
        return f"its pixels are float{header.bits}, allowed are 8 or 16 bits; convert it"
    if header.bits == 1:
        return "it has 1 bit to a pixel, allowed are 8 or 16 bits; convert it"
    if header.bits not in _BITS.get(header.format, (8, 16)):
        return f"its pixels are of {header.bits} bits, allowed are 8 or 16 bits; convert it"
    if header.largest not in (None, 255, 65535):
        return f"its largest value is {header.largest}, allowed are 255 or 65535; convert it"
    if header.format == "JPEG" and header.channels not in (1, 3):
        return f"it has {header.channels} channels, allowed are 1 or 3; convert it"
    if header.oddity is not None:
        return header.oddity
    if header.frames > 1:
        kind = "pages" if header.format == "TIFF" else "pictures"
        return f"it holds {header.frames} {kind}, allowed is one; save each in a file of its own"
    return None
