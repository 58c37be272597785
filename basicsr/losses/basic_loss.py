"""Losses on pixels, and what all losses share: reduction, element-wise weights, which images a loss compares."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from basicsr.utils.errors import AssertedDataError, OptionsError
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Small, Weight
from basicsr.utils.registry import LOSS_REGISTRY, check_arguments

Reduction = Literal["none", "mean", "sum"]
BatchScope = Literal["image", "all ranks", "one rank"]
"""Which images a loss compares: each image only with its own target, images of all ranks, or images of one rank.

'image': the loss of a batch is the mean of its images' losses. 'all ranks': the iteration's images may be divided among
ranks in any way. 'one rank': the loss depends on which images come to a rank together.
"""


def batch_scope_of(component: object, options: Mapping[str, Any]) -> BatchScope:
    """The `batch_scope` that a registered loss or method declares, or derives from its options; else the strictest."""
    classes = getattr(component, "__mro__", ())
    newest = next((kind for kind in classes if {"batch_scope", "forward"} & set(vars(kind))), None)
    if newest is not None and "batch_scope" not in vars(newest):
        return "one rank"  # a derived class computes something else than what its base declares
    declared: Any = getattr(component, "batch_scope", "one rank")
    scope: BatchScope = declared(options) if callable(declared) else declared
    return scope


def _scope_of_reduction(options: Mapping[str, Any]) -> BatchScope:
    """Ranks average gradients, so a sum depends on the number of ranks."""
    return "image" if options.get("reduction", "mean") == "mean" else "one rank"


def check_choice(what: str, given: str, allowed: tuple[str, ...]) -> None:
    """Raises OptionsError unless `given` is one of `allowed`; `what` is the option's name."""
    if given not in allowed:
        raise OptionsError(f"{what} is '{given}'; allowed: {', '.join(allowed)}")


def reduce_loss(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """The element-wise loss itself ('none'), its mean or its sum; OptionsError for another `reduction`."""
    check_choice("reduction", reduction, get_args(Reduction))
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def weight_reduce_loss(loss: torch.Tensor, weight: torch.Tensor | None = None, reduction: str = "mean") -> torch.Tensor:
    """Weights a loss (B, C, H, W) element by element, then reduces it; 'mean' is sum_i w_i l_i / sum_i w_i.

    Each axis of `weight` is as long as the loss's or 1, else AssertedDataError; None: every element counts alike.
    """
    if weight is None:
        return reduce_loss(loss, reduction)
    if weight.dim() != loss.dim() or any(w not in (1, n) for w, n in zip(weight.shape, loss.shape, strict=True)):
        raise AssertedDataError(
            f"weight has shape {tuple(weight.shape)}, the loss {tuple(loss.shape)}:"
            " each dimension of the weight must agree or be 1"
        )
    if reduction == "mean":
        return (loss * weight).sum() / weight.expand_as(loss).sum()
    return reduce_loss(loss * weight, reduction)


def weighted_loss(loss_func: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Adds weight and reduction to `loss_func(pred, target, **kwargs)`, which returns the element-wise loss.

    The result is called as `(pred, target, weight=None, reduction='mean', **kwargs)`, see `weight_reduce_loss`, and
    raises ValueError if the shapes of `pred` and `target` differ.
    """

    @functools.wraps(loss_func)
    def wrapper(
        pred: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
        reduction: str = "mean",
        **kwargs: Any,
    ) -> torch.Tensor:
        # Broadcasting would quietly compare a grey image with each channel of a colour image.
        if pred.shape != target.shape:
            raise ValueError(f"pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}: they must agree")
        return weight_reduce_loss(loss_func(pred, target, **kwargs), weight, reduction)

    return wrapper


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

    batch_scope = staticmethod(_scope_of_reduction)

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

    batch_scope = staticmethod(_scope_of_reduction)

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
