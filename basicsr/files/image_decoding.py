"""The one way in which this house makes pixels of an image file; training, evaluation, scripts and upscaling share it.

Each format has the decoder that is exact for it, and is believed only for what `image_headers` lets through: JPEG is
decoded by libjpeg-turbo through simplejpeg, which tells of damage where OpenCV and Pillow return wrong pixels; TIFF by
tifffile, since OpenCV and Pillow change the values of several of its dialects; PPM here; the others by OpenCV.
Whatever the decoder thinks of orientation, pixels are turned here, by what the header says.
"""

from __future__ import annotations

import importlib
import io
import logging
import re
from typing import Any

import cv2
import numpy as np

from basicsr.files.image_headers import ImageHeader
from basicsr.files.tiff_headers import CMYK, MIN_IS_WHITE, PALETTE
from basicsr.utils.errors import MachineError

_COMMENT = re.compile(rb"#[^\n]*")
# A remark of libjpeg, the marker that it is about, and where in it the value is that should be 1.
_HARMLESS_REMARKS = (
    ("unknown JFIF revision", b"JFIF\0", 5),
    ("Unknown Adobe color transform", b"\xff\xee\0\x0eAdobe", 15),
)


class DamageError(ValueError):
    """What a decoder says of bytes that it cannot make an image of, in one line without the file's name."""


def decode(content: bytes, header: ImageHeader, colour: bool = False) -> np.ndarray:
    """The pixels of an image file, upright.

    Args:
        content: the whole file, of a kind that `image_headers.find_fault` lets through.
        header: what `read_header` says of it.
        colour: give three channels whatever there are: gray three times, alpha dropped, the colours under it as stored.

    Returns:
        uint8 or uint16: (H, W, 3) BGR; without `colour` also (H, W) gray, (H, W, 4) BGR and alpha, or (H, W, 2) gray
        and alpha. A palette gives the colours it stands for; TIFF's CMYK, for those who let it through, C, M, Y, K.

    Raises:
        DamageError: the decoder refuses the file, or gives other pixels than the header announces.
        MemoryError: there is too little.
    """
    reader = _READERS.get(header.format, _by_opencv)
    pixels = reader(content, header, colour)
    if pixels.shape[:2] != header.stored_size or pixels.dtype != np.dtype(f"u{header.depth // 8}"):
        raise DamageError(f"it decodes to {pixels.shape} of {pixels.dtype}, its header announces {header.stored_size}")
    if colour and (pixels.ndim == 2 or pixels.shape[2] != 3):
        pixels = _three_channels(pixels)
    return np.ascontiguousarray(upright(pixels, header.orientation))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels (H, W, ...) as EXIF's `orientation` (1 to 8; others count as 1) says they are to be shown."""
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[:, ::-1],
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels.swapaxes(0, 1)[::-1],
    }
    return turned.get(orientation, pixels)


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of what `decode` gave: gray as it is stored; of colours the luma of BT.601, rounded, by one rule for all
    formats: Y = 0.299 R + 0.587 G + 0.114 B. Of three equal channels that is their value. Alpha is dropped."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 2:
        return np.ascontiguousarray(pixels[..., 0])
    return cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_BGR2GRAY)


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2 or pixels.shape[2] == 2:
        return cv2.cvtColor(pixels if pixels.ndim == 2 else pixels[..., 0].copy(), cv2.COLOR_GRAY2BGR)
    return pixels[..., :3]


