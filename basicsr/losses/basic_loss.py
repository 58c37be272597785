"""Losses on pixels and on the features of a VGG network, and what losses share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs.arch_util import Frozen, check_images_for
from basicsr.archs.vgg_arch import VGGFeatureExtractor, layer_problems
from basicsr.utils.errors import AssertedDataError, OptionsError
from basicsr.utils.precision import at_least_float32
from basicsr.utils.ranges import Small, Weight
from basicsr.utils.registry import LOSS_REGISTRY, Conflict, Problem, check_arguments

Reduction = Literal["none", "mean", "sum"]
Criterion = Literal["l1", "l2", "fro"]
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


def reduce_loss(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """The element-wise loss itself ('none'), its mean or its sum; OptionsError for another `reduction`."""
    if reduction not in get_args(Reduction):
        raise OptionsError(f"reduction is '{reduction}'; allowed: {', '.join(get_args(Reduction))}")
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


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """G = F F^T / (C H W) for features F, (B, C, H, W) seen as (B, C, H W); returns (B, C, C)."""
    _, channels, height, width = features.shape
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / (channels * height * width)


_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "fro": lambda first, second: torch.linalg.vector_norm(first - second),
}


@LOSS_REGISTRY.register()
class PerceptualLoss(nn.Module):
    """Distances between the VGG features of two images, and between the features' Gram matrices.

      perceptual = perceptual_weight * sum_k w_k d(f_k(x), f_k(gt))
      style = style_weight * sum_k w_k d(G(f_k(x)), G(f_k(gt)))

    with f_k the features of layer k, G their Gram matrix, and d the mean absolute difference ('l1'), the mean
    squared one ('l2') or the Frobenius norm of the difference over the whole batch ('fro'). Johnson et al.,
    "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016. The VGG is `Frozen`.

    Args:
        layer_weights: w_k by layer, such as {'conv5_4': 1.0} for the features before relu5_4.
        vgg_type: 'vgg11', 'vgg13', 'vgg16', 'vgg19', or one of these with '_bn'.
        use_input_norm: normalise with ImageNet's mean and deviation; images must be RGB in [0, 1].
        range_norm: bring images from [-1, 1] to [0, 1] first.
        perceptual_weight: factor of the perceptual part; 0 leaves it out.
        style_weight: factor of the style part; 0 leaves it out.
        criterion: 'l1', 'l2' or 'fro'.
        vgg_weights: see `VGGFeatureExtractor`.
    """

    @staticmethod
    def batch_scope(options: Mapping[str, Any]) -> BatchScope:
        """A Frobenius norm is taken over the whole batch."""
        return "one rank" if options.get("criterion") == "fro" else "image"

    def __init__(
        self,
        *,
        layer_weights: Mapping[str, Weight],
        vgg_type: str = "vgg19",
        use_input_norm: bool = True,
        range_norm: bool = False,
        perceptual_weight: Weight = 1.0,
        style_weight: Weight = 0.0,
        criterion: Criterion = "l1",
        vgg_weights: str | None = None,
    ) -> None:
        check_arguments(PerceptualLoss, locals())
        super().__init__()
        self.layer_weights = dict(layer_weights)
        self.perceptual_weight = perceptual_weight
        self.style_weight = style_weight
        self._distance = _DISTANCES[criterion]
        self._frozen = Frozen(
            VGGFeatureExtractor(
                layer_name_list=list(layer_weights),
                vgg_type=vgg_type,
                use_input_norm=use_input_norm,
                range_norm=range_norm,
                vgg_weights=vgg_weights,
            )
        )

    @staticmethod
    def conflicts(layer_weights: Mapping[str, float], vgg_type: str) -> Iterator[Conflict | Problem]:
        """See `basicsr.utils.registry.find_problems`."""
        yield from layer_problems(layer_weights, vgg_type)
        if not any(layer_weights.values()):
            yield "layer_weights", "names no layer with a weight above 0, such as {conv5_4: 1.0}"

    @property
    def vgg(self) -> VGGFeatureExtractor:
        """The frozen feature extractor."""
        return self._frozen.network

    def check_output(self, shape: Sequence[int]) -> None:
        """Raises OptionsError where images (C, H, W) are neither gray nor RGB, or too small for the deepest layer."""
        halvings = sum(isinstance(layer, nn.MaxPool2d) for layer in self.vgg.vgg_net)
        check_images_for("PerceptualLoss", "VGG", shape, 2**halvings)

    def forward(self, x: torch.Tensor, gt: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The perceptual and the style part, None for one whose weight is 0; no gradients flow to `gt`.

        `x` and `gt` are (B, 3, H, W) RGB, or (B, 1, H, W) gray, in [0, 1] ([-1, 1] with `range_norm`).
        """
        if not (self.perceptual_weight > 0 or self.style_weight > 0):
            return None, None
        features = {name: at_least_float32(value) for name, value in self.vgg(x).items()}
        with torch.no_grad():
            targets = {name: at_least_float32(value) for name, value in self.vgg(gt).items()}
        perceptual = style = None
        # Gram matrices are large sums: autocast would compute them in a short format.
        with torch.autocast(x.device.type, enabled=False):
            if self.perceptual_weight > 0:
                perceptual = self.perceptual_weight * self._total(features, targets)
            if self.style_weight > 0:
                grams = {name: gram_matrix(value) for name, value in features.items()}
                target_grams = {name: gram_matrix(value) for name, value in targets.items()}
                style = self.style_weight * self._total(grams, target_grams)
        return perceptual, style

    def _total(self, features: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> torch.Tensor:
        distances = [self.layer_weights[name] * self._distance(features[name], targets[name]) for name in features]
        return torch.stack(distances).sum()
