"""Upscaling pictures of any kind: which ones a command line names, where results go, and the way of each.

Networks are for gray or colour images.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.data.data_util import count_images, looks_like_image, some
from basicsr.files.images import to_float32
from basicsr.inference.pictures import (
    FORMATS,
    PICTURE_SUFFIXES,
    Format,
    Picture,
    PictureFile,
    check_fits,
    encode,
    suited,
    write,
)
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.misc import scandir, sizeof_fmt
from basicsr.utils.text import first_line, printable

Run = Callable[[Tensor, Any], np.ndarray]
"""As `ImageRunner.to_array`: (1, C, h, w) in [0, 1] and the type wanted to (sh, sw, C) of that type."""


@dataclass(frozen=True)
class Source:
    """A picture to be read."""

    path: str
    below: str  # path below the folder or the fixed part of the pattern given; a file's name
    named: bool  # whether the command line named the file itself


def find_sources(inputs: Sequence[str], *, recursive: bool = False) -> list[Source]:
    """The pictures of files, folders and patterns (`**` stands for any folders), each once; DataError if there is none.

    Folders and patterns are searched for `PICTURE_SUFFIXES`; what exists is no pattern, whatever its name.
    """
    sources: dict[str, Source] = {}
    for given in inputs:
        for source in _sources_of(given, recursive):
            sources.setdefault(_place(source.path), source)
    return list(sources.values())


def _sources_of(given: str, recursive: bool) -> list[Source]:
    endings = ", ".join(PICTURE_SUFFIXES)
    if os.path.isdir(given):
        names = list(scandir(given, suffix=PICTURE_SUFFIXES, recursive=recursive))
        if not names:
            more = "" if recursive else "; --recursive looks into the folders below"
            raise DataError(f"folder {printable(given)} holds no picture ({endings}){more}")
        return [Source(os.path.join(given, name), name, named=False) for name in names]
    if os.path.lexists(given):
        return [Source(given, os.path.basename(given), named=True)]
    if not glob.has_magic(given):
        raise DataError(
            f"{printable(given)} does not exist; give files, folders, or patterns in quotes such as 'photos/*.jpg'"
        )
    found = sorted(path for path in glob.glob(given, recursive=True) if os.path.isfile(path))
    pictures = [path for path in found if path.lower().endswith(PICTURE_SUFFIXES)]
    if not pictures:
        what = f"{len(found)} files, none of them a picture ({endings})" if found else "no file"
        raise DataError(f"pattern '{printable(given)}' matches {what}")
    fixed = given
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    return [Source(path, os.path.relpath(path, fixed or os.curdir), named=False) for path in pictures]


def not_taken(given: str, output: Path, *, recursive: bool) -> Iterator[str]:
    """Warnings of pictures in a given folder that `find_sources` skips, except results."""
    if not os.path.isdir(given):
        return
    names = sorted(os.listdir(given))
    folders = [name for name in names if os.path.isdir(os.path.join(given, name))]
    inputs = [name for name in folders if _place(os.path.join(given, name)) != _place(output)]
    below = {name: count for name in inputs if (count := count_images(os.path.join(given, name))) != 0}
    if below and not recursive:
        counts = [f"{name}: {'cannot be read' if count is None else f'{count:,d}'}" for name, count in below.items()]
        yield f"{some(counts, 'folder')} in it, with pictures, not read; --recursive takes them"
    files = (name for name in names if name not in folders and not name.lower().endswith(PICTURE_SUFFIXES))
    if others := [name for name in files if looks_like_image(name)]:
        yield f"{some(others, 'file')} in it not read, because of the ending; convert to PNG"


def plan(
    sources: Sequence[Source], output: Path, *, suffix: str, ending: str, scale: int
) -> tuple[dict[str, Path], int]:
    """Each picture's file of its result, NAME + `suffix` + `ending` below `output`, and how many were skipped.

    Skipped are results of an earlier run, recognised by name and size, unless the command line names them. Raises
    DataError if a result would overwrite another or a picture to be read.
    """
    targets: dict[str, Path] = {}
    ends: dict[str, str] = {}
    origins: dict[str, str] = {}
    for source in sources:
        stem = output / os.path.dirname(source.below) / (Path(source.below).stem + suffix)
        targets[source.path] = stem.with_name(stem.name + ending)
        end = _place(stem)
        ends[source.path] = end + ending
        origins |= {f"{end}.{kind}": source.path for kind in FORMATS}
    read = {}
    for source in sources:
        place = _place(source.path)
        origin = None if source.named else origins.get(place, source.path)
        if origin in (None, source.path) or not _is_enlarged(origin, source.path, scale):
            read[place] = source.path
    written: dict[str, str] = {}
    for path in read.values():
        if ends[path] in read:
            raise DataError(
                f"the result of {printable(path)} would overwrite {printable(read[ends[path]])}, which is to be read;"
                " choose another --output folder or --suffix"
            )
        if ends[path] in written:
            raise DataError(
                printable(f"{written[ends[path]]} and {path} would both become {targets[path]};")
                + " run them one by one, each with another --output folder or --suffix"
            )
        written[ends[path]] = path
    return {path: targets[path] for path in read.values()}, len(sources) - len(read)


def _is_enlarged(small: str, large: str, scale: int) -> bool:
    """Whether one picture is `scale` times as large as another, perhaps turned; False if either is damaged."""
    try:
        first, second = PictureFile(small), PictureFile(large)
    except DataError:
        return False
    return sorted((first.height * scale, first.width * scale)) == sorted((second.height, second.width))


def _place(path: str | os.PathLike[str]) -> str:
    """The path with links in its folders followed, but not a link of its own name."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


