"""Reads the headers of image files in bounded memory: any bytes give either a header or a `HeaderError`."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace

from basicsr.files.image_headers import TURNED, Content, HeaderError, ImageHeader, Source
from basicsr.files.ppm_files import FOLLOWING, is_alone_ppm
from basicsr.files.tiff_headers import orientation_of, read_directory, read_tiff_header

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_DEFLATE_AT_MOST = 1032  # bytes that one compressed byte can stand for
_LONGEST_LIST = 1 << 16  # chunks or segments before the pixels
_LONGEST_EXIF = 1 << 16
_PNG_TAIL = _LONGEST_EXIF + 1024  # bytes at the end where EXIF data may lie
_BMP_MASKS = {0xFF, 0xFF00, 0xFF0000, 0xFF000000}
# How a JPEG file is coded, by its frame marker; only files with the first three, coded as usual, are read.
_JPEG_FRAMES = {
    **dict.fromkeys((0xC0, 0xC1, 0xC2), ""),
    **{0xC3: "without loss", 0xC5: "by differences", 0xC6: "by differences", 0xC7: "by differences"},
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "arithmetically"),
    0xF7: "as JPEG-LS",
}
# How a JPEG file's three components may be sampled, across x down: all that libjpeg-turbo's simple interface takes.
_JPEG_SAMPLINGS = {
    *((luma, "1x1", "1x1") for luma in ("1x1", "2x1", "1x2", "2x2", "4x1", "1x4")),
    *((same, same, same) for same in ("2x1", "1x2", "3x1", "1x3")),
    *(("2x2", chroma, chroma) for chroma in ("2x1", "1x2")),
}


def sniff(beginning: bytes) -> str | None:
    """The image format of a file that begins with these 12 bytes, None if it is not read here."""
    for name, (signature, _) in _FORMATS.items():
        if signature.match(beginning):
            return name
    return None


def read_header(source: Source) -> ImageHeader:
    """The header of an image; raises HeaderError if it is missing, damaged, or of another format."""
    if source.size == 0:
        raise HeaderError("the file is empty")
    kind = sniff(source.read(0, 12))
    if kind is None:
        raise HeaderError(f"it is no image, or its format is none of {', '.join(_FORMATS)}")
    try:
        return _FORMATS[kind][1](source)
    except HeaderError:
        raise
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        raise HeaderError(f"the file is truncated or damaged (its {kind} header is not whole)") from error


def _png(source: Source) -> ImageHeader:
    length, kind, width, height, bits, colour = struct.unpack(">I4sIIBB", source.read(8, 18))
    if kind != b"IHDR" or length != 13:
        raise HeaderError("the file is damaged (the PNG does not begin with its header)")
    if colour not in _PNG_CHANNELS:
        raise HeaderError("the file is damaged (the PNG header names an unknown kind of pixels)")
    stored = (1 if colour == 3 else _PNG_CHANNELS[colour]) * bits
    if height * ((width * stored + 7) // 8) > _DEFLATE_AT_MOST * source.size:
        raise HeaderError(
            f"it announces {height}x{width} pixels (H x W), more than {source.size:,d} bytes can hold; the file is"
            " truncated or made to fill the memory"
        )
    # The chunks before the pixels, where an animation may say that it has another picture than the file's.
    start, frames, begun, orientation, transparent = 33, 0, False, None, None
    for _ in range(_LONGEST_LIST):
        length, kind = struct.unpack(">I4s", source.read(start, 8))
        if kind == b"eXIf":
            orientation = _exif_orientation(source.read(start + 8, min(length, _LONGEST_EXIF)))
        elif kind == b"acTL":
            (frames,) = struct.unpack(">I", source.read(start + 8, 4))
        elif kind == b"fcTL":
            begun = True
        elif kind == b"tRNS":
            transparent = source.read(start + 8, min(length, 256))
        elif kind in (b"IDAT", b"IEND"):
            break
        start += 12 + length
    if orientation is None:
        orientation = _late_orientation(source.read(max(source.size - _PNG_TAIL, start), _PNG_TAIL))
    header = ImageHeader(
        "PNG",
        height,
        width,
        channels=_PNG_CHANNELS[colour],
        bits=8 if colour == 3 else bits,
        space="gray" if colour in (0, 4) else "colour",
        frames=frames + (not begun),
        transparent=transparent,
    )
    return _upright(header, orientation)


def _late_orientation(tail: bytes) -> int:
    at = tail.find(b"eXIf", 4)
    while at >= 0:
        end = at + 4 + int.from_bytes(tail[at - 4 : at], "big")
        if zlib.crc32(tail[at:end]) == int.from_bytes(tail[end : end + 4], "big"):
            return _exif_orientation(tail[at + 4 : end])
        at = tail.find(b"eXIf", at + 4)
    return 1


def _jpeg(source: Source) -> ImageHeader:
    start, header = 2, None
    orientation: int | None = None
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
            return _upright(header, orientation or 1)
        if marker[1] == 0xE1 and orientation is None and source.read(start + 4, 6) == b"Exif\0\0":
            orientation = _exif_orientation(source.read(start + 10, length - 8))
        if marker[1] in _JPEG_FRAMES:
            header = _jpeg_frame(source, start, _JPEG_FRAMES[marker[1]])
        start += 2 + max(length, 2)
    raise HeaderError("the file is truncated or damaged (the JPEG has no frame header)")


def _jpeg_frame(source: Source, start: int, coded: str) -> ImageHeader:
    bits, height, width, channels = struct.unpack(">BHHB", source.read(start + 4, 6))
    space = {1: "gray", 3: "colour", 4: "CMYK"}.get(channels, "other")
    factors = tuple(f"{entry >> 4}x{entry & 15}" for entry in source.read(start + 10, 3 * channels)[1::3])
    oddity = None
    if coded:
        oddity = f"its pixels are coded {coded}, which is not read; save it again"
    elif len(factors) == 3 and factors not in _JPEG_SAMPLINGS:
        oddity = f"its channels are sampled {', '.join(factors)} (across x down), which is not read; save it as PNG"
    return ImageHeader("JPEG", height, width, channels, bits, space, oddity=oddity)


def _bmp(source: Source) -> ImageHeader:
    pixels, length = struct.unpack("<II", source.read(10, 8))
    if length == 12:
        width, height, _, bits = struct.unpack("<HHHH", source.read(18, 8))
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack("<iiHHI", source.read(18, 16))
    width, height = abs(width), abs(height)
    masks: tuple[int, ...] = ()
    if compression == 3:
        masks = struct.unpack("<4I", source.read(54, 16))
        masks = masks if length >= 56 and masks[3] else masks[:3]
    oddity = None
    if compression not in (0, 3):
        oddity = "its pixels are compressed within BMP; save it as PNG"
    elif bits not in (1, 4, 8, 24, 32) or (masks and bits != 32):
        oddity = f"it has {bits} bits to a pixel, allowed in BMP are 8 to a channel or a palette; save it as PNG"
    elif len(set(masks)) != len(masks) or not _BMP_MASKS.issuperset(masks):
        oddity = "its channels have other than 8 bits each; save it as PNG"
    whole = pixels + height * ((width * bits + 31) // 32 * 4)
    if bits <= 8 and _is_gray_palette(source, length, bits):
        return ImageHeader("BMP", height, width, 1, 8, "gray", end=whole, oddity=oddity)
    return ImageHeader("BMP", height, width, 4 if len(masks) == 4 else 3, 8, "colour", end=whole, oddity=oddity)


def _is_gray_palette(source: Source, length: int, bits: int) -> bool:
    """Whether a BMP file's palette holds grays only, as gray is stored."""
    used = struct.unpack("<I", source.read(46, 4))[0] if length >= 40 else 0
    count, size = min(used or 2**bits, 2**bits), 3 if length == 12 else 4
    table = source.read(14 + length, count * size)
    return len(table) == count * size and table[0::size] == table[1::size] == table[2::size]


