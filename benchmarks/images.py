"""Images that are made up: like photographs to a decoder, which is what they are for."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np


def picture(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of all sizes, each octave half as strong as the one twice its size: uint8 (H, W, 3).

    As a PNG file it is about as much smaller as a photograph is: to between a half and two thirds.
    """
    total = np.zeros((height, width, 3), np.float32)
    strength = 1.0
    for octave in (64, 32, 16, 8, 4, 2):
        coarse = rng.standard_normal((height // octave + 2, width // octave + 2, 3), dtype=np.float32)
        total += strength * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        strength /= 2
    total += 0.03 * rng.standard_normal(total.shape, dtype=np.float32)
    return np.clip(128 + 45 * total, 0, 255).astype(np.uint8)


def write_pairs(folder: Path, count: int, size: tuple[int, int], scale: int, *, copies: int = 1, seed: int = 0) -> Path:
    """Writes HR/*.png and LR/*.png of equal names and returns `folder`.

    Args:
        folder: made if it is not there.
        count: pairs that differ.
        size: height and width of the HR images, multiples of `scale`.
        scale: how many times larger HR is.
        copies: how often each pair is written, under names of its own.
        seed: of the pixels.
    """
    rng = np.random.default_rng(seed)
    for name in ("HR", "LR"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        hr = picture(*size, rng)
        lr = cv2.resize(hr, (size[1] // scale, size[0] // scale), interpolation=cv2.INTER_AREA)
        for name, image in (("HR", hr), ("LR", lr)):
            content = cv2.imencode(".png", image)[1].tobytes()
            for copy in range(copies):
                (folder / name / f"{copy * count + number:06d}.png").write_bytes(content)
    return folder
