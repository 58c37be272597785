"""Images between files, arrays and tensors; names and meaning are BasicSR's, reading is strict.

All of training, evaluation, scripts and upscaling make pixels of image files here. Each format has the decoder that is
exact for it, for files that `find_fault` allows: simplejpeg (libjpeg-turbo) for JPEG, which reports damage where OpenCV
and Pillow return wrong pixels; tifffile for TIFF, of which OpenCV and Pillow change the values of several dialects; PPM
is read here, also by rows; OpenCV does the rest.

Arrays are (H, W, C) with channels in the order B, G, R, as OpenCV has them; tensors are (C, H, W), R, G, B.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
import re
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from basicsr.files.header_readers import read_header
from basicsr.files.image_headers import (
    CMYK,
    MIN_IS_WHITE,
    MOST_PIXELS,
    PALETTE,
    Content,
    HeaderError,
    ImageHeader,
    find_fault,
)
from basicsr.utils.errors import DataError, MachineError
from basicsr.utils.text import printable

if TYPE_CHECKING:  # its import takes a second, which scripts that make no tensors do not spend
    import torch

AGAIN = "copy or download the file again"

_FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_JPEG_END, _JPEG_PROGRESSIVE, _JPEG_SCAN = 0xD9, 0xC2, 0xDA
# Inside compressed data 0xFF is followed by 0x00 (a stuffed byte) or a restart marker, D0 to D7.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
# A remark of libjpeg, the marker that it is about, and where in it the value is that should be 1.
_HARMLESS_REMARKS = (
    ("unknown JFIF revision", b"JFIF\0", 5),
    ("Unknown Adobe color transform", b"\xff\xee\0\x0eAdobe", 15),
)
_COMMENT = re.compile(rb"#[^\n]*")
_SILENT = logging.NullHandler()


class DamageError(ValueError):
    """Why a decoder cannot read an image, in one line without the file's name."""


def imfrombytes(
    content: bytes,
    flag: str = "color",
    float32: bool = False,
    source: str = "image",
    most_pixels: int = MOST_PIXELS,
) -> np.ndarray:
    """Decodes an image file to its true pixels, turned upright, or refuses it with the reason.

    Args:
        content: the file's bytes.
        flag: 'color' (H, W, 3), gray three times and alpha dropped; 'grayscale' (H, W), rounded luma; 'unchanged' as
            the file has it: gray (H, W), BGR, or BGR and alpha, also for gray with alpha.
        float32: return float32 in [0, 1] instead of uint8 or uint16.
        source: what to call the image in errors, such as its path.
        most_pixels: the most it may have.

    Raises:
        DataError: truncated, damaged, not an image, or refused by `find_fault` before memory is taken.
    """
    assert flag in ("color", "grayscale", "unchanged"), flag
    name = printable(source)
    header = check_header(content, name, most_pixels)
    try:
        img = decode(content, header, colour=flag == "color")
    except DamageError as error:
        raise DataError(f"cannot read image {name}: {error}; {AGAIN}") from error
    if flag == "grayscale" and img.ndim == 3:
        is_gray = img.shape[2] == 2
        img = np.ascontiguousarray(img[..., 0] if is_gray else img[..., :3])
        img = img if is_gray else cv2.cvtColor(img, cv2.COLOR_BGR2GRAY)
    elif img.ndim == 3 and img.shape[2] == 2:
        img = img[..., [0, 0, 0, 1]]
    return to_float32(img) if float32 else img


def check_header(content: bytes, source: str, most_pixels: int = MOST_PIXELS) -> ImageHeader:
    """The header of a whole file, without decoding it; raises DataError for what can be seen so."""
    name = printable(source)
    try:
        header = read_header(Content(content))
    except HeaderError as error:
        raise DataError(f"cannot read image {name}: {find_damage(content) or error}; {AGAIN}") from error
    if fault := find_fault(header, most_pixels):
        raise DataError(f"cannot read image {name}: {fault}")
    if damage := find_damage(content):
        raise DataError(f"cannot read image {name}: {damage}; {AGAIN}")
    return header