def _by_opencv(content: bytes, header: ImageHeader, colour: bool) -> np.ndarray:
    # Asked for what is stored, OpenCV makes gray of some BMP files in colour.
    as_colours = colour or (header.format == "BMP" and not header.has_alpha)
    colours = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    flags = colours if as_colours else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DamageError(" ".join(str(error.err or error).split())) from error
    if pixels is None:
        raise DamageError("it is damaged")
    if colour:
        return pixels
    if header.channels == 1 and pixels.ndim == 3:
        return pixels[..., 0]
    if header.channels == 2:  # which OpenCV gives as B, G, R and alpha
        return pixels[..., [0, 3]]
    if header.transparent is not None and pixels.ndim == 2:  # it looks at this for colours only
        full, levels = 2 ** (8 * pixels.itemsize) - 1, 2**header.bits - 1
        key = int.from_bytes(header.transparent[:2], "big") * (full // levels)
        return np.dstack([pixels, np.where(pixels == key, 0, full).astype(pixels.dtype)])
    return pixels if header.has_alpha or pixels.ndim == 2 else pixels[..., :3]


def _jpeg(content: bytes, header: ImageHeader, colour: bool) -> np.ndarray:
    decode_jpeg = _package("simplejpeg", "JPEG").decode_jpeg
    gray = header.channels == 1 and not colour
    try:
        pixels = decode_jpeg(content, "GRAY" if gray else "BGR", strict=True)
    except ValueError as error:
        usual = _with_usual_marker(content, str(error))
        if usual == content:
            raise DamageError(f"the decoder says '{error}'") from error
        return _jpeg(usual, header, colour)
    return pixels[..., 0] if gray else pixels


def _with_usual_marker(content: bytes, remark: str) -> bytes:
    """The file with the value that the decoder takes where it remarks on an unknown one, though nothing is damaged."""
    for words, marker, place in _HARMLESS_REMARKS:
        at = content.find(marker)
        if words in remark and at >= 0:
            return content[: at + place] + b"\1" + content[at + place + 1 :]
    return content


def _ppm(content: bytes, header: ImageHeader, colour: bool) -> np.ndarray:
    height, width = header.stored_size
    count = height * width * header.channels
    largest = header.largest or 255
    if header.end:
        stored = np.dtype(np.uint8 if largest < 256 else ">u2")
        length = count * stored.itemsize
        if len(content) < header.end:
            raise DamageError(f"the file is truncated ({len(content):,d} bytes of {header.end:,d})")
        values = np.frombuffer(content, stored, count, header.end - length)
    else:
        words = _COMMENT.sub(b"", content).split()[4:]
        try:
            values = np.array(words, dtype=np.bytes_).astype(np.int64)
        except ValueError as error:
            raise DamageError("the file is damaged (something else than numbers among its pixels)") from error
        if values.size != count or values.min() < 0 or values.max() > largest:
            raise DamageError("the file is truncated or damaged (numbers are missing, too many or too large)")
    pixels = values.astype(np.uint8 if largest < 256 else np.uint16).reshape(height, width, header.channels)
    return pixels[..., 0] if header.channels == 1 else pixels[..., ::-1]


def _tiff(content: bytes, header: ImageHeader, colour: bool) -> np.ndarray:
    tifffile = _package("tifffile", "TIFF")
    _package("imagecodecs", "compressed TIFF")
    logger = logging.getLogger("tifffile")
    logger.propagate = False  # its remarks on odd tags; what matters was looked at in the header
    logger.addHandler(_SILENT)
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            values = page.asarray(maxworkers=1)
            photometric, planes, samples = int(page.photometric), int(page.planarconfig or 1), page.samplesperpixel
            colours = np.asarray(page.colormap) if photometric == PALETTE else None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make it stumble in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamageError(f"the decoder says '{reason}'") from error
    height, width = header.stored_size
    shape = (samples, height, width) if planes == 2 else (height, width, samples)
    if values.size != height * width * samples:
        raise DamageError(f"it decodes to {values.shape}, its header announces {header.stored_size}")
    pixels = np.moveaxis(values.reshape(shape), 0, -1) if planes == 2 else values.reshape(shape)
    if colours is not None:
        pixels = (colours.T >> 8).astype(np.uint8)[pixels[..., 0]]
    if photometric == MIN_IS_WHITE:
        pixels = pixels.copy()
        pixels[..., 0] = np.iinfo(pixels.dtype).max - pixels[..., 0]
    if pixels.shape[2] >= 3 and photometric != CMYK:
        return np.ascontiguousarray(pixels[..., [2, 1, 0, 3] if pixels.shape[2] == 4 else [2, 1, 0]])
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _package(name: str, what: str) -> Any:
    """A decoder's package, imported where the first such file is read: the start of commands waits for none."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(
            f"reading {what} files needs the package {name}; run: pip install -c constraints.txt {name}"
        ) from error


_SILENT = logging.NullHandler()
_READERS = {"JPEG": _jpeg, "PPM": _ppm, "TIFF": _tiff}
