"""RGB to YCbCr and back by ITU-R BT.601 for standard television, as MATLAB's rgb2ycbcr and ycbcr2rgb.

With R, G, B in [0, 1], (Y, Cb, Cr) = (R, G, B) M + (16, 128, 128) on a scale of 255, so that Y lies in
16...235. OpenCV's conversion is another one (full range, as in JPEG).
"""

from __future__ import annotations

import numpy as np
import torch

_RGB_TO_YCBCR = np.array(
    [[65.481, -37.797, 112.0], [128.553, -74.203, -93.786], [24.966, 112.0, -18.214]], dtype=np.float64
)
_OFFSET = np.array([16.0, 128.0, 128.0])


def luma_of_bgr() -> np.ndarray:
    """The matrix (1, 4), float64, by which OpenCV's `transform` maps B, G, R in [0, 255] to Y in [16, 235]."""
    return np.append(_RGB_TO_YCBCR[::-1, 0] / 255.0, _OFFSET[0])[None]


def rgb2ycbcr(img: np.ndarray, y_only: bool = False) -> np.ndarray:
    """RGB (..., 3), uint8 or float in [0, 1] (else TypeError), to YCbCr of the same type; `y_only` to Y (...)."""
    return _to_ycbcr(img, _RGB_TO_YCBCR, y_only)


def bgr2ycbcr(img: np.ndarray, y_only: bool = False) -> np.ndarray:
    """`rgb2ycbcr` of images whose channels are B, G, R; the result is Y, Cb, Cr."""
    return _to_ycbcr(img, _RGB_TO_YCBCR[::-1], y_only)


def ycbcr2rgb(img: np.ndarray) -> np.ndarray:
    """The inverse of `rgb2ycbcr`: (..., 3), uint8 in 0..255 or float in [0, 1], to RGB of the same type.

    Colours outside RGB are clipped for uint8, as MATLAB does, and left as they are for floats.
    """
    unit, full_scale = _unit_range(img)
    return _as_given((unit * 255.0 - _OFFSET) @ np.linalg.inv(_RGB_TO_YCBCR) * 255.0, img, full_scale)


def rgb2ycbcr_pt(img: torch.Tensor, y_only: bool = False) -> torch.Tensor:
    """RGB (B, 3, H, W) in [0, 1], floating point, to YCbCr in [0, 1]; `y_only` to Y (B, 1, H, W).

    Differentiable, and in the input's own precision, also under autocast.
    """
    red, green, blue = img.unbind(1)
    channels = []
    for column in range(1 if y_only else 3):
        weights = _RGB_TO_YCBCR[:, column].tolist()
        mixed = weights[0] * red + weights[1] * green + weights[2] * blue
        channels.append((mixed + float(_OFFSET[column])) / 255.0)
    return torch.stack(channels, dim=1)


def ycbcr2rgb_pt(img: torch.Tensor) -> torch.Tensor:
    """The inverse of `rgb2ycbcr_pt`: (B, 3, H, W), floating point, to RGB, of which colours outside are not clipped."""
    luma, blue, red = (255.0 * channel - float(offset) for channel, offset in zip(img.unbind(1), _OFFSET, strict=True))
    columns = np.linalg.inv(_RGB_TO_YCBCR).T.tolist()
    return torch.stack([one * luma + two * blue + three * red for one, two, three in columns], dim=1)


def _to_ycbcr(img: np.ndarray, matrix: np.ndarray, y_only: bool) -> np.ndarray:
    unit, full_scale = _unit_range(img)
    mixed = unit @ matrix[:, 0] + _OFFSET[0] if y_only else unit @ matrix + _OFFSET
    return _as_given(mixed, img, full_scale)


def _unit_range(img: np.ndarray) -> tuple[np.ndarray, float]:
    """Pixels in [0, 1], and what stands for 1 in the given type."""
    if img.dtype == np.uint8:
        return img.astype(np.float32) / np.float32(255.0), 255.0
    if img.dtype in (np.float32, np.float64):
        return img, 1.0
    raise TypeError(f"pixels must be uint8 in 0..255 or float32 or float64 in [0, 1], got {img.dtype}")


def _as_given(on_255: np.ndarray, given: np.ndarray, full_scale: float) -> np.ndarray:
    if full_scale == 255.0:
        return np.clip(on_255.round(), 0, 255).astype(np.uint8)
    return (on_255 / 255.0).astype(given.dtype)
