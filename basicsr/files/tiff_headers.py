"""The headers of TIFF files, which have many dialects: each is read exactly, or named for the reader to refuse.

A file is a chain of directories of tags; the first tells of the picture. Everything that changes what the stored
numbers mean is looked at here, so that a check of headers knows what decoding would do.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Set
from dataclasses import replace
from typing import NamedTuple

from basicsr.files.image_sources import TURNED, HeaderError, ImageHeader, Source

_MOST_TAGS = 1 << 12  # to a directory
_MOST_PAGES = 1 << 10
_LONGEST_TEXT = 1 << 17
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

SUBFILE, OLD_SUBFILE = 254, 255
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, DESCRIPTION = 256, 257, 258, 259, 262, 266, 270
ORIENTATION, SAMPLES, ROWS, PLANAR, PREDICTOR, COLOUR_MAP = 274, 277, 278, 284, 317, 320
TILE_WIDTH, TILE_HEIGHT, SUB_FILES, EXTRA, FORMAT = 322, 323, 330, 338, 339
STARTS, LENGTHS = (273, 324), (279, 325)
_INKS, _PLANES, _DEPTH, _MICROSCOPE = 332, 33629, 32997, 34412  # inks; planes of MetaMorph's stacks; volumes; LSM

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
_COLOUR_SPACES = {
    **{4: "a mask", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32803: "a camera's raw data (CFA)"},
    **{32844: "LogL", 32845: "LogLuv", 34892: "a camera's raw data"},
}
UNASSOCIATED = 2
_REDUCED = 1  # bit of SUBFILE: a smaller version of another picture in the file
_MASK = 4

_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstd"}
_WITH_PREDICTOR = (5, 8, 32946, 34925, 50000)
_OTHER_COMPRESSIONS = {
    **{2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 33003: "JPEG 2000"},
    **{33005: "JPEG 2000", 34887: "LERC", 34892: "JPEG", 34933: "PNG", 34934: "JPEG XR", 22610: "JPEG XR"},
    **{50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"},
}

_WANTED = frozenset(
    {
        *(SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, DESCRIPTION, ORIENTATION, SAMPLES, ROWS),
        *(PLANAR, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_HEIGHT, SUB_FILES, EXTRA, FORMAT, *STARTS, *LENGTHS),
        *(OLD_SUBFILE, _INKS, _PLANES, _DEPTH),
    }
)
_OF_OTHERS = frozenset({SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT})  # of the directories after and below the first

Tags = dict[int, list[int]]


class Directory(NamedTuple):
    """One directory.

    Attributes:
        tags: those that matter here, and are whole numbers.
        descriptions: the texts that describe the picture.
        following: where the next directory is, or 0.
        all_tags: the numbers of all tags, in order.
    """

    tags: Tags
    descriptions: list[bytes]
    following: int
    all_tags: list[int]

    def first(self, tag: int, default: int) -> int:
        """A tag's first number."""
        return self.tags[tag][0] if self.tags.get(tag) else default


def read_tiff_header(source: Source) -> ImageHeader:
    """The header of a TIFF file; raises HeaderError and what damaged bytes make struct and indexing raise."""
    pages = list(_pages(source))
    page = pages[0]
    width, height = page.first(WIDTH, 0), page.first(HEIGHT, 0)
    if not (width and height):
        raise HeaderError("the file is truncated or damaged (the TIFF names no size)")
    photometric, bits = page.first(PHOTOMETRIC, -1), page.first(BITS, 1)
    floating = page.first(FORMAT, 1) == 3
    channels = 3 if photometric == PALETTE else page.first(SAMPLES, 1)
    orientation = orientation_of(page.tags)
    oddity = _find_oddity(source, page)
    end = 0 if oddity else _end(page)
    if orientation in TURNED:
        width, height = height, width
    space = {MIN_IS_WHITE: "gray", MIN_IS_BLACK: "gray", CMYK: "CMYK"}.get(photometric, "colour")
    hidden = [_hidden_frames(page, text) for text in page.descriptions]
    frames = max(sum(not _is_smaller_version(other) for other in pages), len(page.tags.get(_PLANES) or [0]), *hidden)
    header = ImageHeader("TIFF", height, width, channels, bits, space, floating, end)
    return replace(header, orientation=orientation, frames=frames, oddity=oddity)


def orientation_of(tags: Tags) -> int:
    """How the rows of a directory's picture are to be turned, 1 to 8; what is none of these counts as 1."""
    found = (tags.get(ORIENTATION) or [1])[0]
    return found if 1 <= found <= 8 else 1


