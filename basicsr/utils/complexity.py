"""Parameters and multiply-adds of a network, in the convention of the papers' tables: fvcore's `FlopCountAnalysis`.

It counts one for each multiply-add of convolutions, linear layers and matrix products without biases, 5 for each
element of an affine norm, 1 for each element averaged, 1 or 4 for each interpolated; nothing for anything else.

Convolutions that are trained as branches (`basicsr.utils.reparameterization`) count as they are shipped, merged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from basicsr.utils.errors import DataError
from basicsr.utils.reparameterization import Mergeable, merge


def count_parameters(network: nn.Module) -> int:
    """The number of parameters of `network` as it is shipped, trainable or not; buffers do not count."""
    branched = [module for module in network.modules() if isinstance(module, Mergeable) and not module.merged]
    inside = {id(parameter) for module in branched for parameter in module.parameters()}
    kernels = sum(module.out_channels * (module.in_channels * math.prod(module.kernel_size) + 1) for module in branched)
    return kernels + sum(parameter.numel() for parameter in network.parameters() if id(parameter) not in inside)


def count_multiply_adds(network: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """The multiply-adds that `network`, in eval mode and as it is shipped, spends on one image of shape (C, H, W).

    A copy runs on the meta device, so nothing is computed; raises DataError if it does not take the shape.
    """
    copied = on_meta(network)
    try:
        with torch.no_grad(), MultiplyAddCounter() as counter:
            copied(torch.zeros(1, *input_shape, device="meta"))
    except RuntimeError as error:
        shape, reason = "x".join(map(str, input_shape)), str(error).splitlines()[0]
        raise DataError(f"{type(network).__name__} does not take an input of {shape}: {reason}") from error
    return counter.total


def on_meta(network: nn.Module) -> nn.Module:
    """A copy of a network, in eval mode and merged, on the meta device, where tensors have shapes only."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in network.parameters()
    }
    return merge(copy.deepcopy(network, memo).to("meta").eval())


class MultiplyAddCounter(TorchDispatchMode):
    """Adds up the costs of the operators run under it on the meta device, with fewer of PyTorch's imports."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # hiding from torch.compile, which is not used here, would import it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = func.overloadpacket
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if operator in _ELEMENTWISE and {tensor.dtype for tensor in tensors} == {torch.float32}:
            return torch.empty(np.broadcast_shapes(*(tensor.shape for tensor in tensors)), device="meta")
        shape = _SHAPES[operator](*args) if operator in _SHAPES else None
        result = func(*args, **(kwargs or {})) if shape is None else args[0].new_empty(shape)
        if operator in _COSTS:
            self.total += _COSTS[operator](args, result)
        elif operator in flop_registry:
            # PyTorch's formulas for convolutions and matrix products count two for each multiply-add.
            self.total += flop_registry[operator](*args, **(kwargs or {}), out_val=result) // 2
        return result


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> tuple[int, ...] | None:
    stride, padding, dilation, transposed, _, groups = options
    if transposed or x.dim() != weight.dim() or x.shape[1] != groups * weight.shape[1]:
        return None
    if not len(stride) == len(padding) == len(dilation) == x.dim() - 2:  # one entry may stand for all sides
        return None
    sides = []
    for side, kernel, step, edge, gap in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True):
        sides.append((side + 2 * edge - gap * (kernel - 1) - 1) // step + 1)
    return (len(x), len(weight), *sides) if min(sides) > 0 else None


def _shuffled(x: Tensor, factor: int) -> tuple[int, ...] | None:
    if x.dim() != 4 or x.shape[1] % factor**2:
        return None
    batch, channels, height, width = x.shape
    return batch, channels // factor**2, height * factor, width * factor


def _norm(x: Tensor, weight: Tensor | None, training: bool = True) -> int:
    # With running statistics there is nothing to gather: one for the statistics, one for the affine part.
    return x.numel() * ((4 if training else 1) + (weight is not None))


_aten = torch.ops.aten
# On the meta device, the first call of these would import torch.compile or SymPy, for a second and 20 to 50 MiB.
_SHAPES: dict[Any, Callable[..., tuple[int, ...] | None]] = {
    _aten.convolution: _convolved,
    _aten.pixel_shuffle: _shuffled,
}
# They cost nothing here.
_ELEMENTWISE = {_aten.add, _aten.sub, _aten.mul, _aten.div, _aten.relu, _aten.leaky_relu, _aten.gelu, _aten.sigmoid}

_COSTS: dict[Any, Callable[[Any, Any], int]] = {
    _aten.native_layer_norm: lambda args, result: _norm(args[0], args[2]),
    _aten.native_group_norm: lambda args, result: _norm(args[0], args[1]),
    _aten.native_batch_norm: lambda args, result: _norm(args[0], args[1], training=args[5]),
    _aten.mean: lambda args, result: args[0].numel(),
    _aten._adaptive_avg_pool2d: lambda args, result: args[0].numel(),
    _aten.upsample_nearest2d: lambda args, result: result.numel(),
    _aten.upsample_bilinear2d: lambda args, result: 4 * result.numel(),
    _aten.grid_sampler_2d: lambda args, result: 4 * result.numel(),
}
