"""What losses share: reduction, element-wise weights, precision."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch

from basicsr.utils.errors import AssertedDataError, OptionsError
from basicsr.utils.registry import Conflict

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


def scope_of_reduction(options: Mapping[str, Any]) -> BatchScope:
    """The scope of a reduction over the batch: ranks average gradients, so a sum depends on the number of ranks."""
    return "image" if options.get("reduction", "mean") == "mean" else "one rank"


def check_choice(what: str, given: str, allowed: tuple[str, ...]) -> None:
    """Raises OptionsError unless `given` is one of `allowed`; `what` is the option's name."""
    if given not in allowed:
        raise OptionsError(f"{what} is '{given}'; allowed: {', '.join(allowed)}")


def idle_conflicts(loss: type, beside: str, given: Mapping[str, object]) -> Iterator[Conflict]:
    """The options `given` that differ from their defaults without effect (`beside` others: 'zoom_out: false')."""
    defaults = inspect.signature(loss).parameters
    for name, value in given.items():
        if value != defaults[name].default:
            yield name, f"is {value}, without effect beside {beside}; leave {name} out"


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 if it is in a shorter format, else as it is: long sums need the digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_images_for(method: str, network: str, shape: Sequence[int], least: int) -> None:
    """Raises OptionsError unless images (C, H, W) are gray or RGB and `least` pixels a side, for a method's network."""
    channels, *size = shape
    if channels not in (1, 3) or min(size) < least:
        raise OptionsError(
            f"{method}: the {network} needs gray or colour images of {least}x{least} at least, the output has"
            f" {channels} channels and {size[0]}x{size[1]} pixels; raise gt_size or leave the method out"
        )


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
