"""What a dialect of an image file is, and the pictures that fill them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64


@dataclass(frozen=True)
class Dialect:
    """A file and what it holds.

    Attributes:
        name: writer and properties.
        ending: of the file's name.
        content: of the file.
        truth: (H, W, 3) RGB, uint8 or uint16; None where every reading is wrong.
        lossy: whether decoders may differ in rounding, by up to 2 levels.
        damaged: whether bytes amid the compressed pixels are wrong, which only decoding shows.
        seen: the truth for upscale.py where it differs: it also reads what is shown as gray of one bit.
        hidden: (H, W), which pixels are fully transparent; upscale.py gives them another colour.
    """

    name: str
    ending: str
    content: bytes
    truth: np.ndarray | None
    lossy: bool = False
    damaged: bool = False
    seen: np.ndarray | None = None
    hidden: np.ndarray | None = None

    @property
    def shown(self) -> np.ndarray | None:
        """The truth for upscale.py."""
        return self.truth if self.seen is None else self.seen


def noise(channels: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """(H, W, C) of values without 0 and the largest, so that no pixel is fully transparent, and all is asymmetric."""
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(1, info.max, (HEIGHT, WIDTH, channels)).astype(dtype)


def smooth(channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8, a photograph-like picture for lossy formats."""
    small = np.random.default_rng(7).integers(0, 256, (HEIGHT // 8, WIDTH // 8, channels)).astype(np.uint8)
    return cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).reshape(HEIGHT, WIDTH, channels)


def as_rgb(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) as three channels: gray three times, alpha and more dropped."""
    gray = values[..., None] if values.ndim == 2 else values
    return np.repeat(gray[..., :1], 3, axis=2) if gray.shape[2] < 3 else gray[..., :3]


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """As EXIF defines it, spelled out by quarter turns and mirrors."""
    mirrored = pixels[:, ::-1] if orientation in (2, 4, 5, 7) else pixels
    quarters = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    return np.rot90(mirrored, quarters)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file of Pillow's."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(values: np.ndarray, mode: str | None = None) -> Image.Image:
    """(H, W) or (H, W, C) as a picture of Pillow's."""
    squeezed = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    image = Image.fromarray(squeezed)
    return image if mode is None else image.convert(mode)
