"""Whether an HR image and an LR image belong together; the same rules before training and while it runs."""

from __future__ import annotations

import os
import shlex

from basicsr.utils.errors import DataError

Size = tuple[int, int]

# Pixels that are missing at the right or below where LR images were made from HR images cut to a multiple of 12.
MOST_CUT_OFF = 12
_LARGEST_SCALE = 16


def check_patches_fit(
    gt_size: Size, lq_size: Size, gt_patch_size: int | None, scale: int, gt_path: str | None, lq_path: str | None
) -> None:
    """The rule of training: HR is exactly `scale` times LR, and a patch fits in.

    Args:
        gt_size: height and width of the HR image.
        lq_size: of the LR image.
        gt_patch_size: side of the HR patch; None where small images are extended.
        scale: upscaling factor.
        gt_path: the HR image's name for errors.
        lq_path: the LR image's.

    Raises:
        DataError: otherwise.
    """
    names = f"HR {gt_path or 'image'} is {_by(gt_size)}, LR {lq_path or 'image'} is {_by(lq_size)} (H x W)"
    needed = lq_size[0] * scale, lq_size[1] * scale
    if gt_size != needed:
        raise DataError(
            f"{names}; at scale {scale} the HR image must be {_by(needed)}: {advice(gt_size, lq_size, scale, gt_path)}"
        )
    if gt_patch_size is not None and min(lq_size) < gt_patch_size // scale:
        raise DataError(
            f"{names}, smaller than patches of {gt_patch_size} (LR {gt_patch_size // scale}); lower gt_size"
        )


def check_whole_pair(gt_size: Size, lq_size: Size, scale: int, gt_path: str, lq_path: str) -> None:
    """The rule of evaluation: HR is `scale` times LR, or larger by what cutting to a multiple explains.

    Raises:
        DataError: otherwise.
    """
    height, width = lq_size[0] * scale, lq_size[1] * scale
    if gt_size[0] < height or gt_size[1] < width:
        relation = "is smaller"
    elif max(gt_size[0] - height, gt_size[1] - width) >= max(MOST_CUT_OFF, scale):
        relation = "is much larger"
    else:
        return
    raise DataError(
        f"HR {gt_path} of {_by(gt_size)} {relation} than {scale} times LR {lq_path} of {_by(lq_size)}; "
        f"{advice(gt_size, lq_size, scale, gt_path)}"
    )


def advice(gt_size: Size, lq_size: Size, scale: int, gt_path: str | None) -> str:
    """What to do about a pair whose HR image is not `scale` times the LR image; it must lead to one that is."""
    if _is_cut_of(gt_size, lq_size, scale):
        folder = "HR" if gt_path is None or "(key '" in gt_path else shlex.quote(os.path.dirname(gt_path) or ".")
        return (
            f"cut the HR images to a multiple of {scale}, and make LR images of these, by: python"
            f" scripts/data/generate_lr.py --input {folder} --output NEW_LR --hr-output NEW_HR --scales {scale}; then"
            f" set dataroot_gt: NEW_HR, dataroot_lq: NEW_LR/X{scale}, filename_tmpl: '{{}}x{scale}'"
        )
    other = next((other for other in range(1, _LARGEST_SCALE + 1) if _is_cut_of(gt_size, lq_size, other)), None)
    found = f"the LR image is of scale {other}; " if other is not None and other != scale else ""
    return f"{found}check scale, dataroot_lq and filename_tmpl"


def _is_cut_of(gt_size: Size, lq_size: Size, scale: int) -> bool:
    """Whether LR may be made from HR at this scale: pixels that fill no multiple are left over at most, or make one
    more, as where MATLAB's `imresize` rounds up."""
    rests = (large - small * scale for large, small in zip(gt_size, lq_size, strict=True))
    return all(-scale < rest < max(MOST_CUT_OFF, scale) for rest in rests)


def check_depths(gt_bits: int, lq_bits: int, gt_path: str, lq_path: str) -> None:
    """Raises DataError unless both images have 8 bits to a channel, or both 16.

    A pair of both kinds is one whose values were cut or stretched on the way, as where 8-bit values were saved in 16
    bits, which reads as black.
    """
    if gt_bits != lq_bits:
        raise DataError(
            f"HR {gt_path} has {gt_bits} bits to a channel, LR {lq_path} has {lq_bits}; make one from the other again"
        )


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
