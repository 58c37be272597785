"""Images between files, arrays and tensors; names and meaning are BasicSR's, reading is strict.

Arrays are (H, W, C) with channels in the order B, G, R, as OpenCV has them; tensors are (C, H, W), R, G, B.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from basicsr.files.image_decoding import DamageError, decode, to_gray
from basicsr.files.image_headers import MOST_PIXELS, Content, HeaderError, ImageHeader, find_fault, read_header
from basicsr.utils.errors import DataError
from basicsr.utils.text import printable

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")

_FULL_SCALE = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}
_AGAIN = "copy or download the file again"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_JPEG_END, _JPEG_PROGRESSIVE, _JPEG_SCAN = 0xD9, 0xC2, 0xDA
# Inside compressed data 0xFF is followed by 0x00 (a stuffed byte) or a restart marker, D0 to D7.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def imfrombytes(
    content: bytes,
    flag: str = "color",
    float32: bool = False,
    source: str = "image",
    most_pixels: int = MOST_PIXELS,
) -> np.ndarray:
    """Decodes an image file to its true pixels, or refuses it with the reason.

    16 bits stay 16 bits, and the image stands upright as its orientation says. With `flag` 'color', gray becomes three
    equal channels and an alpha channel is dropped, on purpose: super-resolution networks take three channels, and the
    colours under the alpha are kept as they are.

    What decoders would read to wrong pixels is refused: truncated and damaged files, and what the header announces, as
    `image_headers.find_fault` says, before memory is taken for it.

    Args:
        content: the file's bytes.
        flag: 'color' (H, W, 3), 'grayscale' (H, W; of colours by `image_decoding.to_gray`), or 'unchanged' as the file
            has it: gray (H, W), BGR, or BGR and alpha, also for gray with alpha.
        float32: return float32 in [0, 1] instead of uint8 or uint16.
        source: what to call the image in errors, such as its path.
        most_pixels: how many it may have.

    Raises:
        DataError: truncated, damaged, not an image, too large, or of pixels that are not read; one line that names
            `source`.
    """
    assert flag in ("color", "grayscale", "unchanged"), flag
    name = printable(source)
    header = check_header(content, name, most_pixels)
    try:
        img = decode(content, header, colour=flag == "color")
    except DamageError as error:
        raise DataError(f"cannot read image {name}: {error}; {_AGAIN}") from error
    if flag == "grayscale":
        img = to_gray(img)
    elif img.ndim == 3 and img.shape[2] == 2:
        img = img[..., [0, 0, 0, 1]]
    return to_float32(img) if float32 else img


def check_header(content: bytes, source: str, most_pixels: int = MOST_PIXELS) -> ImageHeader:
    """The header of a whole file, of which nothing is decoded; raises as `imfrombytes` where that shows the reason."""
    name = printable(source)
    try:
        header = read_header(Content(content))
    except HeaderError as error:
        raise DataError(f"cannot read image {name}: {find_damage(content) or error}; {_AGAIN}") from error
    if fault := find_fault(header, most_pixels):
        raise DataError(f"cannot read image {name}: {fault}")
    if damage := find_damage(content):
        raise DataError(f"cannot read image {name}: {damage}; {_AGAIN}")
    return header


def to_float32(img: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 or uint16 in 0..65535, any shape, to float32 in [0, 1]."""
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
        file_path: where to.
        params: as OpenCV's `imwrite` takes them.
        auto_mkdir: create the folder if there is none.

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


def find_damage(content: bytes) -> str | None:
    """Says what is wrong with a file's bytes, or returns None if nothing is seen without decoding it.

    PNG files are held against their checksums, JPEG files followed to their end marker. Other formats are not
    looked at: OpenCV refuses them where they are truncated.
    """
    if len(content) == 0:
        return "the file is empty"
    if content[:8] == _PNG_SIGNATURE:
        return _find_png_damage(content)
    if content[:3] == _JPEG_SIGNATURE:
        return _find_jpeg_damage(content)
    return None