def read_directory(source: Source, start: int | None = None, wanted: Set[int] = frozenset({ORIENTATION})) -> Directory:
    """A directory of a TIFF file, or of what is stored in its form, as EXIF data are.

    Args:
        source: the file.
        start: where the directory is; None for the first.
        wanted: the tags whose values are read.
    """
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
    tags: Tags = {}
    descriptions: list[bytes] = []
    all_tags = []
    for tag, kind, number, value in struct.iter_unpack(order + entry, entries):
        all_tags.append(tag)
        if tag not in wanted or number > source.size or kind not in _SIZES or tag in tags:
            continue
        stored = number * _SIZES[kind]
        if stored > len(value) and (kind in _INTEGERS or tag == DESCRIPTION):
            (place,) = struct.unpack(order + pointer, value)
            value = source.read(place, stored if kind in _INTEGERS else min(stored, _LONGEST_TEXT))
        if kind in _INTEGERS:
            tags[tag] = [found for (found,) in struct.iter_unpack(order + _INTEGERS[kind], value[:stored])]
        elif tag == DESCRIPTION and len(descriptions) < 2:  # a user's, and the writing program's
            descriptions.append(value[:stored])
    after = source.read(start + length + size, struct.calcsize(order + pointer))
    following = struct.unpack(order + pointer, after)[0] if len(after) == struct.calcsize(order + pointer) else 0
    return Directory(tags, descriptions, following, all_tags)


def _pages(source: Source) -> Iterator[Directory]:
    """The first directory, and those that follow it as far as they can be read."""
    page = read_directory(source, None, _WANTED)
    yield page
    seen = {0}
    while page.following not in seen and len(seen) < _MOST_PAGES:
        seen.add(page.following)
        try:
            page = read_directory(source, page.following, _OF_OTHERS)
        except (HeaderError, struct.error):
            return
        yield page


def _is_smaller_version(page: Directory) -> bool:
    return bool(page.first(SUBFILE, 0) & (_REDUCED | _MASK)) or page.first(OLD_SUBFILE, 1) == 2


