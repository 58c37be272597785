"""Pictures as people keep them: files of many kinds, read and written with all their metadata.

`files/images.py` decodes what is exact, here with gray, alpha and 16 bits kept. Pillow reads what is only shown as an
image: GIF, the first frame of an animation, CMYK, one bit.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from basicsr.files.atomic_files import write_atomically
from basicsr.files.header_readers import read_header, sniff
from basicsr.files.image_folders import IMAGE_SUFFIXES
from basicsr.files.image_headers import MOST_TO_CUT, Content, HeaderError, ImageHeader, find_fault
from basicsr.files.images import AGAIN, decode, find_damage, upright
from basicsr.files.regular_files import read_regular
from basicsr.inference.png_writing import encode_png
from basicsr.utils.errors import CheckpointError, DataError, UserError
from basicsr.utils.misc import sizeof_fmt
from basicsr.utils.silence import silent_stderr
from basicsr.utils.text import first_line, printable

Format = Literal["png", "jpg", "webp", "tif"]
FORMATS: tuple[Format, ...] = get_args(Format)
DEFAULT_QUALITY = 95
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")

# Pillow knows more formats; some of them start other programs on the file.
_READ_BY_PILLOW = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_COLOUR_SPACES = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}

_TAGS = ExifTags.Base
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_RESOLUTION = (_TAGS.XResolution, _TAGS.YResolution, _TAGS.ResolutionUnit)
# The tags of EXIF's first directory that describe the picture. Others say how the pixels were stored in the old file.
_DESCRIPTIVE = {
    *(269, 270, 271, 272, _TAGS.Orientation, *_RESOLUTION, 285, 305, 306, 315, 316),  # DocumentName to HostComputer
    *(18246, 18249, 33432, *range(40091, 40096)),  # ratings, Copyright, Windows' titles and comments
}

_LARGEST_SIDE = {"png": 2**31 - 1, "jpg": 65500, "webp": 16383, "tif": 2**31 - 1}  # libjpeg's bound lies below JPEG's
_LARGEST_TIFF = 4 * 2**30 - 2**24  # its offsets have 32 bits; what is not pixels needs room too
_LARGEST_JPEG_EXIF = 65533
_ROWS_AT_ONCE = 256


class OutputError(DataError):
    """Results cannot be written to their folder, neither this one nor the next."""


@dataclass(frozen=True)
class Picture:
    """Pixels, upright, and their metadata."""

    pixels: np.ndarray  # (H, W, C) uint8 or uint16: gray, gray and alpha, RGB, or RGBA, not multiplied
    icc: bytes | None = None  # profile, fit for this number of colours
    exif: Mapping[int, Any] = field(default_factory=dict)  # tag to value; directories are mappings
    dpi: tuple[float, float] | None = None  # horizontally and vertically
    notes: tuple[str, ...] = ()  # what was lost or changed in reading

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)

    @property
    def size(self) -> str:
        """`WIDTHxHEIGHT`, as people write it."""
        return f"{self.pixels.shape[1]}x{self.pixels.shape[0]}"

    def with_pixels(self, pixels: np.ndarray) -> Picture:
        """The picture with other pixels, such as larger ones; a size in its EXIF data is changed too."""
        exif = dict(self.exif)
        if _EXIF_IFD in exif:
            new = {_TAGS.ExifImageWidth: pixels.shape[1], _TAGS.ExifImageHeight: pixels.shape[0]}
            exif[_EXIF_IFD] = {tag: new.get(tag, value) for tag, value in exif[_EXIF_IFD].items()}
        return replace(self, pixels=pixels, exif=exif)


class PictureFile:
    """A picture's file, not decoded: `width` and `height` upright, `bits` a channel; DataError if not readable."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = printable(os.fspath(path))
        try:
            self._content = read_regular(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise self._error(reason) from error
        if damage := find_damage(self._content):
            raise self._error(f"{damage}; {AGAIN}")
        self._header = self._find_header() if sniff(self._content[:12]) else None
        self._image: Image.Image | None = None
        with self._decoding():
            # Pillow knows fewer dialects of TIFF; of those the metadata are lost.
            with suppress(Exception) if self._is_exact else nullcontext():
                self._image = Image.open(io.BytesIO(self._content), formats=_READ_BY_PILLOW)
        if self._header is None:
            assert self._image is not None
            self.width, self.height = self._image.size
        else:
            self.height, self.width = self._header.size
        self.bits = 8 if self._header is None else self._header.depth

    def read(self) -> Picture:
        """Decodes the picture, upright; raises DataError if it is damaged or of an unknown kind of pixels."""
        header = self._header
        is_cmyk = header is not None and header.space == "CMYK"
        notes = []
        with self._decoding():
            frames = header.frames if header else getattr(self._image, "n_frames", 1)
            if frames > 1:
                is_tiff = header is not None and header.format == "TIFF"
                notes.append(f"only the first of its {frames} {'pages' if is_tiff else 'frames'}")
            if is_cmyk:
                notes.append("CMYK converted to RGB")
            if self._image is None:
                notes.append("its EXIF data and profile were left out")
            exif = self._exif(notes)
            pixels = self._exact() if self._is_exact else self._as_shown()
            info = {} if self._image is None else self._image.info
            icc = info.get("icc_profile") or b""
            if is_cmyk or icc[16:20] != _COLOUR_SPACES[pixels.shape[2]]:
                icc = None
            dpi = _usable_dpi(info)
            if dpi is None:
                exif = {tag: value for tag, value in exif.items() if tag not in _RESOLUTION}
            return Picture(np.ascontiguousarray(pixels), icc, exif, dpi, tuple(notes))

    def _error(self, reason: str | None) -> DataError:
        return DataError(f"cannot read image {self._path}: {reason}")

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Turns all errors of decoders into one line, keeps them from printing, and allows pictures of any size."""
        with ExitStack() as undo:
            undo.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
            undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            undo.enter_context(silent_stderr())  # which OpenCV and libtiff write to
            try:
                yield
            except UserError:
                raise
            except UnidentifiedImageError as error:
                known = ", ".join(_READ_BY_PILLOW)
                raise self._error(f"damaged, or its format is none of {known}; convert it") from error
            except MemoryError as error:
                raise self._error("there is not enough memory; cut it into parts") from error
            except Exception as error:  # decoders fail on damaged files in any way
                raise self._error(f"{first_line(error)}; {AGAIN}") from error

    def _find_header(self) -> ImageHeader:
        """The file's header; CMYK, one bit and several pictures, of which the first is shown, are allowed here."""
        try:
            header = read_header(Content(self._content))
        except HeaderError as error:
            raise self._error(f"{error}; {AGAIN}") from error
        lenient = header._replace(frames=1, bits=8 if header.bits == 1 else header.bits)
        if header.space == "CMYK" and header.bits == 8:
            lenient = lenient._replace(space="colour", channels=3)
        fault = find_fault(lenient, MOST_TO_CUT)
        if fault is None and header.frames > 1 and header.format == "PNG" and header.bits == 16:
            fault = "it is an animation of 16 bits; save its first frame alone"
        if fault is not None:
            raise self._error(fault)
        return header

    @property
    def _is_exact(self) -> bool:
        """Whether `files.images` decodes it; else Pillow does."""
        header = self._header
        if header is None or (header.frames > 1 and header.format in ("PNG", "WebP")):
            return False
        if header.space == "CMYK":
            return header.format == "TIFF"
        return header.bits > 1 or header.format == "PNG"

    def _exif(self, notes: list[str]) -> dict[int, Any]:
        """The descriptive EXIF data; damaged data are skipped, with a note."""
        if self._image is None:
            return {}
        try:
            found = self._image.getexif()
            exif = {tag: value for tag, value in found.items() if tag in _DESCRIPTIVE}
            for tag in (_EXIF_IFD, _GPS_IFD):
                if below := dict(found.get_ifd(tag)):
                    exif[tag] = below
            if _INTEROP_IFD in exif.get(_EXIF_IFD, {}):
                exif[_EXIF_IFD][_INTEROP_IFD] = dict(found.get_ifd(_INTEROP_IFD))
            if _TAGS.Orientation in exif:
                exif[_TAGS.Orientation] = 1
            exif_bytes(exif)
        except Exception:  # Pillow fails on damaged EXIF data in any way
            notes.append("its EXIF data are damaged and were left out")
            return {}
        return exif

    def _exact(self) -> np.ndarray:
        """(H, W, C) as `files.images` decodes it."""
        assert self._header is not None
        pixels = decode(self._content, self._header)
        if self._header.space == "CMYK":
            image = Image.fromarray(pixels, "CMYK")
            image.info = {} if self._image is None else self._image.info
            return np.asarray(_cmyk_to_rgb(image))
        if pixels.ndim == 2:
            return pixels[..., None]
        if pixels.shape[2] == 2:
            return pixels
        if self._image is not None and self._image.mode == "P" and (pixels[..., :3] == pixels[..., :1]).all():
            return pixels[..., [0, 3][: pixels.shape[2] - 2]]
        return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]

    def _as_shown(self) -> np.ndarray:
        """(H, W, C) of 8 bits as Pillow shows it, upright."""
        image = self._image
        assert image is not None
        image.load()
        if image.mode == "CMYK":
            image = _cmyk_to_rgb(image)
        mode = _layout_of(image)
        if mode is None:
            raise self._error(f"its pixels are of the kind {image.mode}; convert it")
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        # Pillow turns TIFF pictures upright itself, and no others.
        orientation = 1 if self._header is None or self._header.format == "TIFF" else self._header.orientation
        return upright(pixels.reshape(*pixels.shape[:2], _CHANNELS[mode]), orientation)


