from __future__ import annotations

import io
import os
import socket
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
from PIL import Image

from basicsr.data.checks.inspection import examine
from basicsr.data.storage import ImageRoot, LmdbDatabase
from basicsr.files.file_client import FileClient
from basicsr.files.header_readers import read_header
from basicsr.files.image_headers import MOST_PIXELS, MOST_TO_CUT, Content, HeaderError, find_fault
from basicsr.files.images import imfrombytes
from basicsr.files.lmdb_databases import stored_value
from basicsr.utils.errors import DataError

HEIGHT, WIDTH = 20, 33


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(ending: str, channels: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    return cv2.imencode(ending, pixels)[1].tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


IMAGES = {
    "png": saved(picture(), "PNG"),
    "png gray": saved(picture("L"), "PNG"),
    "png gray with alpha": saved(picture("LA"), "PNG"),
    "png with alpha": saved(picture("RGBA"), "PNG"),
    "png palette": saved(picture("P"), "PNG"),
    "png palette of 1 bit": saved(picture().quantize(2), "PNG", bits=1),
    "png 16": deep(".png", 3),
    "png gray 16": deep(".png", 1),
    "jpeg": saved(picture(), "JPEG"),
    "jpeg gray": saved(picture("L"), "JPEG"),
    "jpeg progressive": saved(picture(), "JPEG", progressive=True),
    "jpeg with a thumbnail": saved(picture(), "JPEG", exif=b"Exif\0\0" + saved(picture(), "JPEG")),
    "jpeg with a profile": saved(picture(), "JPEG", icc_profile=bytes(100_000)),
    "bmp": saved(picture(), "BMP"),
    "bmp gray": saved(picture("L"), "BMP"),
    "bmp of 1 bit": saved(picture("1"), "BMP"),
    "tiff": saved(picture(), "TIFF"),
    "tiff gray": saved(picture("L"), "TIFF"),
    "tiff palette": saved(picture("P"), "TIFF"),
    "tiff lzw": saved(picture(), "TIFF", compression="tiff_lzw"),
    "tiff 16": deep(".tiff", 3),
    "webp": saved(picture(), "WEBP"),
    "webp lossless": saved(picture(), "WEBP", lossless=True),
    "webp with alpha": saved(picture("RGBA"), "WEBP"),
    "ppm": saved(picture(), "PPM"),
    "ppm gray": saved(picture("L"), "PPM"),
    "ppm as text": b"P3\n# by hand\n2 1\n255\n" + b"7 " * 6 + b"\n",
    "ppm 16": deep(".ppm", 3),
}


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_headers_say_what_pillow_reads_and_opencv_decodes(name, tmp_path):
    content = IMAGES[name]
    header = read_header(Content(content))
    decoded = imfrombytes(content)
    assert header.size == decoded.shape[:2]
    assert header.depth == decoded.itemsize * 8
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format.upper(), image.size[::-1]) == (header.format.upper(), header.size)
        if header.depth == 8:
            assert (header.space == "gray") == (image.mode in ("L", "LA")) or image.format == "BMP"
    (tmp_path / "image").write_bytes(content)
    for decode in (False, True):
        assert examine(str(tmp_path / "image"), decode=decode).header == header


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_image_as_it_is_turned(kind, orientation):
    notes = Image.Exif()
    notes[0x0112] = orientation
    content = saved(picture(), kind, exif=notes)
    assert (imfrombytes(content).shape[:2] == (HEIGHT, WIDTH)) == (orientation <= 4)
    assert read_header(Content(content)).size == imfrombytes(content).shape[:2]
    if kind == "PNG":  # the note may follow the pixels
        late = saved(picture(), kind)[:-12] + chunk(b"eXIf", notes.tobytes()[6:]) + chunk(b"IEND", b"")
        assert read_header(Content(late)).size == imfrombytes(late).shape[:2]


