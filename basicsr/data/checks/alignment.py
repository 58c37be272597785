"""Whether an LR image shows what its HR image shows, at the same place: by their pixels.

Both are compared where the LR image has most detail: the HR image, averaged over squares of scale x scale pixels, is
held against it at every shift of a few HR pixels. An LR image that fits better by `LEAST_GAIN` where it is shifted is
out of step; as one of other contents counts whose coarse brightness correlates by less than `LEAST_CORRELATION`. Blur,
noise and compression make every shift fit worse alike, and are no cause. Images without detail tell nothing.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from basicsr.data.storage import StoredImages
from basicsr.utils.errors import DataError
from basicsr.utils.matlab_functions import imresize_integer

LEAST_GAIN = 2.0  # dB
LEAST_CORRELATION = 0.5
EQUAL = "LR is equal to HR, so there is nothing to learn; check which folders are paired"
_LOOKED_AT = 8  # pairs, where not all are
_LEAST_SHIFT = 4  # HR pixels that are looked at in every direction, and the scale where that is more
_LARGEST_WINDOW = 64  # LR pixels a side
_SMALLEST_WINDOW = 8
_CONTEXT = 4  # LR pixels that bicubic interpolation sees beyond a window
_COARSE = 16  # pixels a side of what is correlated
_LEAST_SPREAD = 4.0  # gray levels of 255: the standard deviation below which nothing can be told


def find_misalignment(hr: np.ndarray, lr: np.ndarray, scale: int) -> str | None:
    """How LR and HR, (H, W, 3), BGR, uint8 or uint16, do not belong together; None where they do, or it is unclear.

    It is unclear where H and W are less than `scale` times those of LR, or where there is no detail.
    """
    height, width = lr.shape[:2]
    large, small = _gray(hr[: height * scale, : width * scale]), _gray(lr)
    if min(height, width) < _SMALLEST_WINDOW or large.shape != (height * scale, width * scale):
        return None
    cells = min(_COARSE, min(height, width) // 2)
    rows, columns = height // cells * cells, width // cells * cells  # OpenCV is fast where cells are of whole pixels
    coarse = [
        cv2.resize(image[: rows * factor, : columns * factor], (cells, cells), interpolation=cv2.INTER_AREA)
        for image, factor in ((large, scale), (small, 1))
    ]
    if min(float(image.std()) for image in coarse) >= _LEAST_SPREAD:
        correlation = float(np.corrcoef(coarse[0].ravel(), coarse[1].ravel())[0, 1])
        if correlation < LEAST_CORRELATION:
            return f"LR shows something else than HR (correlation {correlation:.2f}); check which images are paired"
    reach = max(scale, _LEAST_SHIFT)
    margin = math.ceil(reach / scale) + _CONTEXT
    top, left, side = _window(small, margin)
    target = small[top : top + side, left : left + side]
    if side < _SMALLEST_WINDOW or target.std() < _LEAST_SPREAD / 4:
        return None
    y, x = top * scale - reach, left * scale - reach
    length = (side + 1) * scale + 2 * reach
    means = cv2.boxFilter(
        large[y : y + length, x : x + length], -1, (scale, scale), anchor=(0, 0), borderType=cv2.BORDER_REFLECT
    )
    errors: dict[tuple[int, int], float] = {}
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            shifted = means[down : down + side * scale : scale, right : right + side * scale : scale]
            difference = shifted - target
            errors[down - reach, right - reach] = float(np.vdot(difference, difference))
    best = min(errors, key=errors.__getitem__)
    if best == (0, 0):
        return None
    before, after = (_psnr(large, target, scale, top, left, shift) for shift in ((0, 0), best))
    if after - before < LEAST_GAIN:
        return None
    return (
        f"LR is out of step with HR: it fits {after - before:.1f} dB better ({after:.1f} for {before:.1f}) where HR is"
        f" moved by {best[0]} rows and {best[1]} columns; cut both together (scripts/data/extract_subimages.py"
        " --lr-input), or make LR anew"
    )


def find_misaligned_pairs(stored: StoredImages) -> str | None:
    """Compares a few pairs of a dataset, from the first to the last; a warning where one does not belong together.

    Unreadable pairs are skipped, as are datasets without HR images. At scale 1, where cameras move and some images may
    need no change, there is a warning only where all are equal.
    """
    if not {"gt", "lq"} <= set(stored.files):
        return None
    count = len(stored.files["gt"])
    indices = sorted({round(step * (count - 1) / (_LOOKED_AT - 1)) for step in range(_LOOKED_AT)})
    faults: list[tuple[str, str]] = []
    for index in indices:
        try:
            large, small = (stored.roots[role].open(stored.files[role][index]).read() for role in ("gt", "lq"))
        except DataError:
            continue
        fault = None
        if stored.scale == 1:
            fault = EQUAL if np.array_equal(large, small) else None
        elif large.dtype == small.dtype:
            fault = find_misalignment(large, small, stored.scale)
        if fault is not None:
            faults.append((stored.label("gt", index), fault))
    if not faults or (stored.scale == 1 and len(faults) < len(indices)):
        return None
    return f"{len(faults)} of {len(indices)} pairs looked at do not fit, as {faults[0][0]}: {faults[0][1]}"


def _gray(image: np.ndarray) -> np.ndarray:
    """Luma, float32 in [0, 255]."""
    luma = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY).astype(np.float32)
    return luma / np.float32(257) if image.dtype == np.uint16 else luma


def _window(small: np.ndarray, margin: int) -> tuple[int, int, int]:
    """Top, left and side of the square with most detail, `margin` pixels from all edges."""
    side = min(_LARGEST_WINDOW, min(small.shape) - 2 * margin)
    if side < _SMALLEST_WINDOW:
        return 0, 0, 0
    means, squares = (
        cv2.boxFilter(values, -1, (side, side), anchor=(0, 0), borderType=cv2.BORDER_REFLECT)
        for values in (small, small * small)
    )
    spread = squares - np.square(means)
    places = spread[margin : small.shape[0] - margin - side + 1, margin : small.shape[1] - margin - side + 1]
    top, left = np.unravel_index(int(places.argmax()), places.shape)
    return int(top) + margin, int(left) + margin, side


def _psnr(large: np.ndarray, target: np.ndarray, scale: int, top: int, left: int, shift: tuple[int, int]) -> float:
    """PSNR, dB, of MATLAB's bicubic downsampling of the shifted HR window against LR's."""
    length = (len(target) + 2 * _CONTEXT) * scale
    y, x = (top - _CONTEXT) * scale + shift[0], (left - _CONTEXT) * scale + shift[1]
    window = np.clip(np.rint(large[y : y + length, x : x + length, None]), 0, 255).astype(np.uint8)
    fine = imresize_integer(window, 1 / scale)[_CONTEXT:-_CONTEXT, _CONTEXT:-_CONTEXT].reshape(target.shape)
    error = float(np.square(fine.astype(np.float32) - target).mean())
    return 10 * math.log10(255**2 / max(error, 0.05))
