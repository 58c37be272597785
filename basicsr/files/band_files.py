"""Images of several bands, such as multispectral ones: 2 to 16 channels that are no colours, in TIFF files or arrays.

A file is read whole and exactly, its channels in their order, as (H, W, C): uint8, uint16, or float32 in [0, 1]. Read
are TIFF files of one page, by tifffile, and arrays of NumPy (.npy), as (H, W, C) or (C, H, W); without running code.
"""

from __future__ import annotations

import ast
import io
import math
import struct
from pathlib import Path

import numpy as np

from basicsr.files.atomic_files import write_atomically
from basicsr.files.header_readers import sniff
from basicsr.files.image_headers import MOST_PIXELS, Content, HeaderError, ImageHeader, Source, read_bands_header
from basicsr.files.images import AGAIN, DamageError, tiff_package, tiff_values, upright
from basicsr.utils.errors import CheckpointError, DataError
from basicsr.utils.text import printable

BAND_SUFFIXES = (".tif", ".tiff", ".npy")
FEWEST_BANDS, MOST_BANDS = 2, 16

_NPY = b"\x93NUMPY"
_LONGEST_NPY_HEADER = 10_000  # as NumPy's own limit
_TYPES = {"u1": (8, False), "u2": (16, False), "f4": (32, True), "f8": (64, True)}


def read_band_header(source: Source, channels: int) -> ImageHeader:
    """The header of a file of `channels` bands; raises HeaderError if it is missing, damaged, or of another format."""
    beginning = source.read(0, 12)
    if not beginning:
        raise HeaderError("the file is empty")
    try:
        if beginning[:6] == _NPY:
            return _npy_header(source, channels)
        if sniff(beginning) == "TIFF":
            return read_bands_header(source)
    except HeaderError:
        raise
    except (struct.error, LookupError, ArithmeticError, ValueError, TypeError, SyntaxError, RecursionError) as error:
        raise HeaderError("the file is truncated or damaged (its header is not whole)") from error
    allowed = "bands are read from TIFF and .npy files"
    if found := sniff(beginning):
        return ImageHeader(found, 1, 1, channels, 8, "bands", oddity=f"it is a {found} file; {allowed}")
    raise HeaderError(f"it is no image; {allowed}")


def find_band_fault(header: ImageHeader, channels: int, most_pixels: int = MOST_PIXELS) -> str | None:
    """Why a file of bands is refused, or None."""
    height, width = header.size
    if height < 1 or width < 1:
        return f"its header announces {height}x{width} pixels; the file is damaged"
    if height * width > most_pixels:
        return f"it announces {height}x{width} pixels (H x W), allowed are {most_pixels:,d} in all; cut it into parts"
    if header.oddity is not None:
        return header.oddity
    if header.frames > 1:
        return (
            f"it holds {header.frames} pages, allowed is one with all bands; save them together"
            " (tifffile.imwrite with planarconfig='separate')"
        )
    if header.channels != channels:
        return f"it has {header.channels} channels, expected are {channels}; make them equal"
    if (header.bits, header.floating) not in _TYPES.values():
        kind = f"float{header.bits}" if header.floating else f"of {header.bits} bits"
        return f"its pixels are {kind}, allowed are 8 or 16 bits unsigned, float32 and float64; convert it"
    return None


def bands_from_bytes(content: bytes, channels: int, source: str, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """A file's upright pixels (H, W, channels): uint8, uint16, or float32 in [0, 1].

    Raises DataError where it is damaged, refused by `find_band_fault`, or has floats outside [0, 1].
    """
    name = printable(source)
    try:
        header = read_band_header(Content(content), channels)
    except HeaderError as error:
        raise DataError(f"cannot read image {name}: {error}; {AGAIN}") from error
    if fault := find_band_fault(header, channels, most_pixels):
        raise DataError(f"cannot read image {name}: {fault}")
    try:
        pixels = (
            _npy_pixels(content, header, channels)
            if header.format == "NPY"
            else tiff_values(content, header.stored_size)[0]
        )
    except DamageError as error:
        raise DataError(f"cannot read image {name}: {error}; {AGAIN}") from error
    if header.floating:
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):  # also for NaN
            raise DataError(
                f"cannot read image {name}: its values reach from {low:g} to {high:g}; floats must lie in [0, 1]:"
                " divide by the value of full intensity, or save as uint16"
            )
        pixels = pixels.astype(np.float32)
    return np.ascontiguousarray(upright(pixels, header.orientation))


