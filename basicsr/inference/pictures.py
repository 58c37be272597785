"""Pictures as people keep them: files of many kinds, read with all their metadata.

`files/images.py` decodes what is exact, here with gray, alpha and 16 bits kept. Pillow reads what is only shown as an
image: GIF, the first frame of an animation, CMYK, one bit.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from basicsr.files.header_readers import read_header, sniff
from basicsr.files.image_headers import MOST_TO_CUT, Content, HeaderError, ImageHeader, find_fault
from basicsr.files.images import AGAIN, IMAGE_SUFFIXES, decode, find_damage, upright
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.text import printable

PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")

# Pillow knows more formats; some of them start other programs on the file.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_COLOUR_SPACES = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}

_ORIENTATION = 274
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_RESOLUTION = (282, 283, 296)
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
# The tags of EXIF's first directory that describe the picture. Others say how the pixels were stored in the old file.
_DESCRIPTIVE = {
    *(269, 270, 271, 272, _ORIENTATION, *_RESOLUTION, 285, 305, 306, 315, 316),  # DocumentName to HostComputer
    *(18246, 18249, 33432, *range(40091, 40096)),  # ratings, Copyright, Windows' titles and comments
}


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
            new = {_PIXEL_WIDTH: pixels.shape[1], _PIXEL_HEIGHT: pixels.shape[0]}
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
                self._image = Image.open(io.BytesIO(self._content), formats=_FORMATS)
        if self._header is None:
            assert self._image is not None
            self.width, self.height = self._image.size
        else:
            self.height, self.width = self._header.size
        self.bits = 8 if self._header is None else self._header.depth

    def read(self) -> Picture:
        """Decodes the picture, upright; raises DataError if it is damaged or of an unknown kind of pixels."""
        with self._decoding(), _silent_decoders():
            notes = self._find_notes()
            exif = self._exif(notes)
            pixels = self._exact() if self._is_exact else self._as_shown()
            icc = self._info.get("icc_profile") or b""
            if icc[16:20] != _COLOUR_SPACES[pixels.shape[2]] or (self._header and self._header.space == "CMYK"):
                icc = None
            dpi = self._dpi()
            if dpi is None:
                exif = {tag: value for tag, value in exif.items() if tag not in _RESOLUTION}
            return Picture(np.ascontiguousarray(pixels), icc, exif, dpi, tuple(notes))

    def _error(self, reason: str | None) -> DataError:
        return DataError(f"cannot read image {self._path}: {reason}")

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """Turns all errors of decoders into one line; allows pictures of any size, and prints no warnings."""
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except UserError:
            raise
        except UnidentifiedImageError as error:
            raise self._error(f"damaged, or its format is none of {', '.join(_FORMATS)}; convert it") from error
        except MemoryError as error:
            raise self._error("there is not enough memory; cut it into parts") from error
        except Exception as error:  # decoders fail on damaged files in any way
            raise self._error(f"{(str(error) or type(error).__name__).splitlines()[0]}; {AGAIN}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def _find_header(self) -> ImageHeader:
        """The file's header; CMYK, one bit and several pictures, of which the first is shown, are allowed here."""
        try:
            header = read_header(Content(self._content))
        except HeaderError as error:
            raise self._error(f"{error}; {AGAIN}") from error
        lenient = replace(header, frames=1, bits=8 if header.bits == 1 else header.bits)
        if header.space == "CMYK" and header.bits == 8:
            lenient = replace(lenient, space="colour", channels=3)
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

    @property
    def _info(self) -> dict[Any, Any]:
        return {} if self._image is None else self._image.info

    def _find_notes(self) -> list[str]:
        frames = self._header.frames if self._header else getattr(self._image, "n_frames", 1)
        notes = []
        if frames > 1:
            is_tiff = self._header is not None and self._header.format == "TIFF"
            notes.append(f"only the first of its {frames} {'pages' if is_tiff else 'frames'}")
        if self._header is not None and self._header.space == "CMYK":
            notes.append("CMYK converted to RGB")
        if self._image is None:
            notes.append("its EXIF data and profile were left out")
        return notes

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
            if _ORIENTATION in exif:
                exif[_ORIENTATION] = 1
            exif_bytes(exif)
        except Exception:  # Pillow fails on damaged EXIF data in any way
            notes.append("its EXIF data are damaged and were left out")
            return {}
        return exif

    def _dpi(self) -> tuple[float, float] | None:
        with suppress(TypeError, ValueError, ZeroDivisionError):
            horizontal, vertical = (float(value) for value in self._info.get("dpi", ()))
            # Pillow says 1 where a TIFF file says nothing; more than JPEG can say is no resolution.
            if all(1 < value < 65536 for value in (horizontal, vertical)):
                return horizontal, vertical
        return None

    def _exact(self) -> np.ndarray:
        """(H, W, C) as `files.images` decodes it."""
        assert self._header is not None
        pixels = decode(self._content, self._header)
        if self._header.space == "CMYK":
            image = Image.fromarray(pixels, "CMYK")
            image.info = self._info
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


def exif_bytes(exif: Mapping[int, Any]) -> bytes:
    """EXIF data as files hold them, beginning with `Exif` and two zeros; empty if there are none."""
    if not exif:
        return b""
    block = Image.Exif()
    for tag, value in exif.items():
        block[tag] = value
    return block.tobytes()


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


@contextmanager
def _silent_decoders() -> Iterator[None]:
    """Keeps OpenCV and libtiff from writing their own lines about damage to standard error."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        kept = None
    try:
        if kept is not None:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
        if kept is not None:
            os.dup2(kept, 2)
            os.close(kept)