@pytest.mark.parametrize("name", ["png", "png 16", "jpeg", "jpeg with a thumbnail", "bmp", "tiff", "webp", "ppm"])
def test_truncation_is_found_wherever_it_is(name, tmp_path):
    content, path = IMAGES[name], tmp_path / "image"
    for length in [*range(0, 60, 3), *range(60, len(content), 149), len(content) - 1]:
        path.write_bytes(content[:length])
        assert examine(str(path)).fault is not None, length


@pytest.mark.parametrize("name", ["png", "jpeg", "bmp", "webp", "ppm"])
def test_bytes_after_the_end_do_not_matter(name, tmp_path):
    (tmp_path / "image").write_bytes(IMAGES[name] + bytes(100))
    assert examine(str(tmp_path / "image")).fault is None


FAULTS = {
    "float32": (
        cv2.imencode(".tiff", np.zeros((4, 4, 3), np.float32), [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes(),
        "its pixels are float32",
    ),
    "cmyk": (saved(picture("CMYK"), "JPEG"), "its pixels are CMYK"),
    "cmyk tiff": (saved(picture("CMYK"), "TIFF"), "its pixels are CMYK"),
    "1 bit": (saved(picture("1"), "PNG"), "it has 1 bit to a pixel"),
    "1 bit tiff": (saved(picture("1"), "TIFF"), "it has 1 bit to a pixel"),
    "32 bits": (saved(picture("I"), "TIFF"), "its pixels are of 32 bits"),
    "gif": (saved(picture(), "GIF"), "it is no image, or its format is none of PNG, JPEG, BMP, TIFF, WebP, PPM"),
    "zeros": (bytes(5000), "it is no image"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "it is no image"),
    "empty": (b"", "the file is empty"),
    "no pixels": (png(0, 7), "its header announces 0x7 pixels"),
    "a bomb": (png(60000, 60000, data=bytes(4000)), "it announces 60000x60000 pixels"),
    "a bomb of many bytes": (png(16385, 16385, 1, 0, bytes(16385 * 2050)), "it announces 16385x16385 pixels"),
    "a bmp bomb": (b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, 50000, 50000, 1, 24, 0), "it announces 50000x50000"),
    "a ppm bomb": (b"P6 99999 99999 255\n", "it announces 99999x99999"),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_what_is_not_read_is_told_from_the_header_and_by_reading_alike(name, tmp_path):
    content, reason = FAULTS[name]
    (tmp_path / "image").write_bytes(content)
    fault = examine(str(tmp_path / "image")).fault
    assert fault is not None and fault.startswith(reason)
    with pytest.raises(DataError) as caught:
        imfrombytes(content, source="a/b.png")
    assert str(caught.value) == f"cannot read image a/b.png: {fault}"


def test_bombs_take_no_memory():
    content = FAULTS["a bomb of many bytes"][0]
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            imfrombytes(content)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_the_limit_itself_is_allowed():
    side = int(MOST_PIXELS**0.5)
    beginning = b"P6 %d %d 255\n"
    assert find_fault(read_header(Content(beginning % (side, side)))) is None
    larger, largest = (read_header(Content(beginning % (width, width))) for width in (side + 1, 2 * side))
    assert str(find_fault(larger)).endswith("cut it into squares by scripts/data/extract_subimages.py")
    assert find_fault(largest, MOST_TO_CUT) is None  # which cuts it, therefore
    beyond = read_header(Content(beginning % (2 * side, 2 * side + 1)))
    assert str(find_fault(beyond, MOST_TO_CUT)).endswith("cut it into squares by an image editor first")


def tiff(tags: list[tuple[int, int, int, int]], rest: bytes = b"", following: int = 0) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + rest


PLAIN = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 4)]


class Counted(Content):
    """A source that counts what is asked of it."""

    asked_for = 0

    def read(self, offset: int, length: int) -> bytes:
        self.asked_for += length
        return super().read(offset, length)


