"""Graphs of networks for images of any size, or of one, in float32 or with their inside in fp16."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from basicsr.quantization.lowering import LoweredForm, lower
from basicsr.utils.errors import CheckpointError
from basicsr.utils.reparameterization import computes_as_usual, convolutions, merge
from basicsr.utils.text import first_line
from basicsr.weights.spandrel_networks import SpandrelNetwork

Precision = Literal["float32", "fp16", "int8"]


class Named(nn.Module):
    """A network whose weights' names have two words in a graph: ONNX's exporter calls results `mean`, as our buffer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Returns the network's output."""
        return self.network(x)


class AnySize(Named):
    """A network that pads images to multiples as one graph for all sizes with equal outputs; it changes `network`.

    The padding's loop becomes an index, and SwinIR's masks, kept for one size, are always computed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.multiple = _multiple_inside(network)
        self.scale = int(getattr(network, "scale", 1))
        if hasattr(network, "resolution"):
            cast(Any, network).resolution = (0, 0)  # no image has this size, so no mask is taken from the buffers
            for module in network.modules():
                if isinstance(getattr(module, "attn_mask", None), Tensor):
                    module.register_buffer("attn_mask", None)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) in [0, 1] to (B, C, sH, sW)."""
        height, width = x.shape[-2:]
        x = x.index_select(2, _mirrored(height, self.multiple, x.device))
        y = self.network(x.index_select(3, _mirrored(width, self.multiple, x.device)))
        # Slices would ask whether they reach beyond the end, which has no answer for all sizes at once.
        rows = torch.arange(height * self.scale, device=x.device)
        return y.index_select(2, rows).index_select(3, torch.arange(width * self.scale, device=x.device))


