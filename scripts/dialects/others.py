"""Files of every dialect of PNG, JPEG, WebP, BMP and PPM, by hand, Pillow, OpenCV, imageio and imagecodecs."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import imagecodecs
import imageio.v3
import numpy as np
from PIL import Image

from dialects.base import HEIGHT, WIDTH, Dialect, as_rgb, noise, pillow, saved, smooth, upright


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(
    values: np.ndarray, colour: int, *chunks: tuple[bytes, bytes], bits: int = 0, late: bytes = b"", adam7: bool = False
) -> bytes:
    """A PNG file by hand: (H, W, C) values, packed where `bits` are fewer than 8, without filters.

    Args:
        values: uint8 or uint16.
        colour: PNG's colour type.
        chunks: kind and data of what precedes the pixels.
        bits: to a sample; 0 for those of the type.
        late: chunks behind the pixels.
        adam7: interlaced.
    """
    height, width = values.shape[:2]
    depth = bits or 8 * values.itemsize
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in passes if adam7 else [(0, 0, 1, 1)]:
        for row in values[top::down, left::across]:
            if depth < 8:
                packed = np.packbits(np.unpackbits(row.reshape(-1, 1), axis=1)[:, -depth:].reshape(-1)).tobytes()
            else:
                packed = row.astype(row.dtype.newbyteorder(">")).tobytes()
            rows += b"\0" + packed if packed else b""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(adam7))
    before = _chunk(b"IHDR", header) + b"".join(_chunk(*chunk) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + before + _chunk(b"IDAT", zlib.compress(rows)) + late + _chunk(b"IEND", b"")


def exif_block(orientation: int) -> bytes:
    """EXIF data that say nothing but an orientation, as a TIFF file of one tag."""
    return b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HH", orientation, 0) + bytes(4)


def pngs() -> Iterator[Dialect]:
    """By hand, Pillow, OpenCV and imageio."""
    for dtype in (np.uint8, np.uint16):
        bits = 8 * np.dtype(dtype).itemsize
        for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
            values = noise(channels, dtype)
            truth = as_rgb(values)
            notes: dict[str, list[tuple[bytes, bytes]]] = {
                "plain": [],
                "gAMA 1.0": [(b"gAMA", struct.pack(">I", 100000))],
                "sRGB": [(b"sRGB", b"\0")],
                "bKGD": [(b"bKGD", struct.pack(">H", 7) * (1 if channels < 3 else 3))],
                "sBIT": [(b"sBIT", bytes([5] * channels))],
                "cICP of PQ": [(b"cICP", bytes([9, 16, 0, 1]))],
                "text": [(b"tEXt", b"Comment\0eXIf")],
            }
            for name, chunks in notes.items():
                yield Dialect(
                    f"PNG {bits}, colour type {colour}, {name}", ".png", png_file(values, colour, *chunks), truth
                )
            yield Dialect(
                f"PNG {bits}, colour type {colour}, interlaced", ".png", png_file(values, colour, adam7=True), truth
            )
            if channels in (1, 3):
                key = struct.pack(f">{channels}H", *map(int, values[3, 5]))
                content = png_file(values, colour, (b"tRNS", key))
                hidden = (values == values[3, 5]).all(axis=2)
                yield Dialect(f"PNG {bits}, colour type {colour}, tRNS", ".png", content, truth, hidden=hidden)
    rgb = noise(3)
    for orientation in range(1, 9):
        block, truth = exif_block(orientation), upright(rgb, orientation)
        yield Dialect(f"PNG eXIf {orientation}", ".png", png_file(rgb, 2, (b"eXIf", block)), truth)
        late = _chunk(b"eXIf", block + bytes(5000 * (orientation % 2)))
        yield Dialect(f"PNG eXIf {orientation} behind the pixels", ".png", png_file(rgb, 2, late=late), truth)
    for bits in (1, 2, 4, 8):
        index = noise(1) & np.uint8(2**bits - 1)
        table = np.random.default_rng(bits).integers(0, 256, (2**bits, 3)).astype(np.uint8)
        for name, key in (("palette", b""), ("palette with alpha", b"\x7f")):
            content = png_file(index, 3, (b"PLTE", table.tobytes()), *([(b"tRNS", key)] if key else []), bits=bits)
            yield Dialect(f"PNG {name} of {bits} bits", ".png", content, table[index[..., 0]])
        if bits < 8:
            gray = as_rgb(index * np.uint8(255 // (2**bits - 1)))
            content = png_file(index, 0, bits=bits)
            yield Dialect(f"PNG gray of {bits} bits", ".png", content, None if bits == 1 else gray, seen=gray)
    frames = [pillow(rgb), pillow(255 - rgb)]
    content = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield Dialect("PNG of 2 frames", ".png", content, None)
    content = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    yield Dialect("PNG and an animation", ".png", content, None)
    for values in (rgb, noise(4), noise(2), rgb[..., 0]):
        yield Dialect(f"Pillow PNG {values.shape[2:]}", ".png", saved(pillow(values), "PNG"), as_rgb(values))
    palette = pillow(smooth()).quantize(99)
    content = saved(palette, "PNG", transparency=bytes(range(99)))
    truth, hidden = np.asarray(palette.convert("RGB")), np.asarray(palette) == 0
    yield Dialect("Pillow PNG palette with alpha", ".png", content, truth, hidden=hidden)
    for values in (noise(3, np.uint16), noise(4), noise(4, np.uint16), rgb[..., 0]):
        order = values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]]
        content = cv2.imencode(".png", np.ascontiguousarray(order))[1].tobytes()
        yield Dialect(f"OpenCV PNG {values.dtype} {values.shape[2:]}", ".png", content, as_rgb(values))
    yield Dialect("imageio PNG", ".png", imageio.v3.imwrite("<bytes>", rgb, extension=".png"), rgb)


def _decoded(content: bytes) -> np.ndarray:
    """By Pillow, which shares no decoder of JPEG and WebP with the reader under test."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def jpegs() -> Iterator[Dialect]:
    """By Pillow, OpenCV, imageio and imagecodecs; the truth is what Pillow decodes."""
    photo = smooth()
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "progressive": {"progressive": True},
        "RGB kept": {"keep_rgb": True},
        "restarts": {"restart_marker_rows": 1},
        "quality 100": {"quality": 100},
        "quality 5": {"quality": 5},
    }
    for name, options in kinds.items():
        content = saved(pillow(photo), "JPEG", **options)
        yield Dialect(f"Pillow JPEG {name}", ".jpg", content, _decoded(content), lossy=True)
    content = saved(pillow(photo[..., 0]), "JPEG")
    yield Dialect("Pillow JPEG gray", ".jpg", content, _decoded(content), lossy=True)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        content = saved(pillow(photo), "JPEG", exif=exif)
        yield Dialect(
            f"Pillow JPEG orientation {orientation}",
            ".jpg",
            content,
            upright(_decoded(content), orientation),
            lossy=True,
        )
    yield Dialect("Pillow JPEG CMYK", ".jpg", saved(pillow(photo, "CMYK"), "JPEG"), None)
    content = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[
        1
    ].tobytes()
    yield Dialect("OpenCV JPEG", ".jpg", content, _decoded(content), lossy=True)
    content = imageio.v3.imwrite("<bytes>", photo, extension=".jpg")
    yield Dialect("imageio JPEG", ".jpg", content, _decoded(content), lossy=True)
    deep = photo.astype(np.uint16) * 16
    yield Dialect("imagecodecs JPEG of 12 bits", ".jpg", bytes(imagecodecs.jpeg8_encode(deep, bitspersample=12)), None)
    yield Dialect("imagecodecs JPEG without loss", ".jpg", bytes(imagecodecs.jpeg8_encode(photo, lossless=True)), None)
    content = bytes(imagecodecs.jpeg8_encode(photo, colorspace="RGB", outcolorspace="RGB"))
    yield Dialect("imagecodecs JPEG of RGB", ".jpg", content, _decoded(content), lossy=True)
    good = saved(pillow(photo), "JPEG", quality=95)
    middle = len(good) * 2 // 3
    yield Dialect("JPEG with zeros amid", ".jpg", good[:middle] + bytes(40) + good[middle + 40 :], None, damaged=True)
    yield Dialect("JPEG cut, with an end", ".jpg", good[:middle] + b"\xff\xd9", None, damaged=True)
    yield Dialect("JPEG cut, padded, with an end", ".jpg", good[:middle] + bytes(99) + b"\xff\xd9", None, damaged=True)
    for transform in (0, 1, 2):  # of colours, as the marker of Adobe's programs tells; libjpeg knows 0 and 1 of these
        marker = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
        content = good[:2] + marker + good[20:]
        yield Dialect(f"JPEG of Adobe's, transform {transform}", ".jpg", content, _decoded(content), lossy=True)
    for factors in (((2, 2), (1, 2), (1, 2)), ((3, 1), (3, 1), (3, 1))):
        content = _sampled_jpeg(*factors)
        yield Dialect(f"JPEG sampled {factors}", ".jpg", content, _decoded(content), lossy=True)
    for factors in (((1, 1), (2, 1), (2, 1)), ((4, 2), (1, 1), (1, 1)), ((2, 1), (1, 2), (1, 1))):
        yield Dialect(f"JPEG sampled {factors}", ".jpg", _sampled_jpeg(*factors), None)
    yield Dialect("imagecodecs JPEG-LS", ".jpg", bytes(imagecodecs.jpegls_encode(photo)), None)
    content = good[:11] + b"\2" + good[12:]
    yield Dialect("JPEG of JFIF 2", ".jpg", content, _decoded(content), lossy=True)
    scans = saved(pillow(photo), "JPEG", quality=95, progressive=True)
    for number in (1, 4, 8):
        scan = [found.start() for found in re.finditer(b"\xff\xda", scans)][number]
        content = scans[:scan] + b"\xff\xd9"
        yield Dialect(f"JPEG cut after scan {number}, with an end", ".jpg", content, None, damaged=True)


