"""Reads the headers of image files in bounded memory: any bytes give either a header or a `HeaderError`."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from basicsr.files.image_headers import (
    TURNED,
    Content,
    HeaderError,
    ImageHeader,
    Source,
    read_directory,
    read_tiff_header,
)

_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_DEFLATE_AT_MOST = 1032  # bytes that one compressed byte can stand for
_LONGEST_LIST = 1 << 16  # chunks or segments before the pixels
_LONGEST_EXIF = 1 << 16
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

_SIGNATURES = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<BMP>BM)|(?P<TIFF>II\*\0|MM\0\*|II\+\0|MM\0\+)|"
    rb"(?P<WebP>RIFF....WEBP)|(?P<PPM>P[1-6]\s)",
    re.DOTALL,
)
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEADER = re.compile(
    rb"P(?:(?P<bitmap>[14])|[2356])" + _GAP + rb"(?P<width>\d{1,12})\d*" + _GAP + rb"(?P<height>\d{1,12})\d*"
    rb"(?(bitmap)|" + _GAP + rb"(?P<largest>\d{1,12})\d*)"
)
_NEXT_PPM = re.compile(rb"\s*P[1-7]\s")


def sniff(beginning: bytes) -> str | None:
    """The image format of a file that begins with these 12 bytes, None if it is not read here."""
    found = _SIGNATURES.match(beginning)
    return found.lastgroup if found else None


def read_header(source: Source) -> ImageHeader:
    """The header of an image; raises HeaderError if it is missing, damaged, or of another format."""
    if source.size == 0:
        raise HeaderError("the file is empty")
    kind = sniff(source.read(0, 12))
    if kind is None:
        raise HeaderError(f"it is no image, or its format is none of {', '.join(_READERS)}")
    try:
        return _READERS[kind](source)
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
        orientation = _late_orientation(source, start, length)
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


def _late_orientation(source: Source, start: int, length: int) -> int:
    """The orientation in a PNG file's EXIF data behind the pixels, whose first chunk is at `start`."""
    # Most writers make chunks of equal length, the last one shorter. Where these reach to the file's end, nothing else
    # lies between; else all chunks are walked through.
    whole, end = length + 12, source.size - 12
    last = max(start + (end - start - 1) // whole * whole, start)
    found = source.read(last, 8)
    if found[4:] == b"IDAT" and last + 12 + int.from_bytes(found[:4], "big") == end:
        return 1
    for _ in range(_LONGEST_LIST):
        found = source.read(start, 8)
        length, kind = int.from_bytes(found[:4], "big"), found[4:]
        if kind == b"eXIf":
            return _exif_orientation(source.read(start + 8, min(length, _LONGEST_EXIF)))
        if len(found) < 8 or kind == b"IEND":
            break
        start += 12 + length
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
            bits, height, width, channels = struct.unpack(">BHHB", source.read(start + 4, 6))
            space = {1: "gray", 3: "colour", 4: "CMYK"}.get(channels, "other")
            factors = tuple(f"{entry >> 4}x{entry & 15}" for entry in source.read(start + 10, 3 * channels)[1::3])
            coded, oddity = _JPEG_FRAMES[marker[1]], None
            if coded:
                oddity = f"its pixels are coded {coded}, which is not read; save it again"
            elif len(factors) == 3 and factors not in _JPEG_SAMPLINGS:
                shown = ", ".join(factors)
                oddity = f"its channels are sampled {shown} (across x down), which is not read; save it as PNG"
            header = ImageHeader("JPEG", height, width, channels, bits, space, oddity=oddity)
        start += 2 + max(length, 2)
    raise HeaderError("the file is truncated or damaged (the JPEG has no frame header)")


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
    is_gray = False
    if bits <= 8:  # gray is stored as a palette of grays only
        used = struct.unpack("<I", source.read(46, 4))[0] if length >= 40 else 0
        count, size = min(used or 2**bits, 2**bits), 3 if length == 12 else 4
        table = source.read(14 + length, count * size)
        is_gray = len(table) == count * size and table[0::size] == table[1::size] == table[2::size]
    channels = 1 if is_gray else 4 if len(masks) == 4 else 3
    space = "gray" if is_gray else "colour"
    return ImageHeader("BMP", height, width, channels, 8, space, end=whole, oddity=oddity)


def _webp(source: Source) -> ImageHeader:
    length, kind = struct.unpack("<4xI4x4s", source.read(0, 16))
    body = source.read(20, 10)
    orientation, frames, alpha = 1, 1, False
    if kind == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        alpha = bool(body[0] & 0x10)
        start, animated = 12, 0
        for _ in range(_LONGEST_LIST if body[0] & 0x0A else 0):  # it says that it has EXIF data or is an animation
            beginning = source.read(start, 8)
            if len(beginning) < 8:
                break
            kind, size = struct.unpack("<4sI", beginning)
            if kind == b"EXIF":
                exif = source.read(start + 8, min(size, _LONGEST_EXIF))
                orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
            animated += kind == b"ANMF"
            start += 8 + size + size % 2
        frames = max(animated, 1)
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


def read_ppm_header(source: Source) -> ImageHeader:
    """The header of a PPM file; raises HeaderError."""
    beginning = source.read(0, 64)
    found = _PPM_HEADER.match(beginning)
    if found is None or found.end() == 64:  # there are comments
        beginning = source.read(0, 4096)
        found = _PPM_HEADER.match(beginning)
    if found is None:
        raise HeaderError("the file is truncated or damaged (its PPM header is not whole)")
    variant = beginning[1] - ord("0")
    width, height, largest = int(found["width"]), int(found["height"]), int(found["largest"] or 1)
    bits = 1 if variant in (1, 4) else 8 if largest < 256 else 16
    channels, space = (3, "colour") if variant in (3, 6) else (1, "gray")
    end, frames = 0, 1
    if variant >= 4:  # else written as text, whose length is unknown before it is decoded
        if beginning[found.end() : found.end() + 1].strip():
            raise HeaderError("the file is damaged (its PPM header ends without a space)")
        row = (width + 7) // 8 if variant == 4 else width * channels * (bits // 8)
        end = found.end() + 1 + height * row
        frames = 1 if _NEXT_PPM.match(source.read(end, 16)) is None else 2
    return ImageHeader(
        "PPM", height, width, channels, bits, space, end=end, largest=None if bits == 1 else largest, frames=frames
    )


def _exif_orientation(block: bytes) -> int:
    """The orientation in an Exif block; 1 if it is damaged."""
    try:
        return read_directory(Content(block)).orientation
    except (HeaderError, struct.error, IndexError, OverflowError):
        return 1


def _upright(header: ImageHeader, orientation: int) -> ImageHeader:
    """The header, of which the stored size is known, with the orientation and the upright size."""
    if orientation == 1:
        return header
    height, width = header.size[::-1] if orientation in TURNED else header.size
    return header._replace(height=height, width=width, orientation=orientation)


_READERS: dict[str, Callable[[Source], ImageHeader]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "BMP": _bmp,
    "TIFF": read_tiff_header,
    "WebP": _webp,
    "PPM": read_ppm_header,
}