def decode(content: bytes, header: ImageHeader, colour: bool = False) -> np.ndarray:
    """The upright pixels, uint8 or uint16, of an image file with a header that `find_fault` allows.

    With `colour` (H, W, 3) BGR. Else also (H, W) gray, (H, W, 4) BGR and alpha, or (H, W, 2) gray and alpha; TIFF's
    CMYK as C, M, Y, K. Raises DamageError where the decoder refuses or contradicts the header.
    """
    reader = {"JPEG": _jpeg, "PPM": _ppm, "TIFF": _tiff}.get(header.format, _by_opencv)
    pixels = reader(content, header, colour)
    if pixels.shape[:2] != header.stored_size or pixels.dtype != np.dtype(f"u{header.depth // 8}"):
        raise DamageError(f"it decodes to {pixels.shape} of {pixels.dtype}, its header announces {header.stored_size}")
    if colour and (pixels.ndim == 2 or pixels.shape[2] == 2):
        pixels = cv2.cvtColor(pixels if pixels.ndim == 2 else pixels[..., 0].copy(), cv2.COLOR_GRAY2BGR)
    elif colour:
        pixels = pixels[..., :3]
    return np.ascontiguousarray(upright(pixels, header.orientation))


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels (H, W, ...) as EXIF's `orientation` (1 to 8; others count as 1) says they are to be shown."""
    pixels = pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return pixels[rows, columns]


def _by_opencv(content: bytes, header: ImageHeader, colour: bool) -> np.ndarray:
    # Asked for what is stored, OpenCV makes gray of some BMP files in colour.
    as_colours = colour or (header.format == "BMP" and not header.has_alpha)
    colours = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), colours if as_colours else cv2.IMREAD_UNCHANGED)
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
        for words, marker, place in _HARMLESS_REMARKS:
            at = content.find(marker) + place
            # A remark on nothing but this byte, which is read with its usual value.
            if words in str(error) and at >= place and content[at : at + 1] not in (b"", b"\1"):
                return _jpeg(content[:at] + b"\1" + content[at + 1 :], header, colour)
        raise DamageError(f"the decoder says '{error}'") from error
    return pixels[..., 0] if gray else pixels


def _ppm(content: bytes, header: ImageHeader, colour: bool) -> np.ndarray:
    height, width = header.stored_size
    if header.end:
        if len(content) < header.end:
            raise DamageError(f"the file is truncated ({len(content):,d} bytes of {header.end:,d})")
        start = header.end - height * width * header.channels * header.depth // 8
        pixels = ppm_columns(memoryview(content)[start : header.end], header, 0, width)
        return pixels[..., 0] if header.channels == 1 else pixels
    words = _COMMENT.sub(b"", content).split()[4:]
    try:
        values = np.array(words, dtype=np.bytes_).astype(np.int64)
    except ValueError as error:
        raise DamageError("the file is damaged (something else than numbers among its pixels)") from error
    if values.size != height * width * header.channels or values.min() < 0 or values.max() > (header.largest or 255):
        raise DamageError("the file is truncated or damaged (numbers are missing, too many or too large)")
    pixels = values.astype(f"u{header.depth // 8}").reshape(height, width, header.channels)
    return pixels[..., 0] if header.channels == 1 else pixels[..., ::-1]


def ppm_columns(rows: bytes | memoryview, header: ImageHeader, left: int, width: int) -> np.ndarray:
    """A copy of the columns `left` to `left + width` of a binary PPM file's rows: (H, W, C) BGR, RGB in memory."""
    stored = np.dtype(np.uint8) if header.depth == 8 else np.dtype(">u2")
    pixels = np.frombuffer(rows, stored).reshape(-1, header.width, header.channels)[:, left : left + width]
    return pixels.astype(stored.newbyteorder("="), order="C")[..., ::-1]


def encode_ppm(img: np.ndarray) -> bytes:
    """An image, (H, W, 3) BGR, uint8 or uint16, as the bytes of a PPM file: uncompressed, big-endian."""
    height, width, channels = img.shape
    assert channels == 3 and img.dtype in (np.uint8, np.uint16), "a PPM file holds 3 channels of 8 or 16 bits"
    largest = np.iinfo(img.dtype).max
    return b"P6\n%d %d\n%d\n" % (width, height, largest) + img[..., ::-1].astype(img.dtype.newbyteorder(">")).tobytes()


def encode_png(img: np.ndarray, compress_level: int) -> bytes:
    """An image, (H, W, 3) uint8 or uint16 BGR, as the bytes of a PNG file."""
    return cv2.imencode(".png", img, [cv2.IMWRITE_PNG_COMPRESSION, compress_level])[1].tobytes()


