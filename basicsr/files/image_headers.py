"""What an image file announces before it is decoded, which images are read at all, and the directories of TIFF files.

Each dialect of TIFF is read exactly, or named so that it is refused. EXIF blocks are such directories too.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Set
from typing import NamedTuple, Protocol

# 16384 x 16384, 0.8 GB in 8 bits: more than any photograph, and little enough to fail in good order.
MOST_PIXELS = 2**28
# What scripts/data/extract_subimages.py cuts into squares; no library here decodes more.
MOST_TO_CUT = 2**30
# The orientations of EXIF that make rows of columns.
TURNED = range(5, 9)

_BITS = {"PNG": (2, 4, 8, 16), "JPEG": (8,)}


class HeaderError(ValueError):
    """Why bytes are no header of an image, without the file's name."""


class Source(Protocol):
    """An image's bytes, of which parts are read."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end."""
        ...


class Content:
    """A source in memory; only the parts that are read are copied."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._view = memoryview(content)
        self.size = len(self._view)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end."""
        return bytes(self._view[offset : offset + length])


class ImageHeader(NamedTuple):
    """What a file announces; height and width are those of the upright image.

    Attributes:
        format: 'PNG', 'JPEG', 'BMP', 'TIFF', 'WebP' or 'PPM'; 'NPY' of bands.
        channels: as stored, alpha included; 3 for colours from a palette.
        bits: to a channel; 8 for colours from a palette.
        space: 'gray', 'colour', 'CMYK', 'bands', or 'other'.
        end: bytes that the file must have at least for its pixels; 0 if unknown.
        largest: the value of full intensity, where the file states it, as PPM files do.
        orientation: how the stored rows are to be turned, 1 to 8 as in EXIF.
        frames: pictures in the file: of an animation, or pages.
        transparent: the tRNS chunk of a PNG file without alpha channel.
        oddity: why its pixels cannot be read.
    """

    format: str
    height: int
    width: int
    channels: int
    bits: int
    space: str
    floating: bool = False
    end: int = 0
    largest: int | None = None
    orientation: int = 1
    frames: int = 1
    transparent: bytes | None = None
    oddity: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width of the stored pixels, not turned."""
        return self.size[::-1] if self.orientation in TURNED else self.size

    @property
    def has_alpha(self) -> bool:
        """Whether the file has transparency."""
        return self.channels in (2, 4) or self.transparent is not None

    @property
    def depth(self) -> int:
        """Bits to a channel once decoded: 8, 16, or 32 of floats."""
        return 32 if self.bits > 16 else 16 if self.bits > 8 else 8


def find_fault(header: ImageHeader, most_pixels: int = MOST_PIXELS) -> str | None:
    """Why an image is refused, or None: whatever is too large or has no exact meaning in three channels is."""
    height, width = header.size
    pixels = height * width
    if height < 1 or width < 1:
        return f"its header announces {height}x{width} pixels; the file is damaged"
    if pixels > most_pixels:
        size = f"{height}x{width} pixels (H x W)"
        tool = "scripts/data/extract_subimages.py" if pixels <= MOST_TO_CUT else "an image editor first"
        return f"it announces {size}, allowed are {most_pixels:,d} in all; cut it into squares by {tool}"
    if header.space == "CMYK":
        return "its pixels are CMYK, allowed are gray and RGB; convert it"
    if header.floating:
        return f"its pixels are float{header.bits}, allowed are 8 or 16 bits; convert it"
    if header.bits == 1:
        return "it has 1 bit to a pixel, allowed are 8 or 16 bits; convert it"
    if header.bits not in _BITS.get(header.format, (8, 16)):
        return f"its pixels are of {header.bits} bits, allowed are 8 or 16 bits; convert it"
    if header.largest not in (None, 255, 65535):
        return f"its largest value is {header.largest}, allowed are 255 or 65535; convert it"
    if header.format == "JPEG" and header.channels not in (1, 3):
        return f"it has {header.channels} channels, allowed are 1 or 3; convert it"
    if header.oddity is not None:
        return header.oddity
    if header.frames > 1:
        kind = "pages" if header.format == "TIFF" else "pictures"
        return f"it holds {header.frames} {kind}, allowed is one; save each in a file of its own"
    return None


_MOST_TAGS = 1 << 12  # to a directory
_MOST_PAGES = 1 << 10
_LONGEST_TEXT = 1 << 17
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

_SUBFILE, _OLD_SUBFILE = 254, 255
_WIDTH, _HEIGHT, _BITS_EACH, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _DESCRIPTION = 256, 257, 258, 259, 262, 266, 270
_ORIENTATION, _SAMPLES, _ROWS, _PLANAR, _PREDICTOR, _COLOUR_MAP = 274, 277, 278, 284, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _SUB_FILES, _EXTRA, _FORMAT = 322, 323, 330, 338, 339
_STRIP_STARTS, _STRIP_LENGTHS, _TILE_STARTS, _TILE_LENGTHS = 273, 279, 324, 325
_INKS, _PLANES, _DEPTH, _MICROSCOPE = 332, 33629, 32997, 34412  # inks; planes of MetaMorph's stacks; volumes; LSM
_OF_OTHERS = frozenset({_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT})  # of the directories after and below the first
_WANTED = _OF_OTHERS | {
    *(_BITS_EACH, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _DESCRIPTION, _ORIENTATION, _SAMPLES, _ROWS, _PLANAR),
    *(_PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _SUB_FILES, _EXTRA, _FORMAT, _INKS, _PLANES, _DEPTH),
    *(_STRIP_STARTS, _STRIP_LENGTHS, _TILE_STARTS, _TILE_LENGTHS),
}

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
_COLOURS = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4}
_SPACES = {MIN_IS_WHITE: "gray", MIN_IS_BLACK: "gray", CMYK: "CMYK"}
_OTHER_SPACES = {
    **{4: "a mask", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "a camera's raw data (CFA)"},
    **{32844: "LogL", 32845: "LogLuv", 34892: "a camera's raw data"},
}
_ASSOCIATED, _UNASSOCIATED = [1], [2]  # alpha: multiplied into the colours or not
_REDUCED, _MASK = 1, 4  # bits of _SUBFILE: a smaller version of another picture in the file, or its mask

_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstd"}
_WITH_PREDICTOR = (5, 8, 32946, 34925, 50000)
_OTHER_COMPRESSIONS = {
    **{2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 33003: "JPEG 2000"},
    **{33005: "JPEG 2000", 34887: "LERC", 34892: "JPEG", 34933: "PNG", 34934: "JPEG XR", 22610: "JPEG XR"},
    **{50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"},
}


class Directory(NamedTuple):
    """Its wanted tags of whole numbers, its descriptions, where the next one is or 0, and the numbers of all tags."""

    tags: dict[int, list[int]]
    descriptions: list[bytes]
    following: int
    all_tags: list[int]

    def first(self, tag: int, default: int) -> int:
        """A tag's first number."""
        return self.tags[tag][0] if self.tags.get(tag) else default

    @property
    def orientation(self) -> int:
        """How the picture's rows are to be turned, 1 to 8; other values count as 1."""
        found = self.first(_ORIENTATION, 1)
        return found if 1 <= found <= 8 else 1

    @property
    def is_smaller_version(self) -> bool:
        """Whether its picture is a thumbnail or a mask of another one."""
        return bool(self.first(_SUBFILE, 0) & (_REDUCED | _MASK)) or self.first(_OLD_SUBFILE, 1) == 2


