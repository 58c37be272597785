"""Pictures are read as Pillow, OpenCV and tifffile wrote them, and what we write these read back."""

from __future__ import annotations

import io
import itertools
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import IFDRational

from basicsr.files.images import upright
from basicsr.inference.pictures import (
    FORMATS,
    OutputError,
    Picture,
    PictureFile,
    check_fits,
    encode,
    exif_bytes,
    suited,
    write,
)
from basicsr.utils.errors import DataError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
EXIF = {
    271: "Maker",
    274: 1,
    306: "2024:01:31 12:00:00",
    0x8769: {0x829A: IFDRational(1, 250), 0x927C: b"maker's own \x00\xff", 0xA002: 9, 0xA003: 7, 0xA005: {1: "R03"}},
    0x8825: {1: "N", 2: (IFDRational(48), IFDRational(51), IFDRational(30, 7))},
}


def pixels(channels: int, dtype: type = np.uint8, height: int = 7, width: int = 9) -> np.ndarray:
    full = np.iinfo(dtype).max
    return np.random.default_rng(channels).integers(0, full + 1, (height, width, channels), dtype=dtype)


def read(path: Path) -> Picture:
    return PictureFile(path).read()


def written(picture: Picture, output_format: str, folder: Path, **options) -> Path:
    path = folder / f"written.{output_format}"
    write(encode(picture, output_format, **options), path)
    return path


def saved(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def png(rows: bytes, width: int, height: int, bits: int, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file without filters, with these chunks before the pixels."""
    size = len(rows) // height
    filtered = b"".join(b"\0" + rows[row * size : (row + 1) * size] for row in range(height))
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    parts = (header, *chunks, (b"IDAT", zlib.compress(filtered)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def deep_png(pixels: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of 16 bits."""
    height, width = pixels.shape[:2]
    return png(pixels.astype(">u2").tobytes(), width, height, 16, colour_type, *chunks)


def gray_cmyk_profile() -> bytes:
    """An ICC profile whose table (lut8, 2 points for each of 4 inks) has black K and calls cyan a gray of L* = 50."""
    identity = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if number % 4 == 0 else 0 for number in range(9)))
    lightness = (0 if k else 128 if c else 255 for c, _, _, k in itertools.product(range(2), repeat=4))
    corners = b"".join(bytes([value, 128, 128]) for value in lightness)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + identity * 4 + corners + identity * 3
    table += bytes(-len(table) % 4)
    tags = struct.pack(">I", 1) + b"A2B0" + struct.pack(">II", 144, len(table))
    header = struct.pack(">I", 144 + len(table)) + bytes(4) + struct.pack(">I", 0x02400000) + b"prtrCMYKLab "
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3I", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + tags + table


