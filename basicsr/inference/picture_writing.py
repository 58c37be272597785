"""Writing pictures with all they carry, as PNG, JPEG, WebP or TIFF; whole or not at all."""

from __future__ import annotations

import errno
import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from basicsr.files.atomic_files import write_atomically
from basicsr.inference.pictures import Picture, exif_bytes
from basicsr.utils.errors import CheckpointError, DataError
from basicsr.utils.misc import sizeof_fmt

Format = Literal["png", "jpg", "webp", "tif"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_QUALITY = 95

_LARGEST_SIDE = {"png": 2**31 - 1, "jpg": 65500, "webp": 16383, "tif": 2**31 - 1}  # libjpeg's bound lies below JPEG's
_LARGEST_TIFF = 4 * 2**30 - 2**24  # its offsets have 32 bits; what is not pixels needs room too
_LARGEST_JPEG_EXIF = 65533
_ROWS_AT_ONCE = 256
_METRES_PER_INCH = 0.0254
_PNG_HEADER = 33  # bytes: signature and IHDR


class OutputError(DataError):
    """Results cannot be written to their folder, neither this one nor the next."""


def check_fits(name: str, output_format: Format, height: int, width: int, bits: int) -> None:
    """Raises DataError for the picture `name` where a format cannot hold this size and depth."""
    side = _LARGEST_SIDE[output_format]
    if max(height, width) > side:
        raise DataError(
            f"{name} would become {width}x{height}, {output_format} allows at most {side} pixels a side;"
            f" use --format {'png' if output_format != 'png' else 'tif'}, or cut it into parts"
        )
    if bits == 16 and output_format in ("jpg", "webp"):
        raise DataError(f"{name} has 16 bits a channel, {output_format} allows 8; use --format png or tif")


def suited(name: str, picture: Picture, output_format: Format) -> Picture:
    """The picture as the format can hold it; DataError if it has transparency, which JPEG has not."""
    if output_format != "jpg":
        return picture
    if len(exif_bytes(picture.exif)) > _LARGEST_JPEG_EXIF:
        picture = replace(picture, exif={}, notes=(*picture.notes, "its EXIF data are too long for jpg: left out"))
    if not picture.has_alpha:
        return picture
    if (picture.pixels[..., -1] < 255).any():
        raise DataError(f"{name} has transparent pixels, which jpg cannot hold; use --format png, webp or tif")
    return picture.with_pixels(np.ascontiguousarray(picture.pixels[..., :-1]))


def encode(picture: Picture, output_format: Format, quality: int = DEFAULT_QUALITY) -> bytes:
    """The bytes of a file of a picture that passed `check_fits` and `suited`; DataError if too large for TIFF."""
    if output_format == "tif":
        return _encode_tiff(picture)
    if output_format == "png" and picture.pixels.dtype == np.uint16:
        return _encode_png_16(picture)
    options: dict[str, Any] = {"icc_profile": picture.icc, "dpi": picture.dpi, "exif": exif_bytes(picture.exif)}
    if output_format in ("jpg", "webp"):
        options["quality"] = quality
    if output_format == "jpg":
        options["subsampling"] = 0
    buffer = io.BytesIO()
    pixels = picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else picture.pixels
    kept = {key: value for key, value in options.items() if value not in (None, b"")}
    Image.fromarray(pixels).save(buffer, {"jpg": "JPEG"}.get(output_format, output_format.upper()), **kept)
    return buffer.getvalue()


def write(content: bytes, path: Path) -> None:
    """Writes a file whole or not at all; raises OutputError, or DataError if only this name is the reason."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
    except (OSError, CheckpointError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = (isinstance(cause, OSError) and cause.strerror) or str(cause)
        if isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.EISDIR):
            raise DataError(f"cannot write {path}: {reason}; choose another --output folder or --suffix") from error
        raise OutputError(f"cannot write {path}: {reason}; make room or choose another --output folder") from error


def _encode_png_16(picture: Picture) -> bytes:
    """PNG of 16 bits: Pillow and OpenCV write neither all numbers of channels nor all metadata."""
    import imagecodecs

    content = bytes(imagecodecs.png_encode(picture.pixels, level=1))
    chunks = b""
    if picture.icc:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    if picture.dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(dots / _METRES_PER_INCH) for dots in picture.dpi), 1))
    if exif := exif_bytes(picture.exif):
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return content[:_PNG_HEADER] + chunks + content[_PNG_HEADER:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _encode_tiff(picture: Picture) -> bytes:
    """TIFF of 8 or 16 bits, deflated. Pillow writes the directory only: of 16 bits it would write gray only."""
    height, width, channels = picture.pixels.shape
    compressor, strip = zlib.compressobj(3), []
    for start in range(0, height, _ROWS_AT_ONCE):
        rows = picture.pixels[start : start + _ROWS_AT_ONCE]
        # Horizontal differencing: each sample less that of the pixel to the left.
        rows = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], axis=1)
        strip.append(compressor.compress(rows.astype(rows.dtype.newbyteorder("<")).tobytes()))
    strip.append(compressor.flush())
    length = sum(map(len, strip))
    if length > _LARGEST_TIFF:
        raise DataError(f"a picture of {sizeof_fmt(length)} does not fit into a TIFF file; use --format png")
    tags = ExifTags.Base
    entries = {
        **picture.exif,
        tags.ImageWidth: width,
        tags.ImageLength: height,
        tags.BitsPerSample: (picture.pixels.dtype.itemsize * 8,) * channels,
        tags.Compression: 8,
        tags.Predictor: 2,
        tags.PhotometricInterpretation: 1 if channels < 3 else 2,
        tags.SamplesPerPixel: channels,
        tags.RowsPerStrip: height,
        tags.StripByteCounts: length,
        tags.StripOffsets: 0,  # from the end of the directory, which makes it a position in the file
    }
    if picture.has_alpha:
        entries[tags.ExtraSamples] = 2
    if picture.dpi:
        entries |= {tags.XResolution: picture.dpi[0], tags.YResolution: picture.dpi[1], tags.ResolutionUnit: 2}
    if picture.icc:
        entries[tags.InterColorProfile] = picture.icc
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in entries.items():
        directory[tag] = value
    buffer = io.BytesIO()
    directory.save(buffer)
    buffer.writelines(strip)
    return buffer.getvalue()