def read_tiff_header(source: Source) -> ImageHeader:
    """The header of a TIFF file; raises HeaderError, and what damaged bytes make struct and indexing raise."""
    page = read_directory(source, None, _WANTED)
    width, height, shown = page.first(_WIDTH, 0), page.first(_HEIGHT, 0), int(not page.is_smaller_version)
    if not (width and height):
        raise HeaderError("the file is truncated or damaged (the TIFF names no size)")
    following, seen = page.following, {0}
    while following not in seen and len(seen) < _MOST_PAGES:
        seen.add(following)
        try:
            other = read_directory(source, following, _OF_OTHERS)
        except (HeaderError, struct.error):
            break
        following = other.following
        shown += not other.is_smaller_version
    oddity = _odd_layout(source, page) or _odd_pixels(page)
    end = 0 if oddity else _end(page)
    if page.orientation in TURNED:
        width, height = height, width
    hidden = [_hidden_frames(page, text) for text in page.descriptions]
    photometric = page.first(_PHOTOMETRIC, -1)
    return ImageHeader(
        "TIFF",
        height,
        width,
        channels=3 if photometric == PALETTE else page.first(_SAMPLES, 1),
        bits=page.first(_BITS_EACH, 1),
        space=_SPACES.get(photometric, "colour"),
        floating=page.first(_FORMAT, 1) == 3,
        end=end,
        orientation=page.orientation,
        frames=max(shown, len(page.tags.get(_PLANES) or [0]), *hidden),
        oddity=oddity,
    )


