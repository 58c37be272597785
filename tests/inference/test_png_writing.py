import io
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from basicsr.inference import png_writing
from basicsr.inference.png_writing import encode_png


def read(content: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels if pixels.shape[2] == 1 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def smooth(height: int, width: int, channels: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4]), st.integers(1, 500))
def test_strips_of_any_size_make_the_same_picture(height, width, channels, strip):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(png_writing, "_STRIP_BYTES", strip)
        content = encode_png(pixels, None, None, b"")
    assert np.array_equal(read(content), pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_large_pictures_are_compressed_as_well_as_by_pillow_and_readable_by_it(channels):
    pixels = smooth(900, 1300, channels)
    content = encode_png(pixels, None, None, b"")
    image = Image.open(io.BytesIO(content))
    image.load()
    assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    plain = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(plain, "PNG")
    assert len(content) < 1.01 * len(plain.getvalue())


def test_a_picture_is_the_same_bytes_each_time_and_its_stream_has_its_checksum():
    pixels = smooth(700, 1100, 3)
    content = encode_png(pixels, None, (300.0, 300.0), b"Exif\0\0II*\0\x08\0\0\0\0\0")
    assert content == encode_png(pixels, None, (300.0, 300.0), b"Exif\0\0II*\0\x08\0\0\0\0\0")
    rows = zlib.decompress(png_writing._data(content))  # which checks the checksum
    assert len(rows) == 700 * (1 + 1100 * 3)
