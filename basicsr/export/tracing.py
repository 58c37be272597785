"""Graphs of networks for images of any size, in float32 or with their inside in fp16."""

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

from basicsr.utils.errors import CheckpointError
from basicsr.utils.text import first_line

Precision = Literal["float32", "fp16"]


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


def traceable(network: nn.Module, precision: Precision) -> Named:
    """A copy of `network` that can be traced for any size; input and output are float32 in both precisions."""
    network = copy.deepcopy(network).eval().requires_grad_(False)
    if precision == "fp16":
        _halve_inside(network)
    return AnySize(network) if _multiple_inside(network) > 1 else Named(network)


def _halve_inside(network: nn.Module) -> None:
    """Halves all but the first and last convolution and the scaling around them: 11 bits are too few for an image."""
    convolutions = [module for module in network.modules() if type(module) is nn.Conv2d]
    if len(convolutions) < 2:
        raise CheckpointError(f"{type(network).__name__} has no two convolutions: export it in float32")
    network.half()
    # These two compute in float32 on the rounded weights: fp16 weights here would only save a few bytes.
    convolutions[0].float().register_forward_hook(lambda module, inputs, output: output.half())
    convolutions[-1].float().register_forward_pre_hook(lambda module, inputs: inputs[0].float())
    for module in network.modules():
        if getattr(module, "computes_in_float32", False):
            module.register_forward_hook(lambda module, inputs, output: output.half())
    mean = getattr(network, "mean", None)
    if isinstance(mean, Tensor):
        network.mean = mean.float()


def smallest_side(network: nn.Module) -> int:
    """Smallest side that a torch.export program takes: one window alone is laid out differently. ONNX takes any."""
    multiple = _multiple_inside(network)
    return multiple + 1 if multiple > 1 else 1


def trace(network: Named, channels: int) -> ExportedProgram:
    """The program of a `traceable` network for any batch, height and width; raises CheckpointError if that fails."""
    # Different sizes, each more than one window and no multiple of it.
    smallest = smallest_side(network.network)
    example = torch.zeros(2, channels, max(23, smallest + 2), max(29, smallest + 8))
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever PyTorch raises on a network unlike ours
        raise CheckpointError(f"torch.export cannot trace this network ({first_line(error)})") from error


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
