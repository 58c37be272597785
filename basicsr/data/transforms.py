"""Pairs of images: which fit together, cropping and augmentation; BasicSR's names.

Random choices come from `rng`; without one from Python's global `random`, as in BasicSR.
"""

from __future__ import annotations

import os
import random
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from basicsr.utils.errors import DataError

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]
"""Height and width."""

_OPENCVS = frozenset(map(np.dtype, (np.uint8, np.uint16, np.float32, np.float64)))
_FLIPS = {(True, False): 1, (False, True): 0, (True, True): -1}  # cv2.flip's codes
# Pixels that are missing at the right or below where LR images were made from HR images cut to a multiple of 12.
_MOST_CUT_OFF = 12
_LARGEST_SCALE = 16


def mod_crop(img: np.ndarray, scale: int) -> np.ndarray:
    """A copy of an image (H, W) or (H, W, C), else DataError, cut below and right to multiples of `scale`."""
    if img.ndim not in (2, 3):
        raise DataError(f"an image of 2 or 3 dimensions is expected, got {img.ndim}")
    height, width = img.shape[:2]
    return img[: height - height % scale, : width - width % scale].copy()


def choose_crop(
    gt_size: Size | None,
    lq_size: Size,
    gt_patch_size: int,
    scale: int,
    gt_path: str | None = None,
    lq_path: str | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[int, int]:
    """Draws top and left of an LR patch; those of the HR patch are `scale` times as large. As `check_patches_fit`."""
    check_patches_fit(gt_size, lq_size, gt_patch_size, scale, gt_path, lq_path)
    drawn = []
    for side in lq_size:
        places = side - gt_patch_size // scale + 1
        drawn.append(random.randrange(places) if rng is None else int(rng.integers(places)))
    return drawn[0], drawn[1]


def paired_random_crop(
    img_gts: Any,
    img_lqs: Any,
    gt_patch_size: int,
    scale: int,
    gt_path: str | None = None,
    rng: np.random.Generator | None = None,
) -> tuple[Any, Any]:
    """Cuts corresponding patches out of HR and LR images at a random place; returns HR and LR, alone or as lists.

    Args:
        img_gts: HR image or list of them, arrays (H, W, ...) or tensors (..., H, W), all of one size.
        img_lqs: LR image or list of them, `scale` times as small and not smaller than the patch, else DataError.
        gt_patch_size: side of the HR patch, a multiple of `scale`.
        scale: upscaling factor.
        gt_path: the HR image's name for errors.
        rng: where the place is drawn from.
    """
    gts = img_gts if isinstance(img_gts, list) else [img_gts]
    lqs = img_lqs if isinstance(img_lqs, list) else [img_lqs]
    top, left = choose_crop(_size(gts[0]), _size(lqs[0]), gt_patch_size, scale, gt_path, rng=rng)

    def cut(img: Any, top: int, left: int, side: int) -> Any:
        rows, columns = slice(top, top + side), slice(left, left + side)
        return img[rows, columns] if isinstance(img, np.ndarray) else img[..., rows, columns]

    lqs = [cut(img, top, left, gt_patch_size // scale) for img in lqs]
    gts = [cut(img, top * scale, left * scale, gt_patch_size) for img in gts]
    return (gts[0] if len(gts) == 1 else gts), (lqs[0] if len(lqs) == 1 else lqs)


def augment(
    imgs: Any,
    hflip: bool = True,
    rotation: bool = True,
    *,
    return_status: bool = False,
    rng: np.random.Generator | None = None,
) -> Any:
    """Flips or rotates an array (H, W, ...) or a list of them, all in one way, each possible way being as likely.

    Draws up to three coins from `rng`: flip left to right (`hflip`); flip upside down and swap height and width
    (`rotation`, which together give the rotations by multiples of 90 degrees). BasicSR's `flows`, for video, are left
    out. With `return_status`, the coins (hflip, vflip, rot90) are returned beside the images.
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
    """A coin for `hflip`, and two for `rotation`."""
    return Coins(hflip and _coin(rng), rotation and _coin(rng), rotation and _coin(rng))


def turned(img: np.ndarray, coins: Coins) -> np.ndarray:
    """An array (H, W, ...) turned; one of three channels whose order is a view's, RGB as BGR, stays such a view."""
    # OpenCV does for such images in microseconds what numpy copies pixel by pixel.
    if img.ndim == 3 and img.shape[2] == 3 and img.strides[2] < 0:
        return turned(img[..., ::-1], coins)[..., ::-1]
    if img.ndim != 3 or img.shape[2] != 3 or img.dtype not in _OPENCVS or not img.size:
        img = img[:, ::-1] if coins.horizontal else img
        img = img[::-1] if coins.vertical else img
        return np.ascontiguousarray(img.swapaxes(0, 1) if coins.swapped else img)
    if coins.horizontal or coins.vertical:
        img = cv2.flip(img, _FLIPS[coins.horizontal, coins.vertical])
    return cv2.transpose(img) if coins.swapped else np.ascontiguousarray(img)


def turned_tensor(image: torch.Tensor, coins: Coins) -> torch.Tensor:
    """As `turned`, a tensor (..., H, W)."""
    image = image.flip([dim for dim, flips in ((-1, coins.horizontal), (-2, coins.vertical)) if flips])
    return image.transpose(-2, -1) if coins.swapped else image


def check_patches_fit(
    gt_size: Size | None,
    lq_size: Size,
    gt_patch_size: int | None,
    scale: int,
    gt_path: str | None,
    lq_path: str | None,
    gt_folders: Sequence[str] = (),
) -> None:
    """Raises DataError unless HR, if it is there, is exactly `scale` times LR, and a patch fits in (None: any size)."""
    needed = lq_size[0] * scale, lq_size[1] * scale
    names = f"LR {lq_path or 'image'} is {_by(lq_size)} (H x W)"
    if gt_size is not None:
        names = f"HR {gt_path or 'image'} is {_by(gt_size)}, {names}"
    if gt_size is not None and gt_size != needed:
        raise DataError(
            f"{names}; at scale {scale} the HR image must be {_by(needed)}:"
            f" {advice(gt_size, lq_size, scale, gt_path, gt_folders)}"
        )
    if gt_patch_size is not None and min(lq_size) < gt_patch_size // scale:
        raise DataError(
            f"{names}, smaller than patches of {gt_patch_size} (LR {gt_patch_size // scale}); lower gt_size"
        )


def check_hr_patch_fits(gt_size: Size, side: int, gt_path: str) -> None:
    """Raises DataError unless a patch fits in an HR image."""
    if min(gt_size) == 0:
        raise DataError(f"HR {gt_path} is smaller than one LR pixel: {_by(gt_size)} (H x W) remain; remove it")
    if min(gt_size) < side:
        raise DataError(
            f"HR {gt_path} is {_by(gt_size)} (H x W, cut to a multiple of the scale), smaller than patches of {side};"
            " lower gt_size, or set extend_small: true"
        )


def check_whole_pair(
    gt_size: Size, lq_size: Size, scale: int, gt_path: str, lq_path: str, gt_folders: Sequence[str] = ()
) -> None:
    """Raises DataError unless HR is `scale` times LR, or larger by what cutting to a multiple explains."""
    height, width = lq_size[0] * scale, lq_size[1] * scale
    if gt_size[0] < height or gt_size[1] < width:
        relation = "is smaller"
    elif max(gt_size[0] - height, gt_size[1] - width) >= max(_MOST_CUT_OFF, scale):
        relation = "is much larger"
    else:
        return
    raise DataError(
        f"HR {gt_path} of {_by(gt_size)} {relation} than {scale} times LR {lq_path} of {_by(lq_size)}; "
        f"{advice(gt_size, lq_size, scale, gt_path, gt_folders)}"
    )


def check_depths(gt_bits: int, lq_bits: int, gt_path: str, lq_path: str) -> None:
    """Raises DataError unless both have the same bits to a channel: else values were cut or stretched."""
    if gt_bits != lq_bits:
        raise DataError(
            f"HR {gt_path} has {gt_bits} bits to a channel, LR {lq_path} has {lq_bits}; make one from the other again"
        )


def advice(
    gt_size: Size,
    lq_size: Size,
    scale: int,
    gt_path: str | None,
    gt_folders: Sequence[str] = (),
    channels: int | None = None,
) -> str:
    """What to do about a pair of `gt_folders`, where they are known, whose HR image is not `scale` times the LR one.

    `channels` is given of images of several bands.
    """
    if _is_cut_of(gt_size, lq_size, scale):
        if gt_path is None or "(key '" in gt_path:
            folder = "HR"
        else:
            folder = " ".join(map(shlex.quote, gt_folders or (os.path.dirname(gt_path) or ".",)))
        bands = f" --channels {channels}" if channels is not None else ""
        return (
            f"cut the HR images to a multiple of {scale}, and make LR images of these, by: python"
            f" scripts/data/generate_lr.py --input {folder} --output NEW_LR --hr-output NEW_HR --scales"
            f" {scale}{bands}; then set dataroot_gt: NEW_HR, dataroot_lq: NEW_LR/X{scale},"
            f" filename_tmpl: '{{}}x{scale}'"
        )
    other = next((other for other in range(1, _LARGEST_SCALE + 1) if _is_cut_of(gt_size, lq_size, other)), None)
    found = f"the LR image is of scale {other}; " if other is not None and other != scale else ""
    return f"{found}check scale, dataroot_lq and filename_tmpl"


def _is_cut_of(gt_size: Size, lq_size: Size, scale: int) -> bool:
    """Whether LR may be made from HR at this scale, up to a cut or one pixel more, as MATLAB rounds up."""
    rests = (large - small * scale for large, small in zip(gt_size, lq_size, strict=True))
    return all(-scale < rest < max(_MOST_CUT_OFF, scale) for rest in rests)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _coin(rng: np.random.Generator | None) -> bool:
    return (random.random() if rng is None else float(rng.random())) < 0.5


def _size(img: np.ndarray | torch.Tensor) -> Size:
    height, width = img.shape[:2] if isinstance(img, np.ndarray) else img.shape[-2:]
    return int(height), int(width)
