from __future__ import annotations

import io
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from basicsr.utils import crop_border, imfrombytes, img2tensor, imwrite, tensor2img
from basicsr.utils.errors import DataError


@pytest.fixture
def img() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encode(ending: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


class TestReading:
    def test_png_gives_the_pixels_that_were_written(self, img):
        np.testing.assert_array_equal(imfrombytes(encode(".png", img)), img)

    def test_float32_is_a_255th(self, img):
        unit = imfrombytes(encode(".png", img), float32=True)
        assert unit.dtype == np.float32
        np.testing.assert_array_equal(unit, img.astype(np.float32) / np.float32(255))

    def test_16_bits_are_kept_and_scaled_by_65535(self):
        deep = np.random.default_rng(0).integers(0, 65536, (8, 9, 3), dtype=np.uint16)
        content = encode(".png", deep)
        np.testing.assert_array_equal(imfrombytes(content), deep)
        np.testing.assert_allclose(imfrombytes(content, float32=True), deep / 65535, atol=1e-7)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_gray_becomes_three_equal_channels(self, dtype):
        gray = np.random.default_rng(0).integers(0, 256, (8, 9)).astype(dtype)
        np.testing.assert_array_equal(imfrombytes(encode(".png", gray)), np.stack([gray] * 3, axis=2))

    def test_alpha_is_dropped_and_colours_under_it_kept(self, img):
        alpha = np.zeros((*img.shape[:2], 1), np.uint8)
        np.testing.assert_array_equal(imfrombytes(encode(".png", np.concatenate([img, alpha], 2))), img)

    def test_palette_images_get_their_colours(self, img):
        file = io.BytesIO()
        picture = Image.fromarray(img[..., ::-1]).quantize(8)
        picture.save(file, "PNG")
        expected = np.asarray(picture.convert("RGB"))[..., ::-1]
        np.testing.assert_array_equal(imfrombytes(file.getvalue()), expected)

    @pytest.mark.parametrize("ending", [".png", ".bmp", ".tiff", ".ppm"])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_gray_of_colours_is_the_luma_of_bt601_in_every_format_and_gray_stays_as_it_is(self, ending, dtype):
        if (ending, dtype) == (".bmp", np.uint16):
            pytest.skip("BMP has no 16 bits")
        full = np.iinfo(dtype).max
        colours = np.random.default_rng(0).integers(0, full + 1, (8, 9, 3)).astype(dtype)
        luma = colours.astype(np.float64) @ [0.114, 0.587, 0.299]
        found = imfrombytes(encode(ending, colours), "grayscale")
        assert found.dtype == dtype
        assert np.abs(found - luma).max() < 0.5 + 2e-5 * full  # rounded, by coefficients of 15 bits
        gray = np.arange(full - 71, full + 1).astype(dtype).reshape(8, 9)
        np.testing.assert_array_equal(imfrombytes(encode(ending.replace("ppm", "pgm"), gray), "grayscale"), gray)
        np.testing.assert_array_equal(imfrombytes(encode(ending, np.dstack([gray] * 3)), "grayscale"), gray)

    def test_grayscale_and_unchanged_as_in_basicsr(self, img):
        assert imfrombytes(encode(".png", img), "grayscale").shape == (20, 30)
        four = np.concatenate([img, img[..., :1]], 2)
        np.testing.assert_array_equal(imfrombytes(encode(".png", four), "unchanged"), four)

    @pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm"])
    @pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
    def test_truncated_files_are_refused_in_one_line_that_names_them(self, img, ending, part):
        content = encode(ending, img)
        with pytest.raises(DataError, match="some/path") as caught:
            imfrombytes(content[: int(len(content) * part)], source="some/path")
        assert "\n" not in str(caught.value)

    def test_truncated_jpeg_padded_with_zeros_is_refused(self, img):
        content = encode(".jpg", img)
        with pytest.raises(DataError, match="truncated"):
            imfrombytes(content[:-20] + bytes(20))

    def test_jpeg_with_a_thumbnail_is_refused_though_the_thumbnail_is_whole(self, img):
        thumbnail = encode(".jpg", img)
        segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
        whole = thumbnail[:2] + segment + thumbnail[2:]
        assert imfrombytes(whole).shape == img.shape
        with pytest.raises(DataError, match="truncated"):
            imfrombytes(whole[:-10])

    @pytest.mark.parametrize("flag", ["color", "grayscale", "unchanged"])
    def test_a_jpeg_that_its_decoder_calls_damaged_is_refused(self, flag):
        small = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        whole = encode(".jpg", cv2.resize(small, (256, 192), interpolation=cv2.INTER_CUBIC))
        middle = len(whole) * 2 // 3
        for damaged in (whole[:middle] + b"\xff\xd9", whole[:middle] + bytes(40) + whole[middle + 40 :]):
            with pytest.raises(DataError, match=r"the decoder says 'Corrupt JPEG data: .*'; copy or download"):
                imfrombytes(damaged, flag)
        assert imfrombytes(whole, flag).shape[:2] == (192, 256)

    @pytest.mark.parametrize("trailer", [bytes(16), b"maker's notes"])
    def test_bytes_after_the_end_of_a_jpeg_do_not_matter(self, img, trailer):
        content = encode(".jpg", img)
        np.testing.assert_array_equal(imfrombytes(content + trailer), imfrombytes(content))

    @pytest.mark.parametrize("settings", [{"progressive": True}, {"quality": 100}, {"quality": 10}])
    def test_jpegs_of_all_kinds_are_read(self, settings):
        photo = np.random.default_rng(1).integers(0, 256, (200, 300, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "JPEG", **settings)
        assert imfrombytes(file.getvalue()).shape == (200, 300, 3)

    def test_jpeg_with_restart_markers_is_read(self, img):
        content = cv2.imencode(".jpg", img, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes()
        assert b"\xff\xd0" in content
        assert imfrombytes(content).shape == img.shape

    def test_any_flipped_bit_of_a_png_is_refused(self):
        content = encode(".png", np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
        for position in range(len(content)):
            broken = bytearray(content)
            broken[position] ^= 0x10
            with pytest.raises(DataError):
                imfrombytes(bytes(broken))

    def test_png_that_ends_early_with_right_checksums_is_refused(self):
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        rows = zlib.compress(np.random.default_rng(0).bytes(40 * (1 + 40 * 3)), 0)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0))
        half = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows[: len(rows) // 2]) + chunk(b"IEND", b"")
        with pytest.raises(DataError):
            imfrombytes(half)

    @pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
    def test_what_is_no_image_is_refused(self, content):
        with pytest.raises(DataError, match="cannot read image"):
            imfrombytes(content)

    def test_floating_point_pixels_are_refused(self, img):
        uncompressed = [cv2.IMWRITE_TIFF_COMPRESSION, 1]
        content = cv2.imencode(".tiff", img.astype(np.float32), uncompressed)[1].tobytes()
        with pytest.raises(DataError, match="float32"):
            imfrombytes(content)

    def test_errors_survive_pickling_between_processes(self):
        with pytest.raises(DataError) as caught:
            imfrombytes(b"", source="a.png")
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


class TestWriting:
    def test_creates_folders_and_leaves_no_temporary_file(self, img, tmp_path):
        path = tmp_path / "new" / "a.png"
        imwrite(img, str(path))
        np.testing.assert_array_equal(imfrombytes(path.read_bytes()), img)
        assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]

    def test_an_unknown_format_is_refused(self, img, tmp_path):
        with pytest.raises(DataError, match=r"a\.xyz"):
            imwrite(img, tmp_path / "a.xyz")

    def test_a_file_in_place_of_the_folder_is_refused_in_one_line(self, img, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot write") as caught:
            imwrite(img, tmp_path / "file" / "a.png")
        assert "\n" not in str(caught.value)


class TestTensors:
    def test_round_trip_is_exact(self, img):
        tensor = img2tensor(img.astype(np.float32) / 255)
        assert tensor.shape == (3, 20, 30)
        np.testing.assert_array_equal(tensor[0].numpy(), img[..., 2].astype(np.float32) / 255)
        np.testing.assert_array_equal(tensor2img(tensor), img)

    def test_lists_give_lists_and_one_gives_one(self, img):
        assert [entry.shape for entry in img2tensor([img, img[:4]])] == [(3, 20, 30), (3, 4, 30)]
        assert len(tensor2img([torch.rand(3, 4, 4), torch.rand(3, 4, 4)])) == 2
        assert tensor2img([torch.rand(3, 4, 4)]).shape == (4, 4, 3)

    def test_the_array_is_not_shared(self, img):
        tensor = img2tensor(img, bgr2rgb=False, float32=False)
        tensor.zero_()
        assert img.any()

    def test_values_are_clamped_rounded_and_the_input_left_alone(self):
        tensor = torch.tensor([[-0.1, 1.1], [0.5 / 255 + 1e-6, 0.5]])
        before = tensor.clone()
        assert tensor2img(tensor).tolist() == [[0, 255], [1, 128]]
        assert torch.equal(tensor, before)

    def test_min_max_are_mapped_to_black_and_white(self):
        assert tensor2img(torch.tensor([[-1.0, 0.0, 1.0]]), min_max=(-1, 1)).tolist() == [[0, 128, 255]]

    def test_one_channel_gives_a_flat_image_and_uint16_all_its_levels(self):
        assert tensor2img(torch.ones(1, 1, 2, 3), out_type=np.uint16).tolist() == [[65535] * 3] * 2

    def test_a_batch_becomes_a_grid_of_images(self):
        grid = tensor2img(torch.stack([torch.full((3, 4, 5), value / 255) for value in (10, 20, 30, 40, 50)]))
        assert grid.shape == (2 + 3 * 6, 2 + 2 * 7, 3)
        assert grid[2::6, 2::7, 0][:3, :2].tolist() == [[10, 20], [30, 40], [50, 0]]
        assert int(grid.astype(int).sum()) == 3 * 20 * 150

    def test_what_is_no_tensor_is_refused(self):
        with pytest.raises(TypeError):
            tensor2img(np.zeros((2, 2)))
        with pytest.raises(TypeError, match="5"):
            tensor2img(torch.zeros(2, 2, 2, 2, 2))


def test_crop_border_cuts_every_side(img):
    np.testing.assert_array_equal(crop_border(img, 2), img[2:-2, 2:-2])
    assert crop_border(img, 0) is img
    assert [entry.shape for entry in crop_border([img, img], 3)] == [(14, 24, 3)] * 2