def _usable_dpi(info: Mapping[Any, Any]) -> tuple[float, float] | None:
    with suppress(TypeError, ValueError, ZeroDivisionError):
        horizontal, vertical = (float(value) for value in info.get("dpi", ()))
        # Pillow says 1 where a TIFF file says nothing; more than JPEG can say is no resolution.
        if all(1 < value < 65536 for value in (horizontal, vertical)):
            return horizontal, vertical
    return None


def _layout_of(image: Image.Image) -> str | None:
    """Which of the modes L, LA, RGB and RGBA an image becomes without loss, if any."""
    keyed = "transparency" in image.info
    if image.mode in ("LA", "La"):
        return "LA"
    if image.mode in ("PA", "RGBA", "RGBa"):
        return "RGBA"
    if image.mode == "P":
        keyed = keyed or (image.palette is not None and image.palette.mode == "RGBA")
        colours = np.reshape(image.getpalette("RGB") or (), (-1, 3))
        is_gray = bool((colours == colours[:, :1]).all())  # as GIF, which has palettes only, stores gray
    elif image.mode in ("1", "L", "RGB", "RGBX", "YCbCr", "HSV"):
        is_gray = image.mode in ("1", "L")
    else:
        return None
    return ("L" if is_gray else "RGB") + "A" * keyed


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """By the picture's own profile to sRGB; without one, or with one that does not fit, by the plain formula."""
    with suppress(ImageCms.PyCMSError, KeyError, OSError):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        if converted is not None:
            return converted
    return image.convert("RGB")