def test_no_more_tags_are_read_than_needed():
    """Of many tags with long lists, of a directory that follows itself, and of a long text."""
    assert find_fault(read_header(Content(tiff(PLAIN)))) is None
    many = tiff([*PLAIN, *((40000 + number, 4, 10_000, 8) for number in range(20))], bytes(40_000))
    ring = tiff(PLAIN, following=8)
    words = tiff([*PLAIN, (270, 2, 200_000, 8 + 2 + 12 * 8 + 4)], b"<OME" + b"x" * 199_996)
    for content in (many, ring, words):
        source = Counted(content)
        assert read_header(source).size == (2, 2)
        assert source.asked_for < 150_000
    for content, reason in (
        (tiff([*PLAIN, (262, 3, 1, 0)]), "one of its tags is there twice"),
        (tiff([*PLAIN[:-1], (279, 4, 1, 3)]), "strips or tiles are shorter"),
        (tiff([*PLAIN[:-1], (279, 4, 1, 0)]), "holds 0 of 1 strips"),
        (tiff([*PLAIN, (278, 3, 1, 1)]), "holds 1 of 2 strips"),
    ):
        with pytest.raises(DataError, match=reason):
            imfrombytes(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8\xff" + b"\xff" * 50,
        b"\xff\xd8\xff\xe0\x00\x00" * 10,
        b"\xff\xd8\xff\xda\x00\x04\x00\x00",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff" + b"\x00\x01\x04\0\xff\xff\xff\xff\x08\0\0\0" * 3,
        b"P6 " + b"9" * 5000,
        b"P6\n#" + b"x" * 5000,
        b"RIFF\0\0\0\0WEBPVP8X",
        b"BM" + bytes(10),
    ],
)
def test_headers_that_make_no_sense_are_refused(content):
    with pytest.raises(HeaderError) as caught:
        read_header(Content(content))
    assert "\n" not in str(caught.value)


def test_a_value_in_lmdb_is_not_copied_whole(tmp_path):
    large = IMAGES["png"][:-12] + chunk(b"teXt", bytes(20_000_000)) + chunk(b"IEND", b"")
    with lmdb.open(str(tmp_path), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"large", large)
    location = "large", LmdbDatabase(str(tmp_path))
    with stored_value(str(tmp_path), "large") as value:
        assert len(value) == len(large)
    tracemalloc.start()
    try:
        assert examine(*location).fault is None
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_what_is_no_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        path = os.path.relpath(tmp_path / "socket.png")  # the name of a socket must be short
        server.bind(path)
        for name, reason in (
            ("pipe", "no file but a pipe"),
            ("device", "no file but a device"),
            ("socket", "no file but a socket"),
        ):
            path = str(tmp_path / f"{name}.png")
            assert reason in str(examine(path).fault)
            with pytest.raises(DataError, match=reason):
                FileClient().get(path)
            with pytest.raises(DataError, match=reason):
                ImageRoot(str(tmp_path)).open(path)


def test_a_jpeg_that_decodes_with_warnings_is_found_by_a_full_check_alone(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    whole = saved(Image.fromarray(cv2.resize(small, (256, 192), interpolation=cv2.INTER_CUBIC)), "JPEG")
    middle = len(whole) * 2 // 3
    location = tmp_path / "a.jpg"
    location.write_bytes(whole[:middle] + bytes(40) + whole[middle + 40 :])
    assert examine(str(location)).fault is None
    assert str(examine(str(location), decode=True).fault).startswith("the decoder says 'Corrupt JPEG data: ")
    location.write_bytes(whole)
    assert examine(str(location), decode=True).fault is None


def test_what_cannot_be_opened_is_a_fault_too(tmp_path):
    assert examine(str(tmp_path / "none.png")).fault == "No such file or directory; check the path"
    assert examine(str(tmp_path)).fault == "it is no file but a folder; check the path"
    assert "has no data.mdb" in str(examine("key", LmdbDatabase(str(tmp_path))).fault)
    assert Path(tmp_path).is_dir()
