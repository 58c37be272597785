"""Pictures as people keep them: files of many kinds, read with all they carry.

Training and evaluation read three channels of pixels and nothing else (`utils/img_util.py`). Here gray stays gray,
transparency, 16 bits, colour profile, resolution and EXIF data are kept, and the picture stands upright.
"""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from basicsr.utils.errors import DataError, UserError
from basicsr.utils.img_util import IMAGE_SUFFIXES, find_damage

PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")

# Pillow knows more formats; some of them start other programs on the file.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_COLOUR_SPACES = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}

_ORIENTATION = 274
_EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 0x8769, 0x8825, 0xA005
_RESOLUTION = (282, 283, 296)
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
# The tags of EXIF's first directory that tell of the picture. Others tell how the pixels were stored in the old file.
_DESCRIPTIVE = {
    *(269, 270, 271, 272, _ORIENTATION, *_RESOLUTION, 285, 305, 306, 315, 316),  # DocumentName to HostComputer
    *(18246, 18249, 33432, *range(40091, 40096)),  # ratings, Copyright, Windows' titles and comments
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_PLANAR, _TIFF_EXTRA, _TIFF_SAMPLE = 258, 262, 284, 338, 339


@dataclass(frozen=True)
class Picture:
    """Pixels, upright, and what belongs to them.

    Attributes:
        pixels: (H, W, C) uint8 or uint16; C is 1 (gray), 2 (gray, alpha), 3 (R, G, B) or 4 (R, G, B, alpha). Colours
            are not multiplied by alpha.
        icc: ICC profile, fit for this number of colours.
        exif: EXIF's first directory, tag to value; the directories below it are mappings. Its orientation is 1.
        dpi: pixels per inch, horizontally and vertically.
        notes: what was not taken as it was, each in a few words.
    """

    pixels: np.ndarray
    icc: bytes | None = None
    exif: Mapping[int, Any] = field(default_factory=dict)
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.pixels.shape[2] in (2, 4)

    @property
    def size(self) -> str:
        """`WIDTHxHEIGHT`, as people write it."""
        return f"{self.pixels.shape[1]}x{self.pixels.shape[0]}"

    def with_pixels(self, pixels: np.ndarray) -> Picture:
        """The picture with other pixels, such as larger ones; EXIF data tell the new size where they told the old."""
        exif = dict(self.exif)
        if _EXIF_IFD in exif:
            new = {_PIXEL_WIDTH: pixels.shape[1], _PIXEL_HEIGHT: pixels.shape[0]}
            exif[_EXIF_IFD] = {tag: new.get(tag, value) for tag, value in exif[_EXIF_IFD].items()}
        return replace(self, pixels=pixels, exif=exif)


class PictureFile:
    """A picture's file, opened: its size is known before it is decoded.

    Args:
        path: the file.

    Attributes:
        width: of the picture, in pixels; for a file whose EXIF data turn it, perhaps the height.
        height: likewise.
        bits: of each channel, 8 or 16.

    Raises:
        DataError: it cannot be read, is damaged, or none of the formats or kinds of pixels known; one line with `path`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for ever
            raise DataError(f"cannot read image {self._path}: it is no file")
        try:
            self._content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read image {self._path}: {error.strerror}") from error
        if damage := find_damage(self._content):
            raise DataError(f"cannot read image {self._path}: {damage}; copy or download the file again")
        with _decoding(self._path):
            self._image = Image.open(io.BytesIO(self._content), formats=_FORMATS)
            self.width, self.height = self._image.size
            self.bits = self._find_bits()

    def read(self) -> Picture:
        """Decodes the picture and turns it upright.

        Raises:
            DataError: it is damaged, or its kind of pixels is none of those known.
        """
        with _decoding(self._path), _silent_decoders():
            notes = self._find_notes()
            exif, orientation = self._exif(notes)
            pixels = self._read_16_bits() if self.bits == 16 else self._read_8_bits(notes)
            # Pillow and OpenCV turn TIFF pictures upright themselves, and no others.
            if self._image.format != "TIFF":
                pixels = upright(pixels, orientation)
            icc = self._image.info.get("icc_profile") or b""
            if icc[16:20] != _COLOUR_SPACES[pixels.shape[2]] or self._image.mode == "CMYK":
                icc = None
            dpi = self._dpi()
            if dpi is None:
                exif = {tag: value for tag, value in exif.items() if tag not in _RESOLUTION}
            return Picture(np.ascontiguousarray(pixels), icc, exif, dpi, tuple(notes))

    def _find_bits(self) -> int:
        """Bits of each channel; checks that 16 bits are stored in a way that OpenCV reads rightly."""
        if self._image.format == "PNG":
            return 16 if self._content[24] == 16 else 8
        if self._image.format == "PPM":
            maximum = int(re.sub(rb"#[^\n]*", b"", self._content[:4096]).split()[3]) if self._has_maximum() else 255
            if 255 < maximum != 65535:
                raise self._unfit(f"its largest value is {maximum}, allowed are at most 255, and 65535")
            return 16 if maximum == 65535 else 8
        if self._image.format != "TIFF":
            return 8
        tags = self._image.tag_v2  # type: ignore[attr-defined]
        bits = tags.get(_TIFF_BITS, (1,))
        if max(bits) <= 8:
            return 8
        if set(bits) != {16} or set(tags.get(_TIFF_SAMPLE, (1,))) != {1}:
            raise self._unfit(f"its pixels are of {max(bits)} bits or floating-point, allowed are 8 and 16 bits")
        colours = {1: 1, 2: 3}.get(tags.get(_TIFF_PHOTOMETRIC))
        known_extra = (len(bits), tuple(tags.get(_TIFF_EXTRA, ()))) in ((colours, ()), (4, (2,)))
        if colours is None or not known_extra or (tags.get(_TIFF_PLANAR, 1) != 1 and len(bits) > 1):
            raise self._unfit("its 16 bits are stored in an unusual way, allowed are gray, RGB and RGBA, interleaved")
        return 16

    def _has_maximum(self) -> bool:
        return self._content[:2] in (b"P2", b"P3", b"P5", b"P6")

    def _unfit(self, reason: str) -> DataError:
        return DataError(f"cannot read image {self._path}: {reason}; convert it")

    def _find_notes(self) -> list[str]:
        frames = getattr(self._image, "n_frames", 1)
        # What a camera adds to a JPEG file after the picture (previews, depth) makes it no sequence.
        if frames > 1 and self._image.format != "MPO":
            return [f"only the first of its {frames} {'pages' if self._image.format == 'TIFF' else 'frames'}"]
        return []

    def _exif(self, notes: list[str]) -> tuple[dict[int, Any], int]:
        """What EXIF data tell of the picture, and how it was turned; damaged data are left out, with a note."""
        orientation = 1
        try:
            found = self._image.getexif()
            orientation = found.get(_ORIENTATION, 1)
            exif = {tag: value for tag, value in found.items() if tag in _DESCRIPTIVE}
            for tag in (_EXIF_IFD, _GPS_IFD):
                if below := dict(found.get_ifd(tag)):
                    exif[tag] = below
            if _INTEROP_IFD in exif.get(_EXIF_IFD, {}):
                exif[_EXIF_IFD][_INTEROP_IFD] = dict(found.get_ifd(_INTEROP_IFD))
            if _ORIENTATION in exif:
                exif[_ORIENTATION] = 1
            exif_bytes(exif)
        except Exception:  # Pillow stumbles over damaged EXIF data in any way
            notes.append("its EXIF data are damaged and were left out")
            return {}, orientation
        return exif, orientation

    def _dpi(self) -> tuple[float, float] | None:
        with suppress(TypeError, ValueError, ZeroDivisionError):
            horizontal, vertical = (float(value) for value in self._image.info.get("dpi", ()))
            # Pillow says 1 where a TIFF file says nothing; more than JPEG can say is no resolution.
            if all(1 < value < 65536 for value in (horizontal, vertical)):
                return horizontal, vertical
        return None

    def _read_8_bits(self, notes: list[str]) -> np.ndarray:
        image: Image.Image = self._image
        key = image.info.get("transparency")
        if image.format == "PNG" and image.mode in ("1", "L") and key is not None:
            # Pillow gives gray of few bits in 256 levels, and the transparent one, in most versions, in the file's.
            levels = 2 ** self._content[24] - 1
            image.info["transparency"] = key * 255 // levels if key <= levels else key
        image.load()
        if image.mode == "CMYK":
            notes.append("CMYK converted to RGB")
            image = _cmyk_to_rgb(image)
        mode = _layout_of(image)
        if mode is None:
            raise self._unfit(
                f"its pixels are of the kind {image.mode}, allowed are gray, RGB and CMYK of 8 or 16 bits"
            )
        pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], _CHANNELS[mode])

    def _read_16_bits(self) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(self._content, np.uint8), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.dtype != np.uint16:
            raise DataError(f"cannot read image {self._path}: it is damaged; copy or download the file again")
        if pixels.ndim == 2:
            key = self._image.info.get("transparency")
            if key is None:
                return pixels[..., None]
            return np.dstack([pixels, np.where(pixels == key, 0, 65535).astype(np.uint16)])
        if pixels.shape[2] == 3:
            return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        is_gray = self._image.format == "PNG" and self._content[25] == 4
        return pixels[..., [0, 3]] if is_gray else cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)


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


def exif_bytes(exif: Mapping[int, Any]) -> bytes:
    """EXIF data as files hold them, beginning with `Exif` and two zeros; empty if there are none."""
    if not exif:
        return b""
    block = Image.Exif()
    for tag, value in exif.items():
        block[tag] = value
    return block.tobytes()


def _layout_of(image: Image.Image) -> str | None:
    """Which of the modes L, LA, RGB and RGBA an image becomes without loss; None where there is none."""
    keyed = "transparency" in image.info
    if image.mode in ("1", "L"):
        return "LA" if keyed else "L"
    if image.mode in ("LA", "La"):
        return "LA"
    if image.mode == "P":
        keyed = keyed or (image.palette is not None and image.palette.mode == "RGBA")
        colours = np.reshape(image.getpalette("RGB") or (), (-1, 3))
        if (colours == colours[:, :1]).all():  # as GIF, which has palettes only, stores gray
            return "LA" if keyed else "L"
        return "RGBA" if keyed else "RGB"
    if image.mode in ("PA", "RGBA", "RGBa"):
        return "RGBA"
    if image.mode in ("RGB", "RGBX", "YCbCr", "HSV"):
        return "RGBA" if keyed else "RGB"
    return None


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
    """Keeps OpenCV and libtiff from writing their own lines about damage to standard error; ours says it."""
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


@contextmanager
def _decoding(path: str) -> Iterator[None]:
    """Makes one line of whatever decoding raises; pictures may be of any size, warnings are not printed."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        names = ", ".join(_FORMATS)
        raise DataError(f"cannot read image {path}: damaged, or its format is none of {names}; convert it") from error
    except MemoryError as error:
        raise DataError(f"cannot read image {path}: there is not enough memory; cut it into parts") from error
    except Exception as error:  # decoders stumble over damaged files in any way
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot read image {path}: {reason}; copy or download the file again") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