def encode_bands(pixels: np.ndarray, suffix: str) -> bytes:
    """Pixels (H, W, C) of any type as the bytes of a .npy file, or of a TIFF file with one page of C samples."""
    buffer = io.BytesIO()
    if suffix.lower() == ".npy":
        np.save(buffer, np.ascontiguousarray(pixels), allow_pickle=False)
    else:
        tiff_package().imwrite(
            buffer,
            np.moveaxis(pixels, -1, 0),
            photometric="minisblack",
            planarconfig="separate",
            compression="zlib",
            predictor=pixels.dtype.kind == "u",
        )
    return buffer.getvalue()


def write_bands(path: Path, pixels: np.ndarray) -> None:
    """Writes pixels (H, W, C) in the format that the path's ending names; raises DataError where that fails."""
    content = encode_bands(pixels, path.suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
    except (OSError, CheckpointError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot write image {path}: {reason}") from error


def picture_of(image: np.ndarray) -> np.ndarray:
    """What pictures show: an image of uint8 as it is; of bands (H, W, C), float32, three as R, G, B, or one, as uint8.

    These are the first; the result is (H, W, 3) BGR, or (H, W).
    """
    if image.dtype == np.uint8:
        return image
    levels = as_type(image[..., :3], np.dtype(np.uint8))
    return np.ascontiguousarray(levels[..., ::-1]) if image.shape[2] > 2 else levels[..., 0].copy()


def as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values in [0, 1], clipped, as `dtype`: rounded to whole numbers up to its largest, or as they are."""
    clipped = np.clip(values, 0, 1)
    if dtype.kind == "f":
        return clipped.astype(dtype)
    return np.rint(clipped.astype(np.float64) * np.iinfo(dtype).max).astype(dtype)


def _npy_header(source: Source, channels: int) -> ImageHeader:
    major = source.read(6, 1)[0]
    if major not in (1, 2, 3):
        raise HeaderError(f"the file is damaged (a .npy file of version {major})")
    (length,) = struct.unpack("<H", source.read(8, 2)) if major == 1 else struct.unpack("<I", source.read(8, 4))
    start = 10 if major == 1 else 12
    if length > _LONGEST_NPY_HEADER:
        raise HeaderError("the file is damaged (its .npy header is too long)")
    described = ast.literal_eval(source.read(start, length).decode("latin1").strip())
    kind, shape = str(described["descr"]), described["shape"]
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise HeaderError("the file is damaged (its .npy header names no shape)")
    bits, floating = _TYPES.get(kind.lstrip("<>|="), (0, False))
    oddity = None if bits else f"its values are of type {printable(kind[:20])}, allowed are u1, u2 and floats"
    if len(shape) != 3:
        oddity = f"its array has shape {shape}, expected (H, W, {channels}) or ({channels}, H, W)"
        return ImageHeader("NPY", 1, 1, channels, bits or 8, "bands", floating, oddity=oddity)
    first = shape[2] != channels and shape[0] == channels
    count, height, width = shape if first else (shape[2], shape[0], shape[1])
    end = start + length + math.prod(shape) * bits // 8
    return ImageHeader("NPY", height, width, count, bits or 8, "bands", floating, end=end, oddity=oddity)


def _npy_pixels(content: bytes, header: ImageHeader, channels: int) -> np.ndarray:
    if len(content) < header.end:
        raise DamageError(f"the file is truncated ({len(content):,d} bytes of {header.end:,d})")
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # damaged headers make it fail in any way
        raise DamageError(f"it is damaged ({(str(error) or type(error).__name__).splitlines()[0]})") from error
    values = values if values.shape == (*header.size, channels) else np.moveaxis(values, 0, -1)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
