"""Files of several bands are read exactly, in bounded memory, or refused with the reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile

from basicsr.files.band_files import as_type, bands_from_bytes, find_band_fault, read_band_header, write_bands
from basicsr.files.image_headers import Content
from basicsr.utils.errors import DataError

TYPES = (np.uint8, np.uint16, np.float32)


def bands(dtype=np.uint16, shape=(5, 7, 6)) -> np.ndarray:
    values = np.random.default_rng(0).uniform(0, 1, shape)
    return as_type(values, np.dtype(dtype))


def tiff(pixels: np.ndarray, planar: str = "separate", **options) -> bytes:
    buffer, photometric = io.BytesIO(), options.pop("photometric", "minisblack")
    stored = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    tifffile.imwrite(buffer, stored, photometric=photometric, planarconfig=planar, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


FILES = {
    "planes": lambda pixels: tiff(pixels),
    "pixels": lambda pixels: tiff(pixels, "contig"),
    "big-endian": lambda pixels: tiff(pixels, byteorder=">"),
    "BigTIFF": lambda pixels: tiff(pixels, bigtiff=True),
    "compressed": lambda pixels: tiff(pixels, compression="zlib"),
    "tiles": lambda pixels: tiff(np.tile(pixels, (8, 8, 1)), "contig", tile=(16, 16)),
    "RGB and others": lambda pixels: tiff(pixels, "contig", photometric="rgb", extrasamples=(0, 0, 0)),
    "an array": npy,
    "an array of planes": lambda pixels: npy(np.moveaxis(pixels, -1, 0)),
    "an array of columns": lambda pixels: npy(np.asfortranarray(pixels)),
    "an array, big-endian": lambda pixels: npy(pixels.astype(pixels.dtype.newbyteorder(">"))),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", FILES)
def test_values_are_those_that_were_stored(kind, dtype):
    pixels = bands(dtype)
    expected = np.tile(pixels, (8, 8, 1)) if kind == "tiles" else pixels
    content = FILES[kind](pixels)
    read = bands_from_bytes(content, 6, "image")
    assert read.dtype == dtype and read.flags.c_contiguous
    np.testing.assert_array_equal(read, expected)
    header = read_band_header(Content(content), 6)
    assert (header.size, header.channels, header.depth) == (expected.shape[:2], 6, np.dtype(dtype).itemsize * 8)
    assert 0 < header.end <= len(content)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_results_are_read_as_they_were_written_also_by_others(tmp_path, suffix, dtype):
    pixels, path = bands(dtype), tmp_path / f"new/result{suffix}"
    write_bands(path, pixels)
    np.testing.assert_array_equal(bands_from_bytes(path.read_bytes(), 6, "image"), pixels)
    theirs = np.load(path) if suffix == ".npy" else np.moveaxis(tifffile.imread(path), 0, -1)
    np.testing.assert_array_equal(theirs, pixels)


def test_double_precision_becomes_single():
    read = bands_from_bytes(npy(np.full((4, 4, 2), 0.1)), 2, "image")
    assert read.dtype == np.float32 and read[0, 0, 0] == np.float32(0.1)


def four_pages() -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, bands(shape=(6, 8, 9)), photometric="minisblack")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff(bands(), "contig")[:100], "the file is truncated or damaged"),
        (tiff(bands(shape=(5, 7, 4)), "contig"), "it has 4 channels, expected are 6; make them equal"),
        (four_pages(), "it holds 6 pages, allowed is one with all bands"),
        (tiff(bands().astype(np.int16), "contig"), "its pixels are signed or complex numbers"),
        (tiff(bands().astype(np.uint32), "contig"), "its pixels are of 32 bits"),
        (tiff(bands(np.float32) * 3, "contig"), r"reach from [\d.]+ to 2\.9\d+; floats must lie in \[0, 1\]"),
        (npy(np.full((3, 3, 6), np.nan, np.float32)), "reach from nan to nan; floats must lie in"),
        (npy(bands().astype(np.int32)), "its values are of type <i4, allowed are u1, u2 and floats"),
        (npy(bands()[..., 0]), r"its array has shape \(5, 7\), expected \(H, W, 6\) or \(6, H, W\)"),
        (npy(bands())[:-1], "the file is truncated"),
        (npy(np.zeros((0, 4, 6), np.uint8)), "its header announces 0x4 pixels"),
        (b"\x93NUMPY\x01\x00\xff\xff", "the file is damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': open(1)", "its header is not whole"),
        (npy(np.array([[[object()] * 6]])), r"its values are of type \|O"),
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "it is a PNG file; bands are read from TIFF and .npy files"),
        (b"nothing of the kind", "it is no image; bands"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(content, reason):
    with pytest.raises(DataError, match=f"cannot read image a.tif: .*{reason}") as raised:
        bands_from_bytes(content, 6, "a.tif")
    assert "\n" not in str(raised.value)


def test_a_header_that_announces_too_much_is_refused_before_memory_is_taken():
    content = npy(np.zeros((1, 1, 6), np.uint8)).replace(b"(1, 1, 6)", b"(99999, 99999, 6)")
    with pytest.raises(DataError, match=r"allowed are 268,435,456 in all"):
        bands_from_bytes(content, 6, "a.npy")
    header = read_band_header(Content(npy(np.zeros((4, 4, 6), np.uint8))), 6)
    assert find_band_fault(header, 6, most_pixels=15) is not None and find_band_fault(header, 6, most_pixels=16) is None


@pytest.mark.parametrize("kind", ["pixels", "compressed", "an array"])
def test_no_damage_ends_in_another_error(kind):
    content = FILES[kind](bands())
    generator = np.random.default_rng(1)
    for _ in range(400):
        broken = bytearray(content[: generator.integers(1, len(content) + 1)])
        for place in generator.integers(0, len(broken), 3):
            broken[place] = generator.integers(256)
        try:
            read = bands_from_bytes(bytes(broken), 6, "a")
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert read.shape[2] == 6