def read_bands_header(source: Source) -> ImageHeader:
    """The header of a TIFF file whose samples are no colours, whatever it calls them; raises as `read_tiff_header`."""
    header, page = read_tiff_header(source), read_directory(source, None, _WANTED)
    samples, bits, kinds = page.first(_SAMPLES, 1), page.tags.get(_BITS_EACH) or [1], page.tags.get(_FORMAT) or [1]
    oddity = _odd_layout(source, page)
    if len(set(bits)) > 1 or len(set(kinds)) > 1:
        oddity = oddity or "its channels hold numbers of different kinds; convert it"
    if kinds[0] not in (1, 3):
        oddity = oddity or "its pixels are signed or complex numbers, allowed are unsigned ones and floats; convert it"
    if page.first(_PHOTOMETRIC, MIN_IS_BLACK) not in (MIN_IS_BLACK, RGB):
        oddity = (
            oddity or "its channels are inks, an index of a palette, or inverted; save them as they are (MINISBLACK)"
        )
    end = 0 if oddity else _end(page)
    return header._replace(channels=samples, space="bands", end=end, oddity=oddity)


def read_directory(source: Source, start: int | None = None, wanted: Set[int] = frozenset({_ORIENTATION})) -> Directory:
    """The directory at `start`, or the first, of a TIFF file or EXIF block; the values of `wanted` tags are read."""
    beginning = source.read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(beginning[:2])
    if order is None:
        raise HeaderError("the file is damaged (the TIFF names no order of bytes)")
    big = struct.unpack(order + "H", beginning[2:4])[0] == 43
    pointer, counted, entry = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    if start is None:
        (start,) = struct.unpack(order + pointer, beginning[8:16] if big else beginning[4:8])
    length = struct.calcsize(order + counted)
    (count,) = struct.unpack(order + counted, source.read(start, length))
    if count > _MOST_TAGS:
        raise HeaderError(f"the file is damaged (the TIFF announces {count:,d} tags)")
    size = count * struct.calcsize(order + entry)
    entries = source.read(start + length, size)
    after = source.read(start + length + size, struct.calcsize(order + pointer))
    whole = len(after) == struct.calcsize(order + pointer)
    page = Directory({}, [], struct.unpack(order + pointer, after)[0] if whole else 0, [])
    for tag, kind, number, value in struct.iter_unpack(order + entry, entries):
        page.all_tags.append(tag)
        if tag not in wanted or number > source.size or kind not in _SIZES or tag in page.tags:
            continue
        stored = number * _SIZES[kind]
        if stored > len(value) and (kind in _INTEGERS or tag == _DESCRIPTION):
            (place,) = struct.unpack(order + pointer, value)
            value = source.read(place, stored if kind in _INTEGERS else min(stored, _LONGEST_TEXT))
        if kind in _INTEGERS:
            page.tags[tag] = [found for (found,) in struct.iter_unpack(order + _INTEGERS[kind], value[:stored])]
        elif tag == _DESCRIPTION and len(page.descriptions) < 2:  # a user's, and the writing program's
            page.descriptions.append(value[:stored])
    return page


