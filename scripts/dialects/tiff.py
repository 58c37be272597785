"""TIFF files of every dialect, by tifffile, Pillow, OpenCV and imageio."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import cv2
import imageio.v3
import numpy as np
import tifffile
from PIL import Image

from dialects.base import Dialect, as_rgb, noise, pillow, saved, smooth, upright


def _tiff(values: np.ndarray | Iterator[bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def tiffs() -> Iterator[Dialect]:
    """By tifffile, of kinds whose meaning is exact."""
    layouts: dict[str, dict[str, Any]] = {
        "plain": {},
        "big-endian": {"byteorder": ">"},
        "BigTIFF": {"bigtiff": True},
        "strips of 5": {"rowsperstrip": 5},
        "tiles of 16": {"tile": (16, 16)},
        "tiles larger than it": {"tile": (128, 128)},
        "predictor": {"compression": "zlib", "predictor": True},
        "LZW": {"compression": "lzw"},
        "LZW, predictor, big-endian": {"compression": "lzw", "predictor": True, "byteorder": ">"},
        "PackBits": {"compression": "packbits"},
        "LZMA": {"compression": "lzma"},
        "Zstd in tiles": {"compression": "zstd", "tile": (32, 16)},
        "no metadata": {"metadata": None},
        "OME": {"ome": True},
        "resolution": {"resolution": (300, 300), "description": "a photograph"},
    }
    for dtype in (np.uint8, np.uint16):
        bits = 8 * np.dtype(dtype).itemsize
        rgb, rgba, gray, gray_alpha = noise(3, dtype), noise(4, dtype), noise(1, dtype)[..., 0], noise(2, dtype)
        for name, options in layouts.items():
            if name != "OME":
                content = _tiff(rgba, photometric="rgb", extrasamples=["unassalpha"], **options)
                yield Dialect(f"tifffile {bits} RGBA, {name}", ".tif", content, as_rgb(rgba))
            yield Dialect(f"tifffile {bits} RGB, {name}", ".tif", _tiff(rgb, photometric="rgb", **options), rgb)
            content = _tiff(gray, photometric="minisblack", **options)
            yield Dialect(f"tifffile {bits} gray, {name}", ".tif", content, as_rgb(gray))
        planes = np.ascontiguousarray(np.moveaxis(rgb, 2, 0))
        for name in ("plain", "predictor", "LZW", "tiles of 16", "strips of 5"):
            content = _tiff(planes, photometric="rgb", planarconfig="separate", **layouts[name])
            yield Dialect(f"tifffile {bits} RGB in planes, {name}", ".tif", content, rgb)
        planes = np.ascontiguousarray(np.moveaxis(rgba, 2, 0))
        content = _tiff(planes, photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"])
        yield Dialect(f"tifffile {bits} RGBA in planes", ".tif", content, as_rgb(rgba))
        content = _tiff(gray_alpha, photometric="minisblack", extrasamples=["unassalpha"], planarconfig="contig")
        yield Dialect(f"tifffile {bits} gray and alpha", ".tif", content, as_rgb(gray_alpha))
        inverted = np.iinfo(dtype).max - gray
        content = _tiff(inverted, photometric="miniswhite")
        yield Dialect(f"tifffile {bits} MinIsWhite", ".tif", content, as_rgb(gray))
        for name in ("LZW, predictor, big-endian", "Zstd in tiles", "big-endian", "PackBits", "LZMA"):
            content = _tiff(
                planes, photometric="rgb", planarconfig="separate", extrasamples=["unassalpha"], **layouts[name]
            )
            yield Dialect(f"tifffile {bits} RGBA in planes, {name}", ".tif", content, as_rgb(rgba))
        for orientation in range(1, 9):
            tag = [(274, "H", 1, orientation, True)]
            content = _tiff(rgb, photometric="rgb", extratags=tag)
            yield Dialect(f"tifffile {bits} orientation {orientation}", ".tif", content, upright(rgb, orientation))
        if dtype is np.uint8:
            yield Dialect("tifffile 8 RGB for ImageJ", ".tif", _tiff(rgb, imagej=True), rgb)
        yield Dialect(f"tifffile {bits} gray for ImageJ", ".tif", _tiff(gray, imagej=True), as_rgb(gray))
    table = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16)
    index = noise(1)[..., 0]
    for name, step in (("257", 257), ("256", 256)):
        content = _tiff(index, photometric="palette", colormap=table * np.uint16(step))
        yield Dialect(f"tifffile palette of 8 bits times {name}", ".tif", content, table.T[index].astype(np.uint8))


def odd_tiffs() -> Iterator[Dialect]:
    """By tifffile, of kinds that have no exact meaning in three channels of 8 or 16 bits, or hold several pictures."""
    table = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    yield Dialect(
        "tifffile palette of 16 bits", ".tif", _tiff(noise(1)[..., 0], photometric="palette", colormap=table), None
    )
    for kind in ("int8", "int16", "int32", "uint32", "uint64", "float16", "float32", "float64", "complex64"):
        values = noise(3).astype(kind)
        yield Dialect(f"tifffile {kind}", ".tif", _tiff(values, photometric="rgb"), None)
        yield Dialect(f"tifffile {kind} gray", ".tif", _tiff(values[..., 0], photometric="minisblack"), None)
    mask = noise(1) > 99
    content = _tiff(mask[..., 0], photometric="minisblack")
    yield Dialect("tifffile 1 bit", ".tif", content, None, seen=as_rgb(mask * np.uint8(255)))
    for bits, dtype in ((2, np.uint8), (4, np.uint8), (10, np.uint16), (12, np.uint16)):
        values = noise(1)[..., 0].astype(dtype) % 2**bits
        digits = np.unpackbits(values[..., None].astype(">u2").view(np.uint8), axis=-1)[..., 16 - bits :]
        rows = np.packbits(digits.reshape(len(values), -1), axis=1).tobytes()  # imagecodecs for Python 3.10 cannot
        strip = {"shape": values.shape, "dtype": dtype, "rowsperstrip": len(values), "bitspersample": bits}
        yield Dialect(f"tifffile {bits} bits", ".tif", _tiff(iter([rows]), photometric="minisblack", **strip), None)
    for dtype in (np.uint8, np.uint16):
        bits = 8 * np.dtype(dtype).itemsize
        four, rgb = noise(4, dtype), noise(3, dtype)
        for extra in ("assocalpha", "unspecified"):
            content = _tiff(four, photometric="rgb", extrasamples=[extra])
            yield Dialect(f"tifffile {bits} RGB and {extra}", ".tif", content, None)
            content = _tiff(noise(2, dtype), photometric="minisblack", extrasamples=[extra], planarconfig="contig")
            yield Dialect(f"tifffile {bits} gray and {extra}", ".tif", content, None)
        yield Dialect(f"tifffile {bits} 5 bands", ".tif", _tiff(noise(5, dtype), photometric="rgb"), None)
        content = _tiff(noise(5, dtype), photometric="rgb", extrasamples=["unassalpha", "unspecified"])
        yield Dialect(f"tifffile {bits} RGB, alpha and a band", ".tif", content, None)
        content = _tiff(rgb, photometric="minisblack", planarconfig="contig")
        yield Dialect(f"tifffile {bits} 3 bands of gray", ".tif", content, None)
        for space in ("cielab", "icclab"):
            yield Dialect(f"tifffile {bits} {space}", ".tif", _tiff(rgb, photometric=space), None)
        yield Dialect(f"tifffile {bits} CMYK", ".tif", _tiff(four, photometric="separated"), None)
        yield Dialect(f"tifffile {bits} CFA", ".tif", _tiff(rgb[..., 0], photometric="cfa"), None)
        pages = np.stack([rgb, rgb[::-1]])
        yield Dialect(f"tifffile {bits} 2 pages", ".tif", _tiff(pages, photometric="rgb"), None)
        yield Dialect(
            f"tifffile {bits} 2 pages, one directory", ".tif", _tiff(pages, photometric="rgb", truncate=True), None
        )
        content = _tiff(pages, photometric="rgb", truncate=True, description="two photographs")
        yield Dialect(f"tifffile {bits} 2 pages, one directory, described", ".tif", content, None)
        yield Dialect(
            f"tifffile {bits} a volume",
            ".tif",
            _tiff(np.stack([rgb[..., 0]] * 16), photometric="minisblack", volumetric=True, tile=(16, 16, 16)),
            None,
        )
        stack = np.stack([rgb[..., 0], rgb[..., 1]])
        for name, options in (("ImageJ", {"imagej": True}), ("OME", {"ome": True})):
            yield Dialect(
                f"tifffile {bits} {name} stack", ".tif", _tiff(stack, photometric="minisblack", **options), None
            )
        content = _tiff(stack, photometric="minisblack", imagej=True, truncate=True)
        yield Dialect(f"tifffile {bits} ImageJ stack, one directory", ".tif", content, None)
    for codec in ("jpeg", "jpeg2000", "webp", "jpegxl", "png", "jpegxr"):
        content = _tiff(smooth(), photometric="rgb", compression=codec)
        yield Dialect(f"tifffile compressed by {codec}", ".tif", content, None)
    yield Dialect("tifffile YCbCr", ".tif", _tiff(smooth(), photometric="ycbcr"), None)
    yield Dialect("tifffile YCbCr, jpeg", ".tif", _tiff(smooth(), photometric="ycbcr", compression="jpeg"), None)
    yield from _nested_tiffs()


def _nested_tiffs() -> Iterator[Dialect]:
    """Several pictures in a file, one of which is the picture."""
    rgb = noise(3)
    for name, first, second, truth in (
        ("and a thumbnail", (rgb, 0), (rgb[::2, ::2], 1), rgb),
        ("after its thumbnail", (rgb[::2, ::2], 1), (rgb, 0), None),
    ):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            for values, kind in (first, second):
                writer.write(values, photometric="rgb", subfiletype=kind)
        yield Dialect(f"tifffile a picture {name}", ".tif", file.getvalue(), truth)
    for kind, truth in ((1, rgb), (2, None)):  # of SubfileType, as older programs write it: a picture, or a smaller one
        content = _tiff(rgb, photometric="rgb", extratags=[(255, "H", 1, kind, True)])
        yield Dialect(f"tifffile of old kind {kind}", ".tif", content, truth)
    for name, outer, inner, truth in (("smaller", rgb, rgb[::2, ::2], rgb), ("larger", rgb[::2, ::2], rgb, None)):
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            writer.write(outer, photometric="rgb", subifds=1)
            writer.write(inner, photometric="rgb", subfiletype=int(name == "smaller"))
        yield Dialect(f"tifffile a {name} picture in a sub-directory", ".tif", file.getvalue(), truth)


def tiffs_of_others() -> Iterator[Dialect]:
    """By Pillow, OpenCV and imageio."""
    rgb, rgba, deep = noise(3), noise(4), noise(3, np.uint16)
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate", "zstd", "lzma"):
        for values in (rgb, rgba, rgb[..., 0]):
            content = saved(pillow(values), "TIFF", compression=compression)
            yield Dialect(f"Pillow TIFF {values.shape[2:]}, {compression}", ".tiff", content, as_rgb(values))
    yield Dialect("Pillow TIFF gray and alpha", ".tif", saved(pillow(noise(2)), "TIFF"), as_rgb(noise(2)))
    palette = pillow(smooth()).quantize(200)
    yield Dialect("Pillow TIFF palette", ".tif", saved(palette, "TIFF"), np.asarray(palette.convert("RGB")))
    gray16 = Image.fromarray(deep[..., 0])
    yield Dialect("Pillow TIFF gray of 16 bits", ".tif", saved(gray16, "TIFF"), as_rgb(deep[..., 0]))
    for kind in ("CMYK", "LAB", "YCbCr"):
        yield Dialect(
            f"Pillow TIFF {kind}",
            ".tif",
            saved(pillow(noise(3)).convert(kind) if kind != "LAB" else Image.fromarray(rgb, "LAB"), "TIFF"),
            None,
        )
    for mode in ("F", "I"):
        yield Dialect(f"Pillow TIFF {mode}", ".tif", saved(pillow(rgb[..., 0]).convert(mode), "TIFF"), None)
    mask = rgb[..., 0] > 99
    for method in ("raw", "group3", "group4", "tiff_lzw"):
        content = saved(pillow(mask), "TIFF", compression=method)
        yield Dialect(f"Pillow TIFF 1 bit, {method}", ".tif", content, None, seen=as_rgb(mask * np.uint8(255)))
    yield Dialect("Pillow TIFF jpeg", ".tif", saved(pillow(smooth()), "TIFF", compression="jpeg"), None)
    pages = [pillow(rgb), pillow(255 - rgb)]
    yield Dialect("Pillow TIFF 2 pages", ".tif", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), None)
    for values in (rgb, deep, rgb[..., 0], deep[..., 0]):
        for code in (1, 5, 8, 32773):
            bgr = values if values.ndim == 2 else np.ascontiguousarray(values[..., ::-1])
            content = cv2.imencode(".tif", bgr, [cv2.IMWRITE_TIFF_COMPRESSION, code])[1].tobytes()
            yield Dialect(f"OpenCV TIFF {values.dtype} {values.shape[2:]}, {code}", ".tif", content, as_rgb(values))
    for values in (rgba, noise(4, np.uint16)):  # it does not say that the fourth channel is alpha
        content = cv2.imencode(".tif", cv2.cvtColor(values, cv2.COLOR_RGBA2BGRA))[1].tobytes()
        yield Dialect(f"OpenCV TIFF {values.dtype} of 4 channels", ".tif", content, as_rgb(values))
    yield Dialect("OpenCV TIFF float32", ".tif", cv2.imencode(".tif", rgb.astype(np.float32))[1].tobytes(), None)
    for name, values in (("RGB", rgb), ("RGB of 16 bits", deep), ("gray", rgb[..., 0])):
        content = imageio.v3.imwrite("<bytes>", values, extension=".tif")
        yield Dialect(f"imageio TIFF {name}", ".tif", content, as_rgb(values))
