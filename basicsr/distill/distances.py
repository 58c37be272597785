"""Distances between features that ask for next to no memory, however many features are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch.autograd.function import once_differentiable

from basicsr.losses.loss_util import at_least_float32

MOST_OTHERS = 127
"""To how many others the distances may be summed: so far does an int8 count."""
Others = Annotated[int, Ge(1), Le(MOST_OTHERS)]


def summed_distances(features: Sequence[torch.Tensor], others: Iterable[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """At each layer i, sum over j of mean |f_i - o_ij|, the mean over one image's channels and positions.

    The gradient with regard to f_i is the sum of the differences' signs, which is counted on the way, a byte for each
    element. So `others` are needed one by one, may come from a generator, and none of them is kept. They get no
    gradients.

    Args:
        features: f, of each layer, (B, C, H, W).
        others: o_j, up to `MOST_OTHERS`; each of every layer, (B, C, H, W), or (C, H, W) to compare all images with.

    Returns:
        For each layer (B,), at least float32.
    """
    totals = [at_least_float32(feature.new_zeros(len(feature))) for feature in features]
    signs = [torch.zeros_like(feature, dtype=torch.int8) for feature in features]
    with torch.no_grad():
        for other in others:
            for layer in zip(features, other, totals, signs, strict=True):
                _add(*layer)
            del other, layer  # before the next is made
    return [_Summed.apply(*layer) for layer in zip(features, totals, signs, strict=True)]


def _add(feature: torch.Tensor, other: torch.Tensor, total: torch.Tensor, signs: torch.Tensor) -> None:
    difference = at_least_float32(feature) - at_least_float32(other)
    signs += difference.sign().to(torch.int8)
    total += difference.abs_().flatten(1).mean(1)


class _Summed(torch.autograd.Function):
    """The total as it is; its gradient is that of the mean absolute differences whose signs were summed."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, total: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(signs)
        ctx.dtype = features.dtype
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (signs,) = ctx.saved_tensors
        each = gradient / signs[0].numel()
        return (signs * each.view(-1, 1, 1, 1)).to(ctx.dtype), None, None