def _sampled_jpeg(*factors: tuple[int, int]) -> bytes:
    """A JPEG file by hand, gray all over, whose three components are sampled so, across and down."""
    good = saved(pillow(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)), "JPEG", subsampling=0)
    header = bytearray(good[: good.index(b"\xff\xda") + 14])
    for number, (across, down) in enumerate(factors):
        header[good.index(b"\xff\xc0") + 11 + 3 * number] = across << 4 | down
    across, down = (8 * max(factor[axis] for factor in factors) for axis in (0, 1))
    luma, *chroma = (across * down for across, down in factors)
    bits = ("001010" * luma + "0000" * sum(chroma)) * (-(-WIDTH // across) * -(-HEIGHT // down))
    bits += "1" * (-len(bits) % 8)
    return bytes(header) + int(bits, 2).to_bytes(len(bits) // 8, "big") + b"\xff\xd9"


def webps() -> Iterator[Dialect]:
    """By Pillow and OpenCV; of lossy ones the truth is what Pillow decodes."""
    rgb, rgba, photo = noise(3), noise(4), smooth()
    yield Dialect("Pillow WebP lossless", ".webp", saved(pillow(rgb), "WEBP", lossless=True), rgb)
    content = saved(pillow(rgba), "WEBP", lossless=True, exact=True)
    yield Dialect("Pillow WebP lossless with alpha", ".webp", content, as_rgb(rgba))
    for name, values in (("lossy", photo), ("lossy with alpha", np.dstack([photo, noise(1)]))):
        content = saved(pillow(values), "WEBP", quality=90, exact=True)
        yield Dialect(
            f"Pillow WebP {name}", ".webp", content, np.asarray(Image.open(io.BytesIO(content)))[..., :3], lossy=True
        )
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[274] = orientation
        content = saved(pillow(rgb), "WEBP", lossless=True, exif=exif)
        yield Dialect(f"Pillow WebP orientation {orientation}", ".webp", content, upright(rgb, orientation))
    frames = [pillow(rgb), pillow(255 - rgb)]
    content = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield Dialect("Pillow WebP of 2 frames", ".webp", content, None)
    content = cv2.imencode(".webp", np.ascontiguousarray(rgb[..., ::-1]), [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    yield Dialect("OpenCV WebP lossless", ".webp", content, rgb)


def _bmp(
    values: np.ndarray,
    bits: int,
    compression: int = 0,
    masks: tuple[int, ...] = (),
    table: bytes = b"",
    top_down: bool = False,
    length: int = 40,
) -> bytes:
    """A BMP file by hand, of rows that are bytes already."""
    height, width = values.shape[:2]
    lines = [np.ascontiguousarray(row).tobytes() for row in (values if top_down else values[::-1])]
    data = lines[0] if compression in (1, 2) else b"".join(line + bytes(-len(line) % 4) for line in lines)
    packed = struct.pack(f"<{len(masks)}I", *masks)
    info = struct.pack(
        "<IiiHHIIiiII",
        length,
        WIDTH if bits >= 8 else width,
        -height if top_down else height,
        1,
        bits,
        compression,
        len(data),
        2835,
        2835,
        len(table) // 4,
        0,
    )
    info += packed.ljust(length - 40, b"\0") if length > 40 else packed
    start = 14 + len(info) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + table + data


def bmps() -> Iterator[Dialect]:
    """By hand, Pillow, OpenCV and imageio."""
    rgb, rgba = noise(3), noise(4)
    bgr, bgra = rgb[..., ::-1], rgba[..., [2, 1, 0, 3]]
    for top_down in (False, True):
        name = "top-down" if top_down else "bottom-up"
        yield Dialect(f"BMP 24, {name}", ".bmp", _bmp(bgr, 24, top_down=top_down), rgb)
        yield Dialect(f"BMP 32, {name}", ".bmp", _bmp(bgra, 32, top_down=top_down), as_rgb(rgba))
        table = np.random.default_rng(3).integers(0, 256, (256, 4)).astype(np.uint8)
        index = noise(1)[..., 0]
        content = _bmp(index, 8, table=table.tobytes(), top_down=top_down)
        yield Dialect(f"BMP palette, {name}", ".bmp", content, table[index][..., 2::-1])
    rows = np.ascontiguousarray(bgr[::-1]).tobytes()
    core = b"BM" + struct.pack("<IHHIIHHHH", 26 + len(rows), 0, 0, 26, 12, WIDTH, HEIGHT, 1, 24) + rows
    yield Dialect("BMP 24 of OS/2", ".bmp", core, rgb)
    rows, grays = noise(1)[::-1].tobytes(), np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes()
    core = b"BM" + struct.pack("<IHHIIHHHH", 794 + len(rows), 0, 0, 794, 12, WIDTH, HEIGHT, 1, 8) + grays + rows
    yield Dialect("BMP gray of OS/2", ".bmp", core, as_rgb(noise(1)))
    red, green, blue, alpha = 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    for length in (56, 108, 124):
        yield Dialect(
            f"BMP masks BGRA, header {length}",
            ".bmp",
            _bmp(bgra, 32, 3, (red, green, blue, alpha), length=length),
            as_rgb(rgba),
        )
    yield Dialect("BMP masks BGR", ".bmp", _bmp(bgra, 32, 3, (red, green, blue)), as_rgb(rgba))
    yield Dialect("BMP masks RGBA", ".bmp", _bmp(rgba, 32, 3, (blue, green, red, alpha), length=108), as_rgb(rgba))
    ten = _bmp(bgra, 32, 3, (0x3FF00000, 0xFFC00, 0x3FF, 0), length=108)
    yield Dialect("BMP masks of 10 bits", ".bmp", ten, None)
    five = (rgb >> 3).astype(np.uint16)
    packed = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2")
    yield Dialect("BMP 16", ".bmp", _bmp(packed, 16), None)
    yield Dialect("BMP 16 masks 565", ".bmp", _bmp(packed, 16, 3, (0xF800, 0x7E0, 0x1F)), None)
    runs = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in noise(1)[::-1, :, 0]) + b"\0\1"
    gray_table = bytes(level for value in range(256) for level in (value, value, value, 0))
    rle = _bmp(np.frombuffer(runs, np.uint8)[None], 8, 1, table=gray_table)
    yield Dialect("BMP RLE", ".bmp", rle[:22] + struct.pack("<i", HEIGHT) + rle[26:], as_rgb(noise(1)))
    for name, image in (
        ("gray", pillow(rgb[..., 0])),
        ("RGB", pillow(rgb)),
        ("1 bit", pillow(rgb[..., 0] > 99)),
        ("palette", pillow(rgb).quantize(16)),
    ):
        yield Dialect(f"Pillow BMP {name}", ".bmp", saved(image, "BMP"), np.asarray(image.convert("RGB")))
    yield Dialect("OpenCV BMP", ".bmp", cv2.imencode(".bmp", np.ascontiguousarray(bgr))[1].tobytes(), rgb)
    yield Dialect(
        "OpenCV BMP of 4 channels", ".bmp", cv2.imencode(".bmp", np.ascontiguousarray(bgra))[1].tobytes(), as_rgb(rgba)
    )
    yield Dialect("imageio BMP", ".bmp", imageio.v3.imwrite("<bytes>", rgb, extension=".bmp"), rgb)


def ppms() -> Iterator[Dialect]:
    """By hand, OpenCV and Pillow."""
    size = b"%d %d" % (WIDTH, HEIGHT)
    for dtype, largest in ((np.uint8, 255), (np.uint16, 65535)):
        rgb, gray = noise(3, dtype), noise(1, dtype)[..., 0]
        for name, values, text, binary in (("RGB", rgb, b"P3", b"P6"), ("gray", gray, b"P2", b"P5")):
            content = (
                binary
                + b"\n# by hand 1 2 3\n"
                + size
                + b"\n%d\n" % largest
                + values.astype(values.dtype.newbyteorder(">")).tobytes()
            )
            yield Dialect(f"PPM {largest} {name}", ".ppm", content, as_rgb(values))
            words = b" ".join(b"%d" % value for value in values.reshape(-1))
            yield Dialect(
                f"PPM {largest} {name} as text", ".ppm", text + b"\n" + size + b" %d " % largest + words, as_rgb(values)
            )
    rgb = noise(3)
    for largest in (1, 100, 254, 256, 1023, 4095):
        values = (noise(3, np.uint16) % (largest + 1)).astype(np.uint8 if largest < 256 else ">u2")
        yield Dialect(f"PPM {largest}", ".ppm", b"P6 " + size + b" %d\n" % largest + values.tobytes(), None)
    black = rgb[..., 0] > 99
    seen = as_rgb(np.where(black, 0, 255).astype(np.uint8))
    bits, words = np.packbits(black, axis=1).tobytes(), b" ".join(b"%d" % value for value in black.reshape(-1))
    yield Dialect("PPM 1 bit", ".ppm", b"P4 " + size + b"\n" + bits, None, seen=seen)
    yield Dialect("PPM 1 bit as text", ".ppm", b"P1 " + size + b"\n" + words, None, seen=seen)
    one = b"P6 " + size + b" 255\n" + rgb.tobytes()
    for name, content in (("", one + one), (" on lines of their own", one + b"\n" + one)):
        yield Dialect(f"PPM of 2 pictures{name}", ".ppm", content, None)
    yield Dialect("PPM, remark without a space", ".ppm", one.replace(b" 255\n", b" 255# mine\n"), None)
    yield Dialect("PPM and the end of a line", ".ppm", one + b"\n", rgb)
    words = b" ".join(b"%d" % value for value in rgb.reshape(-1))
    yield Dialect(
        "PPM as text, numbers left over", ".ppm", b"P3 " + size + b" 255 " + words + b" 1 2 3", None, damaged=True
    )
    yield Dialect("Pillow PPM", ".ppm", saved(pillow(rgb), "PPM"), rgb)
    yield Dialect("OpenCV PPM", ".ppm", cv2.imencode(".ppm", np.ascontiguousarray(rgb[..., ::-1]))[1].tobytes(), rgb)
