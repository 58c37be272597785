"""PNG files: their parts, and large pictures compressed on several threads."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from PIL import Image, PngImagePlugin

from basicsr.utils.process_settings import num_processors

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = 33  # bytes: signature and IHDR
_METRES_PER_INCH = 0.0254
_LEAST_BYTES = 1 << 19  # smaller strips compress worse than they gain time
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_FIRST_BYTES = b"\x78\x9c"  # of zlib's usual streams
_STRIP_BYTES = 1 << 22  # what is compressed at once: so little that memory stays small, so much that none is lost


def encode_png(pixels: np.ndarray, icc: bytes | None, dpi: tuple[float, float] | None, exif: bytes) -> bytes:
    """(H, W, C) uint8 or uint16, of 1 to 4 channels, as the bytes of a file with these metadata."""
    if pixels.dtype == np.uint16:  # Pillow and OpenCV write neither all numbers of channels nor all metadata
        import imagecodecs

        content = bytes(imagecodecs.png_encode(pixels, level=1))
        return content[:_HEADER] + _metadata(icc, dpi, exif) + content[_HEADER:]
    height, width, channels = pixels.shape
    file = io.BytesIO()
    file.write(_SIGNATURE)
    header = struct.pack(">2I5B", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    PngImagePlugin.putchunk(file, b"IHDR", header)
    file.write(_metadata(icc, dpi, exif))
    for part in _compressed(pixels):
        PngImagePlugin.putchunk(file, b"IDAT", part)
    PngImagePlugin.putchunk(file, b"IEND")
    return file.getvalue()


def _metadata(icc: bytes | None, dpi: tuple[float, float] | None, exif: bytes) -> bytes:
    chunks = io.BytesIO()
    if icc:
        PngImagePlugin.putchunk(chunks, b"iCCP", b"ICC Profile\0\0", zlib.compress(icc))
    if dpi:
        per_metre = [round(dots / _METRES_PER_INCH) for dots in dpi]
        PngImagePlugin.putchunk(chunks, b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if exif:
        PngImagePlugin.putchunk(chunks, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return chunks.getvalue()


def _compressed(pixels: np.ndarray) -> Iterator[bytes]:
    """The rows, filtered as Pillow does, as one stream of zlib, whose strips are compressed side by side."""
    height = len(pixels)
    threads = num_processors()
    count = min(height, max(-(-pixels.nbytes // _STRIP_BYTES), min(threads, pixels.nbytes // _LEAST_BYTES), 1))
    bounds = list(pairwise(height * index // count for index in range(count + 1)))
    checksum, before = 1, _FIRST_BYTES
    with ThreadPoolExecutor(threads) as pool:
        for strip, rows in pool.map(lambda bound: _strip(pixels, *bound), bounds):
            checksum = zlib.adler32(rows, checksum)
            yield before + strip
            before = b""
    yield struct.pack(">I", checksum)


def _strip(pixels: np.ndarray, start: int, end: int) -> tuple[bytes, bytes]:
    """Rows of a picture: deflated, at a boundary of bytes; and as they were, filtered."""
    before = max(start - 1, 0)  # the row that the first one is filtered by
    part = pixels[before:end]
    file = io.BytesIO()
    Image.fromarray(part[..., 0] if part.shape[2] == 1 else part).save(file, "PNG", compress_level=0)
    rows = zlib.decompress(_data(file.getvalue()))[(start - before) * (1 + part.shape[1] * part.shape[2]) :]
    deflate = zlib.compressobj(wbits=-15, memLevel=9, strategy=zlib.Z_FILTERED)
    last = zlib.Z_FINISH if end == len(pixels) else zlib.Z_SYNC_FLUSH
    return deflate.compress(rows) + deflate.flush(last), rows


def _data(content: bytes) -> bytes:
    """What a file's IDAT chunks hold."""
    found, position = [], len(_SIGNATURE)
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IDAT":
            found.append(content[position + 8 : position + 8 + length])
        position += length + 12
    return b"".join(found)
