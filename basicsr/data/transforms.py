"""Cropping and augmentation of pairs; BasicSR's names.

Random choices come from `rng`; without one from Python's global `random`, as in BasicSR.
"""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from basicsr.data.pairing import check_patches_fit
from basicsr.utils.errors import DataError

_OPENCVS = frozenset(map(np.dtype, (np.uint8, np.uint16, np.float32, np.float64)))
_FLIPS = {(True, False): 1, (False, True): 0, (True, True): -1}  # cv2.flip's codes


def mod_crop(img: np.ndarray, scale: int) -> np.ndarray:
    """A copy of an image (H, W) or (H, W, C), cut below and right to multiples of `scale`.

    Raises:
        DataError: another number of dimensions.
    """
    if img.ndim not in (2, 3):
        raise DataError(f"an image of 2 or 3 dimensions is expected, got {img.ndim}")
    height, width = img.shape[:2]
    return img[: height - height % scale, : width - width % scale].copy()


def choose_crop(
    gt_size: tuple[int, int],
    lq_size: tuple[int, int],
    gt_patch_size: int,
    scale: int,
    gt_path: str | None = None,
    lq_path: str | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[int, int]:
    """Draws where to cut a patch.

    Args:
        gt_size: height and width of the HR image.
        lq_size: of the LR image.
        gt_patch_size: side of the HR patch.
        scale: upscaling factor.
        gt_path: the HR image's name for errors.
        lq_path: the LR image's.
        rng: where the two draws come from.

    Returns:
        Top and left of the LR patch; times `scale`, those of the HR patch.

    Raises:
        DataError: the HR image is not `scale` times the LR image, or the LR image is smaller than the patch.
    """
    check_patches_fit(gt_size, lq_size, gt_patch_size, scale, gt_path, lq_path)
    (height, width), lq_patch_size = lq_size, gt_patch_size // scale
    return _below(height - lq_patch_size + 1, rng), _below(width - lq_patch_size + 1, rng)


def paired_random_crop(
    img_gts: Any,
    img_lqs: Any,
    gt_patch_size: int,
    scale: int,
    gt_path: str | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Any, Any]:
    """Cuts corresponding patches out of HR and LR images at a random place.

    Args:
        img_gts: HR image or list of them, arrays (H, W, ...) or tensors (..., H, W), all of one size.
        img_lqs: LR image or list of them.
        gt_patch_size: side of the HR patch, a multiple of `scale`.
        scale: upscaling factor.
        gt_path: the HR image's name for errors.
        rng: where the place is drawn from.

    Returns:
        HR and LR patches, each alone or as a list where there is more than one.

    Raises:
        DataError: as `choose_crop`.
    """
    gts = img_gts if isinstance(img_gts, list) else [img_gts]
    lqs = img_lqs if isinstance(img_lqs, list) else [img_lqs]
    top, left = choose_crop(_size(gts[0]), _size(lqs[0]), gt_patch_size, scale, gt_path, rng=rng)
    lqs = [_cut(img, top, left, gt_patch_size // scale) for img in lqs]
    gts = [_cut(img, top * scale, left * scale, gt_patch_size) for img in gts]
    return (gts[0] if len(gts) == 1 else gts), (lqs[0] if len(lqs) == 1 else lqs)


def augment(
    imgs: Any,
    hflip: bool = True,
    rotation: bool = True,
    *,
    return_status: bool = False,
    rng: np.random.Generator | None = None,
) -> Any:
    """Flips or rotates arrays (H, W, ...), all in the same way, each of the possible ways being as likely.

    Draws up to three coins: flip left to right (`hflip`); flip upside down and swap height and width
    (`rotation`, which together give the rotations by multiples of 90 degrees). BasicSR's `flows`, for video,
    are left out.

    Args:
        imgs: an array or a list of them; not changed.
        hflip: allow horizontal flips.
        rotation: allow rotations.
        return_status: also return the three coins.
        rng: where the coins are drawn from.

    Returns:
        The images, alone or as a list where there is more than one; with `return_status` also (hflip, vflip,
        rot90).
    """
    coins = draw_coins(hflip, rotation, rng)
    results = [np.ascontiguousarray(turned(img, coins)) for img in (imgs if isinstance(imgs, list) else [imgs])]
    result = results[0] if len(results) == 1 else results
    return (result, tuple(coins)) if return_status else result


class Coins(NamedTuple):
    """How an image is turned: flipped left to right, then upside down, then with height and width swapped."""

    horizontal: bool
    vertical: bool
    swapped: bool


def draw_coins(hflip: bool, rotation: bool, rng: np.random.Generator | None = None) -> Coins:
    """Draws as `augment` does: a coin for `hflip`, and two for `rotation`."""
    return Coins(hflip and _coin(rng), rotation and _coin(rng), rotation and _coin(rng))


def turned(img: np.ndarray, coins: Coins) -> np.ndarray:
    """An array (H, W, ...) turned; one of three channels whose order is a view's, RGB as BGR, stays such a view.

    OpenCV does for such images in microseconds what numpy copies pixel by pixel.
    """
    if img.ndim == 3 and img.shape[2] == 3 and img.strides[2] < 0:
        return turned(img[..., ::-1], coins)[..., ::-1]
    if img.ndim != 3 or img.shape[2] != 3 or img.dtype not in _OPENCVS or not img.size:
        img = img[:, ::-1] if coins.horizontal else img
        img = img[::-1] if coins.vertical else img
        return np.ascontiguousarray(img.swapaxes(0, 1) if coins.swapped else img)
    if coins.horizontal or coins.vertical:
        img = cv2.flip(img, _FLIPS[coins.horizontal, coins.vertical])
    return cv2.transpose(img) if coins.swapped else np.ascontiguousarray(img)


def _below(limit: int, rng: np.random.Generator | None) -> int:
    return random.randrange(limit) if rng is None else int(rng.integers(limit))


def _coin(rng: np.random.Generator | None) -> bool:
    return (random.random() if rng is None else float(rng.random())) < 0.5


def _size(img: np.ndarray | torch.Tensor) -> tuple[int, int]:
    height, width = img.shape[-2:] if isinstance(img, torch.Tensor) else img.shape[:2]
    return int(height), int(width)


def _cut(img: Any, top: int, left: int, side: int) -> Any:
    if isinstance(img, torch.Tensor):
        return img[..., top : top + side, left : left + side]
    return img[top : top + side, left : left + side]