def tiff_package() -> Any:
    """tifffile, with the decoders of compressed files; raises MachineError where they are not installed."""
    tifffile = _package("tifffile", "TIFF")
    _package("imagecodecs", "compressed TIFF")
    logger = logging.getLogger("tifffile")
    logger.propagate = False  # its remarks on odd tags; the header's check has dealt with those that matter
    logger.addHandler(_SILENT)
    return tifffile


def tiff_values(content: bytes, size: tuple[int, int]) -> tuple[np.ndarray, int, np.ndarray | None]:
    """The first page of a TIFF file: values (H, W, samples) of the stored `size`, photometric, the palette if any.

    Raises DamageError where the decoder refuses it, or contradicts `size`.
    """
    tifffile = tiff_package()
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            values = page.asarray(maxworkers=1)
            photometric, planes, samples = int(page.photometric), int(page.planarconfig or 1), page.samplesperpixel
            colours = np.asarray(page.colormap) if photometric == PALETTE else None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make it fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamageError(f"the decoder says '{reason}'") from error
    height, width = size
    if values.size != height * width * samples:
        raise DamageError(f"it decodes to {values.shape}, its header announces {size}")
    if planes == 2:
        return np.moveaxis(values.reshape(samples, height, width), 0, -1), photometric, colours
    return values.reshape(height, width, samples), photometric, colours


def _tiff(content: bytes, header: ImageHeader, colour: bool) -> np.ndarray:
    pixels, photometric, colours = tiff_values(content, header.stored_size)
    if colours is not None:
        pixels = (colours.T >> 8).astype(np.uint8)[pixels[..., 0]]
    if photometric == MIN_IS_WHITE:
        pixels = pixels.copy()
        pixels[..., 0] = np.iinfo(pixels.dtype).max - pixels[..., 0]
    if pixels.shape[2] >= 3 and photometric != CMYK:
        return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _package(name: str, what: str) -> Any:
    """A decoder's package, imported where the first such file is read, so that start-up does not wait for it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MachineError(
            f"reading {what} files needs the package {name}; run: pip install -c constraints.txt {name}"
        ) from error


def find_damage(content: bytes) -> str | None:
    """Damage seen without decoding: PNG checksums, JPEG end markers; decoders of other formats refuse truncation."""
    if len(content) == 0:
        return "the file is empty"
    if content[:8] == _PNG_SIGNATURE:
        return _find_png_damage(content)
    if content[:3] == _JPEG_SIGNATURE:
        return _find_jpeg_damage(content)
    return None


def _find_png_damage(content: bytes) -> str | None:
    view, start = memoryview(content), len(_PNG_SIGNATURE)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if end > len(content):
            break
        if zlib.crc32(view[start + 4 : end - 4]) != struct.unpack_from(">I", content, end - 4)[0]:
            return f"the file is damaged (wrong checksum in the PNG chunk at byte {start})"
        if kind == b"IEND":
            return None
        start = end
    return f"the file is truncated (the PNG ends after {len(content)} bytes without its last chunk)"


def _find_jpeg_damage(content: bytes) -> str | None:
    """Walks the segments to the end marker; what follows it, such as padding, does not matter."""
    position, progressive = 2, False
    missing: dict[int, list[bool]] = {}  # by component, which of its 64 coefficients lack bits
    while match := _JPEG_MARKER.search(content, position):
        position = match.end()
        marker = content[position - 1]
        if marker == _JPEG_END:
            return "the file is truncated (the JPEG's scans end early)" if any(map(any, missing.values())) else None
        if position + 2 > len(content):
            break
        length = struct.unpack_from(">H", content, position)[0]
        scan = content[position + 2 : position + length]
        progressive |= marker == _JPEG_PROGRESSIVE
        if progressive and marker == _JPEG_SCAN and scan and len(scan) == 4 + 2 * scan[0]:
            first, last, bits = scan[-3:]
            for component in scan[1:-3:2]:
                lacks = missing.setdefault(component, [True] * 64)
                lacks[first : last + 1] = [bits & 15 > 0] * (min(last, 63) + 1 - min(first, 64))
        position += length
    return f"the file is truncated (the JPEG ends after {len(content)} bytes without its end marker)"


def to_float32(img: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 or uint16 in 0..65535, any shape, to float32 in [0, 1]; float32 stays as it is."""
    if img.dtype == np.float32:
        return img
    return img.astype(np.float32) / np.float32(_FULL_SCALE[img.dtype])