def img2tensor(imgs: Any, bgr2rgb: bool = True, float32: bool = True) -> Any:
    """Arrays to tensors.

    Args:
        imgs: an array (H, W, C), or a list of them.
        bgr2rgb: reverse the channels where there are three.
        float32: convert to float32; values are not scaled.

    Returns:
        A tensor (C, H, W) with memory of its own, or a list of them.
    """
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
    """Tensors to arrays.

    Args:
        tensor: (1, C, H, W), (C, H, W) or (H, W) with C of 1 or 3; (B, C, H, W) gives a grid; or a list of
            these. It is not changed.
        rgb2bgr: reverse the channels.
        out_type: np.uint8 or np.uint16 (rounded to 0..255 or 0..65535), or a floating type in [0, 1].
        min_max: values to clamp to and to map to 0 and 1.

    Returns:
        An array (H, W, 3), or (H, W) for one channel; a list of them if more than one was given.

    Raises:
        TypeError: not a tensor, or of another number of dimensions.
    """
    tensors = [tensor] if torch.is_tensor(tensor) else tensor
    if not isinstance(tensors, list) or not all(torch.is_tensor(entry) for entry in tensors):
        raise TypeError(f"a tensor or a list of tensors is expected, got {type(tensor)}")
    images = [_to_image(entry, rgb2bgr, np.dtype(out_type), min_max) for entry in tensors]
    return images[0] if len(images) == 1 else images


def crop_border(imgs: Any, crop_border: int) -> Any:
    """Cuts `crop_border` pixels off each side of an array (H, W, ...) or of each in a list."""
    if crop_border == 0:
        return imgs
    if isinstance(imgs, list):
        return [img[crop_border:-crop_border, crop_border:-crop_border, ...] for img in imgs]
    return imgs[crop_border:-crop_border, crop_border:-crop_border, ...]


def _to_image(tensor: torch.Tensor, rgb2bgr: bool, out_type: np.dtype[Any], min_max: tuple[float, float]) -> np.ndarray:
    low, high = min_max
    tensor = tensor.detach().float().cpu().clamp(low, high)
    tensor = (tensor - low) / (high - low)
    if tensor.dim() == 4:
        tensor = tensor[0] if tensor.size(0) == 1 else _grid(tensor)
    if tensor.dim() == 3:
        channels_last = tensor.permute(1, 2, 0)
        tensor = channels_last.squeeze(2) if tensor.size(0) == 1 else channels_last
    elif tensor.dim() != 2:
        raise TypeError(f"a tensor of 2, 3 or 4 dimensions is expected, got {tensor.dim()}")
    img = tensor.numpy()
    if out_type in _FULL_SCALE:
        img = (img * _FULL_SCALE[out_type]).round()
    return np.ascontiguousarray(img[..., ::-1] if img.ndim == 3 and rgb2bgr else img).astype(out_type)


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


def _find_png_damage(content: bytes) -> str | None:
    """Walks the chunks to IEND and compares each checksum."""
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
    missing: dict[int, list[bool]] = {}
    while match := _JPEG_MARKER.search(content, position):
        position = match.end()
        marker = content[position - 1]
        if marker == _JPEG_END:
            return "the file is truncated (the JPEG's scans end early)" if any(map(any, missing.values())) else None
        if position + 2 > len(content):
            break
        length = struct.unpack_from(">H", content, position)[0]
        progressive |= marker == _JPEG_PROGRESSIVE
        if progressive and marker == _JPEG_SCAN:
            _note_scan(missing, content[position + 2 : position + length])
        position += length
    return f"the file is truncated (the JPEG ends after {len(content)} bytes without its end marker)"


def _note_scan(missing: dict[int, list[bool]], scan: bytes) -> None:
    """Notes by component which of its 64 coefficients lack bits after a scan of a progressive JPEG.

    Args:
        missing: of the scans before.
        scan: what its header says.
    """
    count = scan[0] if scan else 0
    if len(scan) == 4 + 2 * count:
        first, last, bits = scan[-3:]
        for component in scan[1:-3:2]:
            lacks = missing.setdefault(component, [True] * 64)
            lacks[first : last + 1] = [bits & 15 > 0] * (min(last, 63) + 1 - min(first, 64))
