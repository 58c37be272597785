"""Where the feature prior mixer of MiPKD takes the teacher's features and where the student's: I^M of eq. 3."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from basicsr.distill.base import StepContext
from basicsr.losses.loss_util import at_least_float32

MaskKind = Literal["random", "grid", "cosine", "cka"]


@torch.no_grad()
def mixing_mask(
    kind: MaskKind, student: torch.Tensor, teacher: torch.Tensor, share: float, context: StepContext, purpose: str
) -> torch.Tensor:
    """I^M: true where the teacher's features are taken, false where the student's are. No gradients pass through it.

    Args:
        kind: 'random' draws every element of every image by itself, true with probability `share`;
            'grid' is a chequerboard over the positions, true in the upper left one, alike in all channels;
            'cosine' is true at the `share` of an image's positions where the two are least alike, by the cosine of
            the two vectors of channels, alike in all channels;
            'cka' is true in the `share` of an image's channels where they are least alike, by `channel_cka`, alike at
            all positions.
        student: Z_S, (B, C, H, W).
        teacher: Z_T, of that shape.
        share: of the elements, how many come from the teacher, in [0, 1]; the grid does not ask.
        context: whose images' seeds the random mask derives from.
        purpose: what the random mask is drawn for; other purposes give others.

    Returns:
        Booleans (B, C, H, W), or with ones in place of axes along which all are alike.
    """
    height, width = student.shape[-2:]
    if kind == "grid":
        rows, columns = (torch.arange(side, device=student.device) for side in (height, width))
        return ((rows[:, None] + columns) % 2 == 0)[None, None]
    if kind == "cosine":
        likeness = F.cosine_similarity(at_least_float32(student), at_least_float32(teacher), dim=1)
        return lowest(likeness.flatten(1), share).view(-1, 1, height, width)
    if kind == "cka":
        return lowest(channel_cka(student, teacher), share)[..., None, None]
    mask = context.uniform(purpose, tuple(student.shape[1:])) < share
    # torch.where lays out its result as it finds the mask.
    in_channels_last = student.is_contiguous(memory_format=torch.channels_last)
    return mask.contiguous(memory_format=torch.channels_last) if in_channels_last else mask


def lowest(values: torch.Tensor, share: float) -> torch.Tensor:
    """True at the round(`share` N) smallest of the N `values` of each image, (B, N); of equals, at the first."""
    count = round(share * values.shape[1])
    order = values.argsort(dim=1, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, order[:, :count], True)


def channel_cka(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Linear centred kernel alignment of each channel of the student with that of the teacher, (B, C) in [0, 1].

    A channel (H, W) counts as H samples, its rows, of W features, so that an image's mask does not depend on its batch:
    ||X^T Y||^2 / (||X^T X|| ||Y^T Y||), Frobenius norms, X and Y centred over the rows. Zero where one is constant
    over the rows.
    """
    x, y = (at_least_float32(z) - at_least_float32(z).mean(-2, keepdim=True) for z in (student, teacher))
    shared, own, other = (
        torch.linalg.matrix_norm(left.transpose(-1, -2) @ right) for left, right in ((x, y), (x, x), (y, y))
    )
    return shared.square() / (own * other).clamp_min(torch.finfo(own.dtype).tiny)