def _hidden_frames(page: Directory, text: bytes) -> int:
    """Pictures that lie behind the first without a directory of their own, as a describing text tells."""
    if text.startswith(b"ImageJ="):
        found = re.search(rb"^images=(\d{1,9})\s*$", text, re.MULTILINE)
        return int(found.group(1)) if found else 1
    if b"<OME" in text[:4096] or b":OME" in text[:4096]:
        sizes = [
            re.search(rb"<(?:\w+:)?Pixels\b[^>]{0,2000}\bSize%s=\"(\d{1,9})\"" % axis, text)
            for axis in (b"Z", b"C", b"T")
        ]
        numbers = [int(size.group(1)) if size else 1 for size in sizes]
        return max(math.prod(numbers) // max(page.first(SAMPLES, 1), 1), 1)
    if text.startswith(b"{") and (found := re.search(rb'"shape":\s*\[([\d, ]{1,200})\]', text)):
        shape = [int(side) for side in found.group(1).split(b",") if side.strip()]
        of_one = page.first(WIDTH, 1) * page.first(HEIGHT, 1) * max(page.first(SAMPLES, 1), 1)
        return max(math.prod(shape) // max(of_one, 1), 1) if b'"truncated": true' in text else 1
    return 1


def _find_oddity(source: Source, page: Directory) -> str | None:
    """The first property for which this house does not read the picture's pixels."""
    return _find_odd_layout(source, page) or _find_odd_pixels(page) or _find_odd_channels(page)


def _find_odd_layout(source: Source, page: Directory) -> str | None:
    compression, predictor = page.first(COMPRESSION, 1), page.first(PREDICTOR, 1)
    if _is_smaller_version(page):
        return "its first picture is a thumbnail or a mask of another one; save the picture alone"
    telling = [tag for tag in page.all_tags if tag in _WANTED and tag != DESCRIPTION]
    if len(set(telling)) < len(telling):
        return "one of its tags is there twice, and may say two things; save it as PNG"
    if page.first(_DEPTH, 1) != 1 or _MICROSCOPE in page.all_tags:
        return "it is a volume, allowed are pictures; save its planes one by one"
    bits = page.first(BITS, 1)
    if compression not in _COMPRESSIONS and bits != 1:
        name = _OTHER_COMPRESSIONS.get(compression, f"method {compression}")
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        return f"its pixels are compressed by {name}, allowed in TIFF are {known}; save it as PNG"
    if predictor not in (1, 2) or (predictor == 2 and compression not in _WITH_PREDICTOR):
        return f"its pixels are stored with predictor {predictor} under compression {compression}; save it as PNG"
    if page.first(FILL_ORDER, 1) != 1 and bits != 1:
        return "its bits are stored in reverse order; save it as PNG"
    if page.first(PLANAR, 1) not in (1, 2):
        return f"its channels are stored in an unknown way ({page.first(PLANAR, 1)}); save it as PNG"
    for start in (page.tags.get(SUB_FILES) or [])[:_MOST_PAGES]:
        below = read_directory(source, start, _OF_OTHERS)
        if below.first(WIDTH, 0) * below.first(HEIGHT, 0) > page.first(WIDTH, 0) * page.first(HEIGHT, 0):
            return "a larger picture than its first lies in a directory below; save that one alone"
    return None


def _find_odd_pixels(page: Directory) -> str | None:
    bits, kinds = page.tags.get(BITS) or [1], page.tags.get(FORMAT) or [1]
    if len(set(bits)) > 1:
        return f"its channels have {', '.join(map(str, bits))} bits, allowed are 8 or 16 for all; convert it"
    if len(set(kinds)) > 1:
        return "its channels hold different kinds of numbers; convert it"
    if kinds[0] == 2:
        return f"its pixels are signed numbers (int{bits[0]}), allowed are 8 or 16 bits unsigned; convert it"
    if kinds[0] in (5, 6):
        return "its pixels are complex numbers, allowed are 8 or 16 bits unsigned; convert it"
    if kinds[0] not in (1, 3):
        return "it does not say what kind of numbers its pixels are, allowed are 8 or 16 bits unsigned; convert it"
    return None


def _find_odd_channels(page: Directory) -> str | None:
    photometric, samples = page.first(PHOTOMETRIC, -1), page.first(SAMPLES, 1)
    extra = page.tags.get(EXTRA) or []
    colours = {MIN_IS_WHITE: 1, MIN_IS_BLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4}.get(photometric)
    if photometric == -1:
        return "it does not say what its values stand for (no PhotometricInterpretation); convert it"
    if colours is None:
        name = _COLOUR_SPACES.get(photometric, f"of kind {photometric}")
        return f"its pixels are {name}, allowed are gray and RGB; convert it"
    if photometric == CMYK and page.first(_INKS, 1) != 1:
        return "its inks are other than CMYK, allowed are gray and RGB; convert it"
    if photometric == PALETTE and not _is_plain_palette(page):
        return "its palette is none of 256 colours of 8 bits; convert it to RGB"
    if samples == colours and not extra:
        return None
    if samples == colours + 1 and extra == [UNASSOCIATED] and photometric not in (PALETTE, CMYK):
        return None
    if samples == colours + 1 and extra == [1]:
        return (
            "its colours are multiplied by alpha (associated alpha), which cannot be undone exactly; save it with"
            " unassociated alpha or without"
        )
    what = {1: "gray", 3: "RGB"}.get(colours, "CMYK")
    if samples == colours + 1:
        return f"it does not say that its channel {samples} is alpha; save {what} alone, or with unassociated alpha"
    return f"it has {samples} channels that are not {what} or {what} and alpha; save the colours alone"


def _is_plain_palette(page: Directory) -> bool:
    """Whether the palette holds 256 colours of 8 bits, in one of the two ways in which files hold these in 16."""
    levels = page.tags.get(COLOUR_MAP) or []
    if len(levels) != 3 * 256 or page.first(BITS, 1) != 8:
        return False
    return all(level & 255 == 0 for level in levels) or all(level >> 8 == level & 255 for level in levels)


def _end(page: Directory) -> int:
    """Where the last pixel ends; raises HeaderError where a part of the picture has no place or too few bytes."""
    starts = next((page.tags[tag] for tag in STARTS if page.tags.get(tag)), [])
    lengths = next((page.tags[tag] for tag in LENGTHS if page.tags.get(tag)), [])
    parts = _parts(page)
    if not (len(starts) == len(lengths) == parts.number) or 0 in starts or 0 in lengths:
        held = min(len(starts) - starts.count(0), len(lengths) - lengths.count(0))
        raise HeaderError(f"the file is damaged or sparse (the TIFF holds {held} of {parts.number:,d} strips or tiles)")
    if page.first(COMPRESSION, 1) == 1:
        last = parts.down - 1
        needed = (
            parts.of_last if number // parts.across % parts.down == last else parts.of_each
            for number in range(parts.number)
        )
        if any(has < needs for has, needs in zip(lengths, needed, strict=True)):
            raise HeaderError("the file is damaged (the TIFF's strips or tiles are shorter than their pixels)")
    return max(start + length for start, length in zip(starts, lengths, strict=True))


class _Parts(NamedTuple):
    """The strips or tiles that a size asks for: how many across, down and in all, and their bytes, uncompressed."""

    across: int
    down: int
    number: int
    of_each: int
    of_last: int


def _parts(page: Directory) -> _Parts:
    width, height, samples = page.first(WIDTH, 0), page.first(HEIGHT, 0), page.first(SAMPLES, 1)
    planes = samples if page.first(PLANAR, 1) == 2 else 1
    bits = page.first(BITS, 1) * (samples if planes == 1 else 1)
    if page.tags.get(STARTS[1]):
        wide, high = page.first(TILE_WIDTH, 0), page.first(TILE_HEIGHT, 0)
        if not (wide and high):
            raise HeaderError("the file is damaged (the TIFF's tiles have no size)")
        across, down = math.ceil(width / wide), math.ceil(height / high)
        of_each = high * ((wide * bits + 7) // 8)
        return _Parts(across, down, across * down * planes, of_each, of_each)
    rows = min(page.first(ROWS, height), height) or height
    row, down = (width * bits + 7) // 8, math.ceil(height / rows)
    return _Parts(1, down, down * planes, rows * row, (height - (down - 1) * rows) * row)