def _hidden_frames(page: Directory, text: bytes) -> int:
    """Pictures that lie behind the first without a directory of their own, as a description says."""
    if text.startswith(b"ImageJ="):
        found = re.search(rb"^images=(\d{1,9})\s*$", text, re.MULTILINE)
        return int(found.group(1)) if found else 1
    samples = max(page.first(_SAMPLES, 1), 1)
    if b"<OME" in text[:4096] or b":OME" in text[:4096]:
        pattern = rb"<(?:\w+:)?Pixels\b[^>]{0,2000}\bSize%s=\"(\d{1,9})\""
        sizes = [re.search(pattern % axis, text) for axis in (b"Z", b"C", b"T")]
        return max(math.prod(int(size.group(1)) if size else 1 for size in sizes) // samples, 1)
    if text.startswith(b"{") and b'"truncated": true' in text:
        found = re.search(rb'"shape":\s*\[([\d, ]{1,200})\]', text)
        shape = [int(side) for side in found.group(1).split(b",") if side.strip()] if found else []
        return max(math.prod(shape) // max(page.first(_WIDTH, 1) * page.first(_HEIGHT, 1) * samples, 1), 1)
    return 1


def _odd_layout(source: Source, page: Directory) -> str | None:
    """Why the way in which the picture is stored is not read."""
    compression, predictor, bits = page.first(_COMPRESSION, 1), page.first(_PREDICTOR, 1), page.first(_BITS_EACH, 1)
    if page.is_smaller_version:
        return "its first picture is a thumbnail or a mask of another one; save the picture alone"
    telling = [tag for tag in page.all_tags if tag in _WANTED and tag != _DESCRIPTION]
    if len(set(telling)) < len(telling):
        return "one of its tags is there twice, and may say two things; save it as PNG"
    if page.first(_DEPTH, 1) != 1 or _MICROSCOPE in page.all_tags:
        return "it is a volume, allowed are pictures; save its planes one by one"
    if compression not in _COMPRESSIONS and bits != 1:
        name = _OTHER_COMPRESSIONS.get(compression, f"method {compression}")
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        return f"its pixels are compressed by {name}, allowed in TIFF are {known}; save it as PNG"
    if predictor not in (1, 2) or (predictor == 2 and compression not in _WITH_PREDICTOR):
        return f"its pixels are stored with predictor {predictor} under compression {compression}; save it as PNG"
    if page.first(_FILL_ORDER, 1) != 1 and bits != 1:
        return "its bits are stored in reverse order; save it as PNG"
    if page.first(_PLANAR, 1) not in (1, 2):
        return f"its channels are stored in an unknown way ({page.first(_PLANAR, 1)}); save it as PNG"
    for start in (page.tags.get(_SUB_FILES) or [])[:_MOST_PAGES]:
        below = read_directory(source, start, _OF_OTHERS)
        if below.first(_WIDTH, 0) * below.first(_HEIGHT, 0) > page.first(_WIDTH, 0) * page.first(_HEIGHT, 0):
            return "a larger picture than its first lies in a directory below; save that one alone"
    return None


def _odd_pixels(page: Directory) -> str | None:
    """Why such numbers or channels are not read."""
    bits, kinds = page.tags.get(_BITS_EACH) or [1], page.tags.get(_FORMAT) or [1]
    if len(set(bits)) > 1:
        return f"its channels have {', '.join(map(str, bits))} bits, allowed are 8 or 16 for all; convert it"
    if len(set(kinds)) > 1:
        return "its channels hold different kinds of numbers; convert it"
    if kinds[0] not in (1, 3):
        numbers = {2: f"signed numbers (int{bits[0]})", 5: "complex numbers", 6: "complex numbers"}
        what = numbers.get(kinds[0], "an unknown kind of numbers")
        return f"its pixels are {what}, allowed are 8 or 16 bits unsigned; convert it"
    photometric, samples = page.first(_PHOTOMETRIC, -1), page.first(_SAMPLES, 1)
    extra, colours = page.tags.get(_EXTRA) or [], _COLOURS.get(photometric)
    if photometric == -1:
        return "it does not say what its values stand for (no PhotometricInterpretation); convert it"
    if colours is None:
        name = _OTHER_SPACES.get(photometric, f"of kind {photometric}")
        return f"its pixels are {name}, allowed are gray and RGB; convert it"
    if photometric == CMYK and page.first(_INKS, 1) != 1:
        return "its inks are other than CMYK, allowed are gray and RGB; convert it"
    if photometric == PALETTE:
        levels = page.tags.get(_COLOUR_MAP) or []
        # Files hold 8 bits in 16 in one of two ways.
        is_plain = all(level & 255 == 0 for level in levels) or all(level >> 8 == level & 255 for level in levels)
        if len(levels) != 3 * 256 or bits[0] != 8 or not is_plain:
            return "its palette is none of 256 colours of 8 bits; convert it to RGB"
    if samples == colours and not extra:
        return None
    what = {1: "gray", 3: "RGB"}.get(colours, "CMYK")
    if samples != colours + 1:
        return f"it has {samples} channels that are not {what} or {what} and alpha; save the colours alone"
    if extra == _UNASSOCIATED and photometric not in (PALETTE, CMYK):
        return None
    if extra == _ASSOCIATED:
        return (
            "its colours are multiplied by alpha (associated alpha), which cannot be undone exactly; save it with"
            " unassociated alpha or without"
        )
    return f"it does not say that its channel {samples} is alpha; save {what} alone, or with unassociated alpha"


def _end(page: Directory) -> int:
    """Where the last pixel ends; raises HeaderError where a strip or tile is missing or has too few bytes."""
    starts = page.tags.get(_STRIP_STARTS) or page.tags.get(_TILE_STARTS) or []
    lengths = page.tags.get(_STRIP_LENGTHS) or page.tags.get(_TILE_LENGTHS) or []
    height, width, samples = page.first(_HEIGHT, 0), page.first(_WIDTH, 0), page.first(_SAMPLES, 1)
    planes = samples if page.first(_PLANAR, 1) == 2 else 1
    bits = page.first(_BITS_EACH, 1) * (samples if planes == 1 else 1)
    if page.tags.get(_TILE_STARTS):
        wide, high = page.first(_TILE_WIDTH, 0), page.first(_TILE_HEIGHT, 0)
        if not (wide and high):
            raise HeaderError("the file is damaged (the TIFF's tiles have no size)")
        across, down = math.ceil(width / wide), math.ceil(height / high)
        of_each = of_last = high * ((wide * bits + 7) // 8)
    else:
        rows = min(page.first(_ROWS, height), height) or height
        row, across, down = (width * bits + 7) // 8, 1, math.ceil(height / rows)
        of_each, of_last = rows * row, (height - (down - 1) * rows) * row
    number = across * down * planes
    if not (len(starts) == len(lengths) == number > 0) or 0 in starts or 0 in lengths:
        held = min(len(starts) - starts.count(0), len(lengths) - lengths.count(0))
        raise HeaderError(f"the file is damaged or sparse (the TIFF holds {held} of {number:,d} strips or tiles)")
    needed = ([of_each] * (across * (down - 1)) + [of_last] * across) * planes
    if page.first(_COMPRESSION, 1) == 1 and any(has < needs for has, needs in zip(lengths, needed, strict=True)):
        raise HeaderError("the file is damaged (the TIFF's strips or tiles are shorter than their pixels)")
    return max(start + length for start, length in zip(starts, lengths, strict=True))