def imwrite(
    img: np.ndarray,
    file_path: str | os.PathLike[str],
    params: Sequence[int] | None = None,
    auto_mkdir: bool = True,
) -> None:
    """Writes an image in the format that the path's ending names; whole or not at all.

    Args:
        img: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA; uint8, or uint16 where the format has it.
        file_path: the file to write.
        params: as OpenCV's `imwrite` takes them.
        auto_mkdir: create its folder.

    Raises:
        DataError: the format is unknown or the file cannot be written.
    """
    path = Path(file_path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _, encoded = cv2.imencode(path.suffix, img, list(params or ()))
        if auto_mkdir:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(encoded.tobytes())
        os.replace(temporary, path)
    except cv2.error as error:
        raise DataError(f"cannot write image {path}: {error.err or 'unknown format'}; use .png or .jpg") from error
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise DataError(f"cannot write image {path}: {error.strerror}") from error


def img2tensor(imgs: Any, bgr2rgb: bool = True, float32: bool = True) -> Any:
    """An array (H, W, C) as a tensor (C, H, W) with memory of its own, or a list of them as a list.

    Args:
        imgs: the array or arrays.
        bgr2rgb: reverse the channels where there are three.
        float32: convert to float32; values are not scaled.
    """
    import torch

    if isinstance(imgs, list):
        return [img2tensor(img, bgr2rgb, float32) for img in imgs]
    ordered = imgs[..., ::-1] if bgr2rgb and imgs.shape[2] == 3 else imgs
    tensor = torch.from_numpy(np.array(ordered.transpose(2, 0, 1), order="C"))
    return tensor.float() if float32 else tensor


def tensor2img(
    tensor: torch.Tensor | list[torch.Tensor],
    rgb2bgr: bool = True,
    out_type: Any = np.uint8,
    min_max: tuple[float, float] = (0, 1),
) -> Any:
    """A tensor as an array (H, W, 3), or (H, W) for one channel; of several tensors a list.

    Args:
        tensor: (1, C, H, W), (C, H, W) or (H, W) with C of 1 or 3; (B, C, H, W) gives a grid; or a list of these.
        rgb2bgr: reverse the channels.
        out_type: np.uint8 or np.uint16 (rounded to 0..255 or 0..65535), or a floating type in [0, 1].
        min_max: values to clamp to and to map to 0 and 1.

    Raises:
        TypeError: not a tensor, or of another number of dimensions.
    """
    import torch

    tensors = [tensor] if torch.is_tensor(tensor) else tensor
    if not isinstance(tensors, list) or not all(torch.is_tensor(entry) for entry in tensors):
        raise TypeError(f"a tensor or a list of tensors is expected, got {type(tensor)}")
    out_type = np.dtype(out_type)
    low, high = min_max
    images = []
    for entry in tensors:
        entry = (entry.detach().float().cpu().clamp(low, high) - low) / (high - low)
        if entry.dim() == 4:
            entry = entry[0] if entry.size(0) == 1 else _grid(entry)
        if entry.dim() == 3:
            entry = entry[0] if entry.size(0) == 1 else entry.permute(1, 2, 0)
        elif entry.dim() != 2:
            raise TypeError(f"a tensor of 2, 3 or 4 dimensions is expected, got {entry.dim()}")
        img = entry.numpy()
        if out_type in _FULL_SCALE:
            img = (img * _FULL_SCALE[out_type]).round()
        images.append(np.ascontiguousarray(img[..., ::-1] if img.ndim == 3 and rgb2bgr else img).astype(out_type))
    return images[0] if len(images) == 1 else images


def shown_channels(image: Any) -> Any:
    """What pictures show of a tensor (..., C, H, W): gray and RGB as they are, of bands the first three, of two one."""
    channels = image.shape[-3]
    return image if channels in (1, 3) else image[..., : 3 if channels > 3 else 1, :, :]


def crop_border(imgs: Any, crop_border: int) -> Any:
    """Cuts `crop_border` pixels off each side of an array (H, W, ...) or of each in a list."""
    if crop_border == 0:
        return imgs
    inside = slice(crop_border, -crop_border)
    return [img[inside, inside] for img in imgs] if isinstance(imgs, list) else imgs[inside, inside]


def _grid(batch: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as one image of int(sqrt(B)) columns, with black lines of two pixels around each."""
    count, channels, height, width = batch.shape
    columns = int(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = batch.new_zeros(channels, rows * (height + 2) + 2, columns * (width + 2) + 2)
    for number, image in enumerate(batch):
        top, left = (number // columns) * (height + 2) + 2, (number % columns) * (width + 2) + 2
        grid[:, top : top + height, left : left + width] = image
    return grid
