"""Upscaling pictures of any kind by a network for gray or colour images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from basicsr.files.images import to_float32
from basicsr.inference.pictures import Format, Picture, PictureFile, check_fits, encode, suited, write
from basicsr.utils.errors import DataError, UserError
from basicsr.utils.misc import sizeof_fmt
from basicsr.utils.text import first_line

_STRANGE = 0.15  # mean difference in [0, 1]; networks that restore photographs change them by a few hundredths

Run = Callable[[Tensor, Any], np.ndarray]
"""As `ImageRunner.to_array`: (1, C, h, w) in [0, 1] and the type wanted to (sh, sw, C) of that type."""


class Upscaler:
    """Upscales pictures `scale` times by a network of 1 or 3 channels; one of 1 takes colours too (`LumaNetwork`).

    Gray becomes the mean of a colour network's output for three equal channels.
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
        lq = torch.from_numpy(np.ascontiguousarray(to_float32(pixels).transpose(2, 0, 1)))[None]
        if pixels.shape[2] == 3 or self._channels == 1:
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
    check_memory(name, file, upscaler.scale)
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
    return picture.size, large.size, (*picture.notes, *_strange(picture, large))


def _strange(picture: Picture, large: Picture) -> tuple[str, ...]:
    """A note where the result, made as small as the picture, looks nothing like it, as with a wrong input range."""
    before = to_float32(picture.pixels)
    height, width, _ = before.shape
    after = cv2.resize(to_float32(large.pixels), (width, height), interpolation=cv2.INTER_AREA).reshape(before.shape)
    seen = before[..., -1:] > 0 if picture.has_alpha else np.ones_like(before[..., :1], bool)  # hidden colours change
    differences = np.abs(after - before).mean(2, keepdims=True)[seen]
    if not differences.size or (difference := float(differences.mean())) <= _STRANGE:
        return ()
    return (
        f"warning: the result looks nothing like the picture (mean difference {255 * difference:.0f} of 255): networks"
        " get and make images in [0, 1] here; check that this one does",
    )


class Sized(Protocol):
    """What is known of a picture or a frame before it is decoded."""

    width: int
    height: int
    bits: int


def check_memory(name: str, file: Sized, scale: int) -> None:
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