class TestWhatIsWrittenIsReadByOthers:
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_png_of_8_bits(self, channels, tmp_path):
        image = Image.open(written(Picture(pixels(channels)), "png", tmp_path))
        assert image.mode == MODES[channels]
        assert np.array_equal(np.asarray(image).reshape(7, 9, channels), pixels(channels))

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_png_of_16_bits(self, channels, tmp_path):
        """OpenCV gives gray with alpha as B, G, R, alpha. More rows than are filtered at once."""
        deep = pixels(channels, np.uint16, height=300)
        path = written(Picture(deep), "png", tmp_path)
        assert path.read_bytes()[24:26] == bytes([16, {1: 0, 2: 4, 3: 2, 4: 6}[channels]])
        found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).reshape(300, 9, -1)
        order = {1: [0], 2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        assert found.dtype == np.uint16
        assert np.array_equal(found[..., order], deep)
        Image.open(path).load()  # Pillow checks all checksums too

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_tiff(self, channels, dtype, tmp_path):
        given = pixels(channels, dtype, height=300)
        path = written(Picture(given), "tif", tmp_path)
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            assert np.array_equal(page.asarray().reshape(given.shape), given)
            assert page.photometric.name == ("MINISBLACK" if channels < 3 else "RGB")
            assert page.extrasamples == ((2,) if channels in (2, 4) else ())
        if dtype == np.uint8:
            image = Image.open(path)
            assert image.mode == MODES[channels]
            assert np.array_equal(np.asarray(image).reshape(given.shape), given)

    def test_jpeg_and_webp_differ_by_little(self, tmp_path):
        smooth = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
        for output_format in ("jpg", "webp"):
            found = np.asarray(Image.open(written(Picture(smooth), output_format, tmp_path)))
            assert np.abs(found.astype(int) - smooth).mean() < 2
        gray = Image.open(written(Picture(smooth[..., :1]), "jpg", tmp_path))
        assert gray.mode == "L"
        alpha = np.dstack([smooth, smooth[..., :1]])
        found = np.asarray(Image.open(written(Picture(alpha), "webp", tmp_path)))
        assert np.array_equal(found[..., 3], alpha[..., 3])  # WebP's alpha is lossless

    def test_a_jpegs_quality_is_that_asked_for_and_its_colours_are_not_halved(self, tmp_path):
        picture = Picture(pixels(3, height=64, width=64))
        assert len(encode(picture, "jpg", 50)) < len(encode(picture, "jpg", 95))
        with Image.open(written(picture, "jpg", tmp_path)) as image:
            assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3

    @pytest.mark.parametrize(
        "output_format, dtype", [*((name, np.uint8) for name in FORMATS), ("png", np.uint16), ("tif", np.uint16)]
    )
    def test_profile_resolution_and_exif_are_carried_in_every_format(self, output_format, dtype, tmp_path):
        picture = Picture(pixels(3, dtype), SRGB, EXIF, (300.0, 150.0))
        image = Image.open(written(picture, output_format, tmp_path))
        assert image.info["icc_profile"] == SRGB
        if output_format != "webp":  # which has no place for it
            assert [round(float(dots), 1) for dots in image.info["dpi"]] == [300, 150]
        exif = image.getexif()
        assert (exif[271], exif[306], exif[274]) == ("Maker", "2024:01:31 12:00:00", 1)
        below = exif.get_ifd(0x8769)
        assert below[0x829A] == 0.004
        assert below[0x927C] == EXIF[0x8769][0x927C]
        assert exif.get_ifd(0x8825)[2] == EXIF[0x8825][2]
        assert exif.get_ifd(0xA005)[1] == "R03"

    def test_what_was_read_is_carried_through_every_pair_of_formats(self, tmp_path):
        """PNG, WebP and TIFF to each other: pixels, profile and EXIF data, also through two steps."""
        picture = Picture(pixels(4), SRGB, EXIF, (300.0, 300.0))
        for first in ("png", "tif"):
            for second in ("png", "tif"):
                once = read(written(picture, first, tmp_path))
                twice = read(written(once, second, tmp_path))
                for found in (once, twice):
                    assert np.array_equal(found.pixels, picture.pixels)
                    assert found.icc == SRGB
                    assert found.notes == ()
                    assert {key: found.exif[0x8769][key] for key in EXIF[0x8769]} == EXIF[0x8769]
                    assert found.exif[271] == "Maker"
                    assert [round(dots) for dots in found.dpi] == [300, 300]


class TestReading:
    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tif", ".webp", ".gif", ".jpg"])
    def test_gray_stays_gray_and_colour_colour_where_the_format_has_both(self, suffix, tmp_path):
        lossless = {".webp": {"lossless": True}}.get(suffix, {})
        for channels in (1, 3):
            given = pixels(channels) if suffix != ".gif" or channels == 1 else pixels(channels) // 128 * 255
            image = Image.fromarray(given.squeeze(2) if channels == 1 else given)
            found = read(saved(image, tmp_path / f"a{suffix}", **lossless)).pixels
            assert found.shape[2] == (3 if suffix == ".webp" else channels)
            assert found.dtype == np.uint8
            if suffix != ".jpg":
                assert np.array_equal(found, np.broadcast_to(given, found.shape))

    @pytest.mark.parametrize("channels", [1, 2, 3, 4])
    def test_png_of_16_bits(self, channels, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(deep_png(pixels(channels, np.uint16), {1: 0, 2: 4, 3: 2, 4: 6}[channels]))
        assert PictureFile(path).bits == 16
        assert np.array_equal(read(path).pixels, pixels(channels, np.uint16))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_transparent_colour_of_16_bits_becomes_alpha(self, channels, tmp_path):
        given, path = pixels(channels, np.uint16), tmp_path / "a.png"
        key = struct.pack(f">{channels}H", *map(int, given[2, 3]))
        path.write_bytes(deep_png(given, {1: 0, 3: 2}[channels], (b"tRNS", key)))
        found = read(path).pixels
        assert found.dtype == np.uint16
        assert np.array_equal(found[..., :-1], given)
        assert np.argwhere(found[..., -1] != 65535).tolist() == [[2, 3]]
        assert found[2, 3, -1] == 0

    @pytest.mark.parametrize("compression", [None, "zlib"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_tiff_of_16_bits(self, channels, compression, tmp_path):
        given = pixels(channels, np.uint16)
        options = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        photometric = "minisblack" if channels == 1 else "rgb"
        squeezed = given.squeeze(2) if channels == 1 else given
        tifffile.imwrite(tmp_path / "a.tif", squeezed, photometric=photometric, compression=compression, **options)
        assert np.array_equal(read(tmp_path / "a.tif").pixels, given)

    def test_what_pillow_cannot_open_is_read_and_lacks_its_notes(self, tmp_path):
        given = pixels(2, np.uint16)
        tifffile.imwrite(
            tmp_path / "p.tif", given, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
        )
        picture = read(tmp_path / "p.tif")
        assert np.array_equal(picture.pixels, given)
        assert picture.notes == ("its EXIF data and profile were left out",)

    def test_lzw_tiff_of_16_bits_as_opencv_writes_it(self, tmp_path):
        assert cv2.imwrite(str(tmp_path / "a.tif"), pixels(3, np.uint16))
        assert np.array_equal(read(tmp_path / "a.tif").pixels[..., ::-1], pixels(3, np.uint16))

    def test_ppm_of_16_bits(self, tmp_path):
        content = b"P6\n# a comment 1 2 3\n9 7\n65535\n" + pixels(3, np.uint16).astype(">u2").tobytes()
        (tmp_path / "a.ppm").write_bytes(content)
        assert np.array_equal(read(tmp_path / "a.ppm").pixels, pixels(3, np.uint16))

    def test_palettes_one_bit_and_transparent_colours_become_what_they_show(self, tmp_path):
        colours = Image.fromarray(pixels(3)).quantize(16)
        found = read(saved(colours, tmp_path / "a.png")).pixels
        assert np.array_equal(found, np.asarray(colours.convert("RGB")))
        found = read(saved(colours, tmp_path / "b.png", transparency=3)).pixels
        assert np.array_equal(found[..., 3] == 0, np.asarray(colours) == 3)
        assert np.array_equal(found[..., :3], np.asarray(colours.convert("RGB")))
        grays = Image.fromarray(pixels(1)[..., 0] // 16)
        grays.putpalette([level for number in range(16) for level in [number * 17] * 3])
        found = read(saved(grays, tmp_path / "g.png", transparency=3)).pixels
        assert np.array_equal(found[..., 0], pixels(1)[..., 0] // 16 * 17)
        assert np.array_equal(found[..., 1] == 0, pixels(1)[..., 0] // 16 == 3)
        bits = Image.fromarray(pixels(1)[..., 0] > 127)
        found = read(saved(bits, tmp_path / "c.png")).pixels
        assert np.array_equal(found[..., 0], np.asarray(bits) * np.uint8(255))
        found = read(saved(Image.fromarray(pixels(1)[..., 0]), tmp_path / "d.png", transparency=200)).pixels
        assert np.array_equal(found[..., 1] == 0, pixels(1)[..., 0] == 200)
        red = pixels(3)
        found = read(saved(Image.fromarray(red), tmp_path / "e.png", transparency=tuple(map(int, red[1, 1])))).pixels
        assert found.shape[2] == 4
        assert found[1, 1, 3] == 0

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_a_transparent_gray_of_few_bits_becomes_alpha(self, bits, tmp_path):
        levels = np.arange(2**bits, dtype=np.uint8)
        packed = np.packbits(np.unpackbits(levels[:, None], axis=1)[:, -bits:].reshape(-1))
        path = tmp_path / "a.png"
        key = (b"tRNS", struct.pack(">H", 1))
        path.write_bytes(png(packed.tobytes(), len(levels), 1, bits, 0, key))
        found = read(path).pixels[0]
        assert found[:, 0].tolist() == (levels * (255 // (2**bits - 1))).tolist()
        assert np.flatnonzero(found[:, 1] == 0).tolist() == [1]

    def test_cmyk_is_converted_and_said_so(self, tmp_path):
        """Without a profile: R = 255 - C where K is 0."""
        inks = np.zeros((16, 16, 4), np.uint8)
        inks[..., 0] = 100
        picture = read(saved(Image.fromarray(inks, "CMYK"), tmp_path / "a.tif"))
        assert picture.notes == ("CMYK converted to RGB",)
        assert (picture.pixels == (155, 255, 255)).all()
        picture = read(saved(Image.fromarray(inks, "CMYK"), tmp_path / "a.jpg", icc_profile=SRGB))
        assert picture.pixels.shape == (16, 16, 3)
        assert picture.icc is None
        assert np.abs(picture.pixels.astype(int) - (155, 255, 255)).max() <= 2

    def test_cmyk_is_converted_by_its_own_profile(self, tmp_path):
        """The profile calls cyan the gray of L* = 50, which is 119 in sRGB; without it, it would be (0, 255, 255)."""
        cyan = np.zeros((8, 8, 4), np.uint8)
        cyan[..., 0] = 255
        image = Image.fromarray(cyan, "CMYK")
        picture = read(saved(image, tmp_path / "a.tif", icc_profile=gray_cmyk_profile()))
        assert np.abs(picture.pixels.astype(int) - 119).max() <= 1
        assert picture.icc is None

    def test_of_several_frames_the_first_is_taken_and_said_so(self, tmp_path):
        frames = [Image.fromarray(pixels(3) // number) for number in (1, 2, 3)]
        for name, unit in (("a.gif", "frames"), ("a.webp", "frames"), ("a.png", "frames"), ("a.tif", "pages")):
            options = {"lossless": True} if name.endswith("webp") else {}
            frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
            picture = read(tmp_path / name)
            assert picture.notes == (f"only the first of its 3 {unit}",)
            if not name.endswith("gif"):
                assert np.array_equal(picture.pixels[..., :3], pixels(3))

    def test_what_a_camera_puts_behind_a_photograph_makes_it_no_sequence(self, tmp_path):
        frames = [Image.fromarray(pixels(3)), Image.fromarray(pixels(3)[:4])]
        frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
        assert Image.open(tmp_path / "a.jpg").n_frames == 2
        picture = read(tmp_path / "a.jpg")
        assert (picture.notes, picture.size) == ((), "9x7")

    @pytest.mark.parametrize("channels, profile", [(3, SRGB), (1, GRAY_PROFILE)])
    def test_a_profile_is_kept_where_it_fits_the_colours(self, channels, profile, tmp_path):
        image = Image.fromarray(pixels(channels).squeeze())
        assert read(saved(image, tmp_path / "a.png", icc_profile=profile)).icc == profile
        other = GRAY_PROFILE if profile is SRGB else SRGB
        assert read(saved(image, tmp_path / "a.png", icc_profile=other)).icc is None

    @pytest.mark.parametrize("dots", [(0, 0), (72, 72), None])
    def test_a_resolution_of_nothing_is_none(self, dots, tmp_path):
        options = {} if dots is None else {"dpi": dots}
        found = read(saved(Image.fromarray(pixels(3)), tmp_path / "a.png", **options)).dpi
        assert (found and [round(value) for value in found]) == ([72, 72] if dots == (72, 72) else None)


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(9))
    def test_pixels_are_turned_as_pillow_turns_them(self, orientation):
        image = Image.fromarray(pixels(3))
        image.getexif()[274] = orientation
        assert np.array_equal(upright(pixels(3), orientation), np.asarray(ImageOps.exif_transpose(image)))

    @pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
    def test_every_file_stands_upright_and_its_tag_says_so(self, orientation, tmp_path):
        """JPEG, PNG, WebP and TIFF, of 8 and 16 bits: the same picture whichever library decodes it."""
        stored = pixels(3)
        shown = upright(stored, orientation)
        exif = exif_bytes({**EXIF, 274: orientation})
        for suffix, options in ((".png", {}), (".webp", {"lossless": True}), (".tif", {}), (".jpg", {"quality": 100})):
            path = saved(Image.fromarray(stored), tmp_path / f"a{suffix}", exif=exif, **options)
            assert Image.open(path).getexif()[274] == orientation
            picture = read(path)
            assert picture.pixels.shape == shown.shape
            if suffix != ".jpg":
                assert np.array_equal(picture.pixels, shown)
            assert picture.exif[274] == 1
            assert picture.exif[271] == "Maker"
        deep = stored.astype(np.uint16) * 257
        tifffile.imwrite(tmp_path / "b.tif", deep, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        (tmp_path / "b.png").write_bytes(deep_png(deep, 2, (b"eXIf", exif.removeprefix(b"Exif\0\0"))))
        for name in ("b.tif", "b.png"):
            picture = read(tmp_path / name)
            assert np.array_equal(picture.pixels, shown.astype(np.uint16) * 257), name
            assert picture.exif[274] == 1

    def test_a_larger_picture_says_its_size_and_carries_no_preview(self, tmp_path):
        path = saved(Image.fromarray(pixels(3)), tmp_path / "a.jpg", exif=exif_bytes(EXIF))
        picture = read(path).with_pixels(pixels(3, height=14, width=18))
        assert (picture.exif[0x8769][0xA002], picture.exif[0x8769][0xA003]) == (18, 14)
        assert read(path).exif[0x8769][0xA002] == 9
        assert not Image.open(io.BytesIO(encode(picture, "jpg"))).getexif().get_ifd(1)

    def test_damaged_exif_is_left_out_and_said_so(self, tmp_path):
        broken = b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + bytes(40)
        picture = read(saved(Image.fromarray(pixels(3)), tmp_path / "a.jpg", exif=broken))
        assert dict(picture.exif) == {}
        assert picture.pixels.shape == (7, 9, 3)


class TestDamage:
    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm"])
    def test_a_truncated_file_of_any_format_is_told_in_one_line(self, suffix, tmp_path):
        path = saved(Image.fromarray(pixels(3, height=64, width=64)), tmp_path / f"a{suffix}")
        content = path.read_bytes()
        for part in (0, 1, 5, 30, len(content) // 2, len(content) - 20):
            path.write_bytes(content[:part])
            with pytest.raises(DataError, match=r"^cannot read image .*a\.\w+: ") as caught:
                read(path)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm"])
    def test_any_damaged_byte_gives_a_picture_or_one_line(self, suffix, tmp_path):
        generator = np.random.default_rng(0)
        path = saved(Image.fromarray(pixels(3, height=24, width=24)), tmp_path / f"a{suffix}")
        content = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for place in generator.integers(0, min(len(content), 400), 3):
                damaged[place] = generator.integers(0, 256)
            path.write_bytes(damaged)
            try:
                file = PictureFile(path)
                if file.width * file.height < 1_000_000:
                    file.read()
            except DataError as error:
                assert "\n" not in str(error)

    def test_text_heic_and_emptiness_are_no_pictures(self, tmp_path):
        heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
        for content, reason in ((b"no picture", "none of PNG, JPEG"), (heic, "none of PNG, JPEG"), (b"", "empty")):
            (tmp_path / "a.png").write_bytes(content)
            with pytest.raises(DataError, match=reason):
                read(tmp_path / "a.png")

    def test_pixels_of_other_kinds_are_named(self, tmp_path):
        floating = saved(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "f.tif")
        with pytest.raises(DataError, match="are float32, allowed are 8 or 16 bits"):
            read(floating)
        with pytest.raises(DataError, match="its pixels are CIELAB"):
            read(saved(Image.fromarray(pixels(3), "LAB"), tmp_path / "l.tif"))
        (tmp_path / "m.ppm").write_bytes(b"P6 2 2 1023 " + bytes(24))
        with pytest.raises(DataError, match="largest value is 1023"):
            read(tmp_path / "m.ppm")

    @pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux")
    def test_what_cannot_be_read_is_told_in_one_line(self, tmp_path):
        (tmp_path / "a.png").symlink_to("/proc/self/mem")  # which root may open, but not read at 0
        with pytest.raises(DataError, match=r"a\.png: Input/output error"):
            PictureFile(tmp_path / "a.png")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(DataError, match=r"a\.png: it is no file"):
            PictureFile(tmp_path / "a.png")

    def test_a_small_file_of_a_huge_picture_is_refused_before_memory_is_taken(self, tmp_path):
        path = tmp_path / "a.png"
        path.write_bytes(png(b"", 500_000, 400_000, 8, 2))
        limit = Image.MAX_IMAGE_PIXELS
        with pytest.raises(DataError, match="announces 400000x500000 pixels"):
            PictureFile(path)
        path.write_bytes(b"P6 500000 400000 255 ")
        with pytest.raises(DataError, match="allowed are 1,073,741,824 in all; cut it into squares by an image editor"):
            PictureFile(path)
        assert limit == Image.MAX_IMAGE_PIXELS


class TestFormats:
    @pytest.mark.parametrize("output_format, side", [("jpg", 65500), ("webp", 16383)])
    def test_a_side_too_long_is_refused_and_the_longest_is_written(self, output_format, side, tmp_path):
        check_fits("a.png", output_format, 1, side, 8)
        strip = Picture(np.zeros((1, side, 3), np.uint8))
        assert Image.open(written(strip, output_format, tmp_path)).size == (side, 1)
        with pytest.raises(DataError, match=f"a.png would become {side + 1}x1, {output_format} allows at most {side}"):
            check_fits("a.png", output_format, 1, side + 1, 8)

    def test_16_bits_are_refused_where_they_would_be_lost(self):
        for output_format in ("png", "tif"):
            check_fits("a.png", output_format, 10, 10, 16)
        for output_format in ("jpg", "webp"):
            with pytest.raises(DataError, match="has 16 bits a channel"):
                check_fits("a.png", output_format, 10, 10, 16)

    def test_alpha_is_refused_for_jpeg_unless_nothing_is_lost(self):
        picture = Picture(np.full((4, 4, 4), 255, np.uint8), SRGB)
        found = suited("a.png", picture, "jpg")
        assert found.pixels.shape == (4, 4, 3)
        assert found.icc == SRGB
        assert suited("a.png", picture, "webp") is picture
        picture.pixels[0, 0, 3] = 254
        with pytest.raises(DataError, match="has transparent pixels, which jpg cannot hold"):
            suited("a.png", picture, "jpg")

    def test_exif_data_too_long_for_jpeg_are_left_out_rather_than_the_picture(self):
        picture = Picture(pixels(3), exif={0x8769: {0x927C: bytes(70_000)}})
        fit = suited("a.png", picture, "jpg")
        assert fit.notes == ("its EXIF data are too long for jpg: left out",)
        assert not Image.open(io.BytesIO(encode(fit, "jpg"))).getexif()
        assert suited("a.png", picture, "png") is picture
        assert len(Image.open(io.BytesIO(encode(picture, "png"))).getexif().get_ifd(0x8769)[0x927C]) == 70_000


class TestWriting:
    def test_folders_are_made_and_a_file_in_the_way_is_told(self, tmp_path):
        write(b"content", tmp_path / "a/b/c.png")
        assert (tmp_path / "a/b/c.png").read_bytes() == b"content"
        with pytest.raises(OutputError, match=r"cannot write .*c\.png/d\.png"):
            write(b"content", tmp_path / "a/b/c.png/d.png")
        (tmp_path / "folder.png").mkdir()
        for name, reason in (("folder.png", "Is a directory"), ("x" * 300, "File name too long")):
            with pytest.raises(DataError, match=reason) as caught:
                write(b"content", tmp_path / name)
            assert not isinstance(caught.value, OutputError)  # under other names, writing goes on
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder.png"]

    def test_a_full_disk_leaves_the_old_file_and_no_other(self, tmp_path):
        resource = pytest.importorskip("resource")
        (tmp_path / "a.png").write_bytes(b"old")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(OutputError, match=r"cannot write .*a\.png: File too large; make room"):
                write(bytes(5000), tmp_path / "a.png")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
        assert (tmp_path / "a.png").read_bytes() == b"old"


def test_reading_leaves_pillows_limit_as_it_was_for_others(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError):
        PictureFile(tmp_path / "a.png")
    assert limit == Image.MAX_IMAGE_PIXELS