def exif_bytes(exif: Mapping[int, Any]) -> bytes:
    """EXIF data as files hold them, beginning with `Exif` and two zeros; empty if there are none."""
    block = Image.Exif()
    block.update(exif)
    return block.tobytes() if exif else b""


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
    if output_format == "png":
        return encode_png(picture.pixels, picture.icc, picture.dpi, exif_bytes(picture.exif))
    options: dict[str, Any] = {"icc_profile": picture.icc, "dpi": picture.dpi, "exif": exif_bytes(picture.exif)}
    options["quality"] = quality
    if output_format == "jpg":
        options["subsampling"] = 0
    buffer = io.BytesIO()
    pixels = picture.pixels[..., 0] if picture.pixels.shape[2] == 1 else picture.pixels
    kept = {key: value for key, value in options.items() if value not in (None, b"")}
    Image.fromarray(pixels).save(buffer, "JPEG" if output_format == "jpg" else output_format.upper(), **kept)
    return buffer.getvalue()


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
    entries = {
        **picture.exif,
        _TAGS.ImageWidth: width,
        _TAGS.ImageLength: height,
        _TAGS.BitsPerSample: (picture.pixels.dtype.itemsize * 8,) * channels,
        _TAGS.Compression: 8,
        _TAGS.Predictor: 2,
        _TAGS.PhotometricInterpretation: 1 if channels < 3 else 2,
        _TAGS.SamplesPerPixel: channels,
        _TAGS.RowsPerStrip: height,
        _TAGS.StripByteCounts: length,
        _TAGS.StripOffsets: 0,  # from the end of the directory, which makes it a position in the file
    }
    if picture.has_alpha:
        entries[_TAGS.ExtraSamples] = 2
    if picture.dpi:
        entries |= dict(zip(_RESOLUTION, (*picture.dpi, 2), strict=True))
    if picture.icc:
        entries[_TAGS.InterColorProfile] = picture.icc
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in entries.items():
        directory[tag] = value
    buffer = io.BytesIO()
    directory.save(buffer)
    buffer.writelines(strip)
    return buffer.getvalue()


def write(content: bytes, path: Path) -> None:
    """Writes a file whole or not at all; raises OutputError, or DataError if only this name is the reason."""
    write_with(path, lambda file: file.write(content))


def write_with(path: Path, write_to: Callable[[BinaryIO], object]) -> str:
    """As `write`, by a function that writes to the open file; returns the file's SHA-256 in hexadecimal."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(path, write_to)[0]
    except (OSError, CheckpointError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = (isinstance(cause, OSError) and cause.strerror) or str(cause)
        if isinstance(cause, OSError) and cause.errno in (errno.ENAMETOOLONG, errno.EISDIR):
            raise DataError(f"cannot write {path}: {reason}; choose another --output folder or --suffix") from error
        raise OutputError(f"cannot write {path}: {reason}; make room or choose another --output folder") from error
