"""What an image file says of itself before it is decoded: format, size, channels and bits.

Read by hand, not by a library: nothing is allocated for the pixels announced, only some bytes of the file are
looked at, and any bytes give either a header or a `HeaderError`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# 16384 x 16384, 0.8 GB in 8 bits: more than any photograph, and little enough to fail in good order.
MOST_PIXELS = 2**28

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_DEFLATE_AT_MOST = 1032  # bytes that one compressed byte can stand for
_LONGEST_LIST = 1 << 16  # chunks, segments or tags before the pixels
_ORIENTATION = 0x0112
_TURNED = range(5, 9)
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


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
        height: of the image as it is decoded, that is, turned as its orientation says.
        width: likewise.
        channels: to a pixel as stored, alpha included; 3 for colours from a palette.
        bits: to a channel; 8 for colours from a palette.
        space: 'gray', 'colour', 'CMYK', or 'other'.
        floating: whether the pixels are floating-point numbers.
        end: bytes that the file must have at least for its pixels; 0 where the header does not tell.
        largest: what stands for full intensity where the file says so itself, as PPM files do; otherwise None.
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

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def depth(self) -> int:
        """Bits to a channel once decoded, 8 or 16."""
        return 16 if self.bits > 8 else 8


def sniff(beginning: bytes) -> str | None:
    """The format that a file's first 12 bytes show, None for none of those that are read."""
    for name, matches in _SIGNATURES.items():
        if matches(beginning):
            return name
    return None


def read_header(source: Source) -> ImageHeader:
    """The header of an image.

    Raises:
        HeaderError: there is none, it is damaged, or the format is not read here.
    """
    if source.size == 0:
        raise HeaderError("the file is empty")
    kind = sniff(source.read(0, 12))
    if kind is None:
        raise HeaderError(f"it is no image, or its format is none of {', '.join(_READERS)}")
    try:
        return _READERS[kind](source)
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        if isinstance(error, HeaderError):
            raise
        raise HeaderError(f"the file is truncated or damaged (its {kind} header is not whole)") from error


def find_fault(header: ImageHeader) -> str | None:
    """Why images of such a header are not read, or None.

    Gray images become three equal channels and alpha is dropped, so both are read; as are palettes. Refused are
    sizes that no memory should be spent on, CMYK (whose colours depend on a profile), and other than 8 or 16 bits:
    floating point, and one bit to a pixel, a mask rather than a photograph. So are PPM files whose full intensity is
    another number than 255 or 65535, which OpenCV would take for these.
    """
    by = f"{header.height}x{header.width}"
    if min(header.size) < 1:
        return f"its header announces {by} pixels; the file is damaged"
    if header.height * header.width > MOST_PIXELS:
        return f"it announces {by} pixels (H x W), allowed are {MOST_PIXELS:,d} in all; cut it into smaller images"
    if header.space == "CMYK":
        return "its pixels are CMYK, allowed are gray and RGB; convert it"
    if header.floating:
        return f"its pixels are float{header.bits}, allowed are 8 or 16 bits; convert it"
    if header.bits == 1:
        return "it has 1 bit to a pixel, allowed are 8 or 16 bits; convert it"
    if header.bits > 16 or (header.format == "JPEG" and header.bits != 8):
        return f"its pixels are of {header.bits} bits, allowed are 8 or 16 bits; convert it"
    if header.largest not in (None, 255, 65535):
        return f"its largest value is {header.largest}, allowed are 255 or 65535; convert it"
    if header.format == "JPEG" and header.channels == 2:
        return "it has 2 channels, allowed are 1 or 3 and an alpha channel; convert it"
    return None