def _webp(source: Source) -> ImageHeader:
    length, kind = struct.unpack("<4xI4x4s", source.read(0, 16))
    body = source.read(20, 10)
    orientation, frames, alpha = 1, 1, False
    if kind == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        alpha = bool(body[0] & 0x10)
        if body[0] & 0x0A:
            orientation, frames = _webp_chunks(source)
    elif kind == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        width, height, alpha = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, bool(packed >> 28 & 1)
    elif kind == b"VP8 ":
        width, height = (value & 0x3FFF for value in struct.unpack("<HH", body[6:10]))
    else:
        raise HeaderError("the file is damaged (the WebP does not begin with an image)")
    if len(body) < 10:
        raise HeaderError("the file is truncated (the WebP ends in its header)")
    header = ImageHeader("WebP", height, width, 4 if alpha else 3, 8, "colour", end=8 + length, frames=frames)
    return _upright(header, orientation)


def _webp_chunks(source: Source) -> tuple[int, int]:
    """Orientation and number of frames."""
    start, orientation, frames = 12, 1, 0
    for _ in range(_LONGEST_LIST):
        beginning = source.read(start, 8)
        if len(beginning) < 8:
            break
        kind, length = struct.unpack("<4sI", beginning)
        if kind == b"EXIF":
            exif = source.read(start + 8, min(length, _LONGEST_EXIF))
            orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
        frames += kind == b"ANMF"
        start += 8 + length + length % 2
    return orientation, max(frames, 1)


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
    channels, space = (3, "colour") if variant in (3, 6) else (1, "gray")
    header = ImageHeader("PPM", height, width, channels, bits, space, largest=None if bits == 1 else largest)
    if variant < 4:  # written as text, whose length is unknown before it is decoded
        return header
    if beginning[at : at + 1].strip():
        raise HeaderError("the file is damaged (its PPM header ends without a space)")
    row = (width + 7) // 8 if variant == 4 else width * channels * (bits // 8)
    whole = at + 1 + height * row
    return replace(header, end=whole, frames=1 if is_alone_ppm(source.read(whole, FOLLOWING)) else 2)


def _exif_orientation(block: bytes) -> int:
    """The orientation in an Exif block; 1 if it is damaged."""
    try:
        return orientation_of(read_directory(Content(block)))
    except (HeaderError, struct.error, IndexError, OverflowError):
        return 1


def _upright(header: ImageHeader, orientation: int) -> ImageHeader:
    """The header, of which the stored size is known, with the orientation and the upright size."""
    if orientation == 1:
        return header
    height, width = header.size[::-1] if orientation in TURNED else header.size
    return replace(header, height=height, width=width, orientation=orientation)


# By the format's name, how its files begin and what reads their headers.
_FORMATS: dict[str, tuple[re.Pattern[bytes], Callable[[Source], ImageHeader]]] = {
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    "JPEG": (re.compile(rb"\xff\xd8\xff"), _jpeg),
    "BMP": (re.compile(rb"BM"), _bmp),
    "TIFF": (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), read_tiff_header),
    "WebP": (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    "PPM": (re.compile(rb"P[1-6]\s"), _ppm),
}
