"""Where the beginning of an image file is read from, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class HeaderError(ValueError):
    """Why the beginning of a file is no header of an image, in words without the file's name."""


class Source(Protocol):
    """Some bytes, of which parts are asked for."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end."""
        ...


class Content:
    """A source in memory; nothing of it is copied but what is asked for."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._view = memoryview(content)
        self.size = len(self._view)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end."""
        return bytes(self._view[offset : offset + length])


@dataclass(frozen=True)
class ImageHeader:
    """What a file announces.

    Attributes:
        format: 'PNG', 'JPEG', 'BMP', 'TIFF', 'WebP' or 'PPM'.
        height: of the image as it is read, that is, turned upright as `orientation` says.
        width: likewise.
        channels: to a pixel as stored, alpha included; 3 for colours from a palette.
        bits: to a channel; 8 for colours from a palette.
        space: 'gray', 'colour', 'CMYK', or 'other'.
        floating: whether the pixels are floating-point numbers.
        end: bytes that the file must have at least for its pixels; 0 where the header does not tell.
        largest: what stands for full intensity where the file says so itself, as PPM files do; otherwise None.
        orientation: how the stored rows are to be turned, 1 to 8 as in EXIF.
        frames: pictures in the file: of an animation, or pages.
        transparent: of a PNG file without alpha channel, what it says of transparent colours (tRNS), or None.
        oddity: a property for which the pixels are read by nothing here, in words after 'cannot read image NAME: '.
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
        """Height and width of the pixels as they are stored, not turned."""
        return self.size[::-1] if self.orientation in TURNED else self.size

    @property
    def has_alpha(self) -> bool:
        """Whether the file tells how transparent its pixels are."""
        return self.channels in (2, 4) or self.transparent is not None

    @property
    def depth(self) -> int:
        """Bits to a channel once decoded, 8 or 16."""
        return 16 if self.bits > 8 else 8


# The orientations of EXIF that make rows of columns.
TURNED = range(5, 9)