def _png(source: Source) -> ImageHeader:
    length, kind = struct.unpack(">I4s", source.read(8, 8))
    if kind != b"IHDR" or length != 13:
        raise HeaderError("the file is damaged (the PNG does not begin with its header)")
    width, height, bits, colour = struct.unpack(">IIBB", source.read(16, 10))
    if colour not in _PNG_CHANNELS:
        raise HeaderError("the file is damaged (the PNG header names an unknown kind of pixels)")
    stored = (1 if colour == 3 else _PNG_CHANNELS[colour]) * bits
    if height * ((width * stored + 7) // 8) > _DEFLATE_AT_MOST * source.size:
        raise HeaderError(
            f"it announces {height}x{width} pixels (H x W), more than {source.size:,d} bytes can hold; the file is"
            " truncated or made to fill the memory"
        )
    turned = _png_turned(source)
    return ImageHeader(
        "PNG",
        *((width, height) if turned else (height, width)),
        _PNG_CHANNELS[colour],
        8 if colour == 3 else bits,
        "gray" if colour in (0, 4) else "colour",
    )


def _png_turned(source: Source) -> bool:
    """Looks for the orientation before the pixels, and among the last bytes, where it may stand as well."""
    start = 33
    for _ in range(_LONGEST_LIST):
        length, kind = struct.unpack(">I4s", source.read(start, 8))
        if kind == b"eXIf":
            return _exif_turned(source.read(start + 8, min(length, 1 << 16)))
        if kind in (b"IDAT", b"IEND"):
            break
        start += 12 + length
    tail = source.read(max(source.size - 1024, 0), 1024)
    late = tail.rfind(b"eXIf")
    return late > 0 and _exif_turned(tail[late + 4 :])


def _jpeg(source: Source) -> ImageHeader:
    start, turned, header = 2, False, None
    for _ in range(_LONGEST_LIST):
        marker = source.read(start, 4)
        if marker[0] != 0xFF:
            raise HeaderError("the file is damaged (no marker where a JPEG must have one)")
        if marker[1] == 0xFF:  # padding
            start += 1
            continue
        if 0xD0 <= marker[1] <= 0xD8 or marker[1] == 0x01:  # markers without content
            start += 2
            continue
        (length,) = struct.unpack(">H", marker[2:4])
        if marker[1] == 0xDA:
            if header is None:
                break
            return header if not turned else _turn(header)
        if marker[1] == 0xE1 and source.read(start + 4, 6) == b"Exif\0\0" and not turned:
            turned = _exif_turned(source.read(start + 10, length - 8))
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", source.read(start + 4, 6))
            space = {1: "gray", 3: "colour", 4: "CMYK"}.get(channels, "other")
            header = ImageHeader("JPEG", height, width, channels, bits, space)
        start += 2 + max(length, 2)
    raise HeaderError("the file is truncated or damaged (the JPEG has no frame header)")


def _turn(header: ImageHeader) -> ImageHeader:
    return ImageHeader(header.format, header.width, header.height, header.channels, header.bits, header.space)


def _bmp(source: Source) -> ImageHeader:
    pixels, length = struct.unpack("<II", source.read(10, 8))
    if length == 12:
        width, height, _, bits = struct.unpack("<HHHH", source.read(18, 8))
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack("<iiHHI", source.read(18, 16))
    width, height = abs(width), abs(height)
    whole = pixels + height * ((width * bits + 31) // 32 * 4) if compression in (0, 3) else 0
    return ImageHeader("BMP", height, width, 4 if bits == 32 else 3, 8, "colour", end=whole)


def _webp(source: Source) -> ImageHeader:
    length, kind = struct.unpack("<4xI4x4s", source.read(0, 16))
    body = source.read(20, 10)
    if kind == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        alpha = bool(body[0] & 0x10)
        if body[0] & 0x08 and _webp_turned(source):
            width, height = height, width
    elif kind == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        width, height, alpha = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, bool(packed >> 28 & 1)
    elif kind == b"VP8 ":
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", body[6:10]))
        alpha = False
    else:
        raise HeaderError("the file is damaged (the WebP does not begin with an image)")
    if len(body) < 10:
        raise HeaderError("the file is truncated (the WebP ends in its header)")
    return ImageHeader("WebP", height, width, 4 if alpha else 3, 8, "colour", end=8 + length)


def _webp_turned(source: Source) -> bool:
    start = 12
    for _ in range(_LONGEST_LIST):
        beginning = source.read(start, 8)
        if len(beginning) < 8:
            break
        kind, length = struct.unpack("<4sI", beginning)
        if kind == b"EXIF":
            return _exif_turned(source.read(start + 8, min(length, 1 << 16)).removeprefix(b"Exif\0\0"))
        start += 8 + length + length % 2
    return False


def _ppm(source: Source) -> ImageHeader:
    beginning = source.read(0, 4096)
    variant = beginning[1] - ord("0")
    words: list[int] = []
    at = 2
    while len(words) < (2 if variant in (1, 4) else 3):
        if beginning[at : at + 1] == b"#":
            at = beginning.index(b"\n", at)
        elif beginning[at : at + 1].isspace():
            at += 1
        else:
            end = at
            while beginning[end : end + 1].isdigit():
                end += 1
            words.append(int(beginning[at : min(end, at + 12)]))
            at = end
    width, height, largest = (*words, 1)[:3]
    bits = 1 if variant in (1, 4) else 8 if largest < 256 else 16
    channels = 3 if variant in (3, 6) else 1
    row = (width + 7) // 8 if variant == 4 else width * channels * max(bits // 8, 1)
    # Written as text, each number takes a character at least; whole files are told by decoding.
    whole = at + 1 + height * row if variant >= 4 else 0
    space = "colour" if channels == 3 else "gray"
    return ImageHeader("PPM", height, width, channels, bits, space, end=whole, largest=None if bits == 1 else largest)


def _tiff(source: Source) -> ImageHeader:
    tags = _tiff_tags(source)
    if not (tags.get(256) and tags.get(257)):
        raise HeaderError("the file is truncated or damaged (the TIFF names no size)")

    def first(tag: int, default: int) -> int:
        return tags[tag][0] if tags.get(tag) else default

    width, height = first(256, 0), first(257, 0)
    if first(_ORIENTATION, 1) in _TURNED:
        width, height = height, width
    photometric = first(262, 1)
    channels = 3 if photometric == 3 else first(277, 1)
    bits = 8 if photometric == 3 else first(258, 1)
    space = {0: "gray", 1: "gray", 5: "CMYK"}.get(photometric, "colour")
    starts, lengths = (tags.get(273) or tags.get(324) or []), (tags.get(279) or tags.get(325) or [])
    whole = max((start + length for start, length in zip(starts, lengths, strict=False)), default=0)
    return ImageHeader("TIFF", height, width, channels, bits, space, first(339, 1) == 3, whole)


def _tiff_tags(source: Source) -> dict[int, list[int]]:
    """The whole-number tags of the first directory of a TIFF file, or of what is stored in its form."""
    beginning = source.read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(beginning[:2])
    if order is None:
        raise HeaderError("the file is damaged (the TIFF names no order of bytes)")
    big = struct.unpack(order + "H", beginning[2:4])[0] == 43
    (start,) = struct.unpack(order + "Q", beginning[8:16]) if big else struct.unpack(order + "I", beginning[4:8])
    counted, entry = ("Q", "HHQ8s") if big else ("H", "HHI4s")
    (count,) = struct.unpack(order + counted, source.read(start, struct.calcsize(order + counted)))
    entries = source.read(
        start + struct.calcsize(order + counted), min(count, _LONGEST_LIST) * struct.calcsize(order + entry)
    )
    tags: dict[int, list[int]] = {}
    for tag, kind, number, value in struct.iter_unpack(order + entry, entries):
        if kind not in _TIFF_INTEGERS or number > source.size:
            continue
        length = number * _TIFF_SIZES[kind]
        if length > len(value):
            (place,) = struct.unpack(order + ("Q" if big else "I"), value)
            value = source.read(place, length)
        tags[tag] = [found for (found,) in struct.iter_unpack(order + _TIFF_INTEGERS[kind], value[:length])]
    return tags


def _exif_turned(block: bytes) -> bool:
    """Whether an Exif block says that rows are columns; what is no such block says nothing."""
    try:
        return _tiff_tags(Content(block)).get(_ORIENTATION, [1])[0] in _TURNED
    except (HeaderError, struct.error, IndexError, OverflowError):
        return False


_SIGNATURES: dict[str, Callable[[bytes], bool]] = {
    "PNG": lambda start: start[:8] == _PNG,
    "JPEG": lambda start: start[:3] == b"\xff\xd8\xff",
    "BMP": lambda start: start[:2] == b"BM",
    "TIFF": lambda start: start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "WebP": lambda start: start[:4] == b"RIFF" and start[8:12] == b"WEBP",
    "PPM": lambda start: start[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6") and start[2:3].isspace(),
}
_READERS: dict[str, Callable[[Source], ImageHeader]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "BMP": _bmp,
    "TIFF": _tiff,
    "WebP": _webp,
    "PPM": _ppm,
}
