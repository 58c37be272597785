"""Losses on pixels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from basicsr.losses.loss_util import Reduction, at_least_float32, scope_of_reduction, weighted_loss
from basicsr.utils.ranges import Small, Weight
from basicsr.utils.registry import LOSS_REGISTRY, check_arguments


@weighted_loss
def l1_loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """|pred - target|, for tensors of one shape such as (B, C, H, W)."""
    return (at_least_float32(pred) - at_least_float32(target)).abs()


@weighted_loss
def mse_loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(pred - target)^2, for tensors of one shape such as (B, C, H, W)."""
    return (at_least_float32(pred) - at_least_float32(target)).square()


@weighted_loss
def charbonnier_loss(pred: torch.Tensor, target: torch.Tensor, eps: float = 1e-12) -> torch.Tensor:
    """sqrt((pred - target)^2 + eps), for tensors of one shape such as (B, C, H, W)."""
    return ((at_least_float32(pred) - at_least_float32(target)).square() + eps).sqrt()


def weighted_tv_loss(pred: torch.Tensor, weight: torch.Tensor | None = None, reduction: str = "mean") -> torch.Tensor:
    """Anisotropic total variation: |x[i+1, j] - x[i, j]| and |x[i, j+1] - x[i, j]|, each reduced, then added.

    `pred` is (B, C, H, W), H and W at least 2. A difference has the weight (B, C or 1, H, W) of its upper or left
    pixel.
    """
    upper_weight = None if weight is None else weight[:, :, :-1, :]
    left_weight = None if weight is None else weight[:, :, :, :-1]
    vertical = l1_loss(pred[:, :, :-1, :], pred[:, :, 1:, :], upper_weight, reduction)
    horizontal = l1_loss(pred[:, :, :, :-1], pred[:, :, :, 1:], left_weight, reduction)
    return vertical + horizontal


class _PixelLoss(nn.Module):
    """`loss_weight` times an element-wise loss, reduced.

    Args:
        loss_weight: factor of the result.
        reduction: 'mean', 'sum' or 'none'.
    """

    batch_scope = staticmethod(scope_of_reduction)

    def __init__(self, *, loss_weight: Weight = 1.0, reduction: Reduction = "mean") -> None:
        check_arguments(type(self), locals())
        super().__init__()
        self.loss_weight, self.reduction = loss_weight, reduction

    def forward(self, pred: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """For `pred` and `target` (B, C, H, W) and element-wise weights (B, C or 1, H, W)."""
        return self.loss_weight * self._pixels(pred, target, weight, reduction=self.reduction)

    def _pixels(self, *images: Any, reduction: str) -> torch.Tensor:
        raise NotImplementedError


@LOSS_REGISTRY.register()
class L1Loss(_PixelLoss):
    """Mean absolute error: `loss_weight` * mean |pred - target|."""

    _pixels = staticmethod(l1_loss)


@LOSS_REGISTRY.register()
class MSELoss(_PixelLoss):
    """Mean squared error: `loss_weight` * mean (pred - target)^2."""

    _pixels = staticmethod(mse_loss)


@LOSS_REGISTRY.register()
class CharbonnierLoss(_PixelLoss):
    """A smooth L1: `loss_weight` * mean sqrt((pred - target)^2 + eps).

    Lai et al., "Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution", CVPR 2017; `eps` is
    the square of the paper's epsilon, as in BasicSR.

    Args:
        eps: positive; the loss bends where |pred - target| is about sqrt(eps).
    """

    def __init__(self, *, loss_weight: Weight = 1.0, reduction: Reduction = "mean", eps: Small = 1e-12) -> None:
        check_arguments(CharbonnierLoss, locals())
        super().__init__(loss_weight=loss_weight, reduction=reduction)
        self.eps = eps

    def _pixels(self, *images: Any, reduction: str) -> torch.Tensor:
        return charbonnier_loss(*images, reduction=reduction, eps=self.eps)


@LOSS_REGISTRY.register()
class WeightedTVLoss(nn.Module):
    """Total variation of the prediction alone: `loss_weight` * `weighted_tv_loss`.

    Args:
        loss_weight: factor of the result.
        reduction: 'mean' or 'sum'.
    """

    batch_scope = staticmethod(scope_of_reduction)

    def __init__(self, *, loss_weight: Weight = 1.0, reduction: Literal["mean", "sum"] = "mean") -> None:
        check_arguments(WeightedTVLoss, locals())
        super().__init__()
        self.loss_weight, self.reduction = loss_weight, reduction

    def forward(self, pred: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """For `pred` (B, C, H, W) and weights of its pixels (B, C or 1, H, W)."""
        return self.loss_weight * weighted_tv_loss(pred, weight, self.reduction)


def __getattr__(name: str) -> Any:
    """BasicSR has its perceptual loss here."""
    if name != "PerceptualLoss":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from basicsr.losses.perceptual_loss import PerceptualLoss

    return PerceptualLoss