class AnySizeOfSpandrels(Named):
    """A network of spandrel's as one graph for images of at least the smallest size that it takes."""

    network: SpandrelNetwork

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) in [0, 1] to (B, C, sH, sW), clipped to [0, 1]."""
        height, width = x.shape[-2:]
        multiple, scale = self.network.sizes.multiple_of, self.network.scale
        if multiple > 1:
            x = x.index_select(2, _mirrored_once(height, multiple, x.device))
            x = x.index_select(3, _mirrored_once(width, multiple, x.device))
        y = self.network.run_extended(x)
        if multiple > 1:
            y = y.index_select(2, torch.arange(height * scale, device=x.device))
            y = y.index_select(3, torch.arange(width * scale, device=x.device))
        return y.clamp(0, 1)


def _mirrored_once(length: int, multiple: int, device: torch.device) -> Tensor:
    """As `_mirrored`, for spandrel, which repeats the last pixel beyond the first reflection."""
    position = torch.arange((length + multiple - 1) // multiple * multiple, device=device)
    return torch.minimum(position, (2 * length - 2 - position).clamp(min=0))


def _multiple_inside(network: nn.Module) -> int:
    """What `network` pads heights and widths to multiples of."""
    return int(getattr(network, "padder_size", 1))


def _mirrored(length: int, multiple: int, device: torch.device) -> Tensor:
    """Which pixels make `length` of them a multiple: 0 1 2 1 0 1 2..., as `pad_to_multiple` pads."""
    position = torch.arange((length + multiple - 1) // multiple * multiple, device=device)
    # A tensor, since ONNX's exporter knows no remainder by a size.
    period = torch.full((1,), 2 * length - 2, device=device).clamp(min=1)
    position = torch.remainder(position, period)
    return torch.minimum(position, period - position)


def traceable(
    network: nn.Module, precision: Precision, *, any_size: bool = True, form: LoweredForm | None = None
) -> Named:
    """A copy of `network` that can be traced, for any size or one; its input and output are float32.

    In int8 the network is one with fake quantisation, which becomes integers of this `form`.
    """
    network = merge(copy.deepcopy(network).eval().requires_grad_(False))
    if precision == "int8":
        lower(network, form or LoweredForm())
    if precision == "fp16":
        _halve_inside(network)
    if any_size and isinstance(network, SpandrelNetwork):
        return AnySizeOfSpandrels(network)
    return AnySize(network) if any_size and _multiple_inside(network) > 1 else Named(network)


def _halve_inside(network: nn.Module) -> None:
    """Halves all but the first and last convolution and the scaling around them: 11 bits are too few for an image."""
    whole = [module for _, module in convolutions(network) if computes_as_usual(module)]
    if len(whole) < 2:
        raise CheckpointError(f"{type(network).__name__} has no two convolutions: export it in float32")
    network.half()
    # These two compute in float32 on the rounded weights: fp16 weights here would only save a few bytes.
    whole[0].float().register_forward_hook(lambda module, inputs, output: output.half())
    whole[-1].float().register_forward_pre_hook(lambda module, inputs: inputs[0].float())
    for module in network.modules():
        if getattr(module, "computes_in_float32", False):
            module.register_forward_hook(lambda module, inputs, output: output.half())
    mean = getattr(network, "mean", None)
    if isinstance(mean, Tensor):
        network.mean = mean.float()


def smallest_side(network: nn.Module) -> int:
    """Smallest side that a torch.export program takes: one window alone is laid out differently. ONNX takes any.

    Modules that need more say so by `smallest_traced_side`.
    """
    if isinstance(network, SpandrelNetwork):
        window = max(largest_window(network.model), network.sizes.multiple_of)
        return max(network.sizes.minimum, window + 1 if window > 1 else 1)
    multiple = _multiple_inside(network)
    own = max((int(getattr(module, "smallest_traced_side", 1)) for module in network.modules()), default=1)
    return max(own, multiple + 1 if multiple > 1 else 1)


def largest_window(model: nn.Module) -> int:
    """The longest side of the windows that any part of a network names."""
    sides = [1]
    for module in model.modules():
        for name in ("window_size", "win_size", "split_size", "stripe_size"):
            value = getattr(module, name, 1)
            sides += [
                side for side in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(side, int)
            ]
    return max(sides)


def trace(network: Named, channels: int) -> ExportedProgram:
    """The program of a `traceable` network for any height and width; raises CheckpointError if that fails.

    Any number of images, but one at a time where spandrel's code allows no other.
    """
    # Different sizes, each more than one window and no multiple of it.
    smallest = smallest_side(network.network)
    is_spandrels = isinstance(network.network, SpandrelNetwork)
    size = max(23, smallest + 2), max(29, smallest + 8)
    if is_spandrels:
        size = max(35, 2 * smallest + 3), max(53, 3 * smallest + 5)
        if network.network.sizes.square:
            raise _untraceable(network, "it takes square images only")
    free = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        return _program(network, (2, channels, *size), {0: Dim.DYNAMIC, **free})
    except Exception as error:  # whatever PyTorch raises on a network unlike ours
        if not is_spandrels:
            raise _untraceable(network, first_line(error)) from error
    try:
        return _program(network, (1, channels, *size), free)
    except Exception as error:
        raise _untraceable(network, first_line(error)) from error


def trace_at(network: Named, shape: tuple[int, int, int]) -> ExportedProgram:
    """The program of a `traceable` network for one image of `shape` (C, H, W); raises CheckpointError if it fails."""
    try:
        return _program(network, (1, *shape), {})
    except Exception as error:  # whatever PyTorch raises on a network unlike ours
        raise CheckpointError(
            f"{_name(network)} cannot be traced ({first_line(error)}); give --formats safetensors"
        ) from error


def _program(network: Named, shape: tuple[int, ...], free: dict[int, Any]) -> ExportedProgram:
    with torch.no_grad(), quiet():
        return torch.export.export(network, (torch.zeros(shape),), dynamic_shapes=(free or None,), strict=False)


def _untraceable(network: Named, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{_name(network)} cannot be traced for images of any size ({reason}); give --size H W for a graph of one size,"
        " or --formats safetensors"
    )


def _name(network: Named) -> str:
    inner = network.network
    return inner.architecture if isinstance(inner, SpandrelNetwork) else type(inner).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Hides warnings and logs of the libraries."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