class Upscaler:
    """Upscales pictures `scale` times by a network of 1 or 3 channels.

    Gray becomes the mean of a colour network's output for three equal channels; a gray network runs on R, G, B apart.
    """

    def __init__(self, run: Run, scale: int, channels: int) -> None:
        self._run = run
        self.scale = scale
        self._channels = channels

    def __call__(self, picture: Picture) -> Picture:
        """The picture `scale` times as large, of the same channels and depth.

        Alpha stays between the extremes around each pixel. Transparent pixels first get the colour of the nearest
        other one, so that invisible colours do not shine through at the edges.
        """
        if not picture.has_alpha:
            return picture.with_pixels(self._upscale(picture.pixels))
        colours, alpha = picture.pixels[..., :-1], np.ascontiguousarray(picture.pixels[..., -1])
        large = self._upscale(fill_hidden(colours, alpha))
        large_alpha = self._upscale_alpha(alpha)
        return picture.with_pixels(np.concatenate([large, large_alpha[..., None]], axis=2))

    def _upscale_alpha(self, alpha: np.ndarray) -> np.ndarray:
        height, width = (side * self.scale for side in alpha.shape)
        if alpha.min() == alpha.max():
            return np.full((height, width), alpha[0, 0])
        around = np.ones((3, 3), np.uint8)
        low, high = (
            cv2.resize(extreme(alpha, around), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            for extreme in (cv2.erode, cv2.dilate)
        )
        return self._upscale(alpha[..., None])[..., 0].clip(low, high)

    def _upscale(self, pixels: np.ndarray) -> np.ndarray:
        """(h, w, C) to (sh, sw, C) of the same type; C is 1 or 3."""
        channels = pixels.shape[2]
        if channels == 3 and self._channels == 1:
            return np.concatenate([self._upscale(pixels[..., [channel]]) for channel in range(3)], axis=2)
        lq = torch.from_numpy(np.ascontiguousarray(to_float32(pixels).transpose(2, 0, 1)))[None]
        if channels == self._channels:
            return self._run(lq, pixels.dtype)
        large = self._run(lq.expand(1, 3, -1, -1), pixels.dtype)
        # The mean of three, rounded.
        return ((large.sum(2, dtype=np.uint32, keepdims=True) + 1) // 3).astype(pixels.dtype)


def fill_hidden(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours, (H, W, C), of which fully transparent pixels, alpha (H, W) 0, get those of the nearest other pixel."""
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colours
    _, labels = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_label = np.zeros((labels.max() + 1, colours.shape[2]), colours.dtype)
    by_label[labels[~hidden]] = colours[~hidden]
    filled = colours.copy()
    filled[hidden] = by_label[labels[hidden]]
    return filled


def upscale_file(
    name: str, target: Path, upscaler: Upscaler, output_format: Format, quality: int
) -> tuple[str, str, tuple[str, ...]]:
    """Upscales one file; returns the sizes before and after, `WIDTHxHEIGHT`, and notes on losses.

    Raises OutputError if the result cannot be written, DataError if this picture cannot be upscaled.
    """
    file = PictureFile(name)
    height, width = file.height * upscaler.scale, file.width * upscaler.scale
    check_fits(name, output_format, height, width, file.bits)
    _check_memory(name, file, upscaler.scale)
    try:
        picture = suited(name, file.read(), output_format)
        large = upscaler(picture)
        try:
            content = encode(large, output_format, quality)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # what this picture carries, encoders may refuse in any way
            reason = f"{name} cannot be written as {output_format} ({first_line(error)})"
            raise DataError(f"{reason}; try another --format") from error
    except MemoryError as error:
        raise DataError(f"{name}: there is not enough memory for {width}x{height} pixels; cut it into parts") from error
    write(content, target)
    return picture.size, large.size, picture.notes


def _check_memory(name: str, file: PictureFile, scale: int) -> None:
    """Refuses a picture that cannot fit into this machine's memory."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    pixels, bytes_each = file.width * file.height, file.bits // 8
    # At least: the input as float32, and the result once as pixels and once on its way into a file.
    needed = pixels * 3 * 4 + 2 * pixels * scale**2 * 3 * bytes_each
    if needed > memory:
        raise DataError(
            f"{name} of {file.width}x{file.height} needs {sizeof_fmt(needed)} to be upscaled x{scale}, this machine has"
            f" {sizeof_fmt(memory)} of memory; cut it into parts"
        )
