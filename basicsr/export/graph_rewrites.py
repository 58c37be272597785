"""Rewrites of traced graphs that leave outputs as they are: pixel shuffles and integers in the forms of targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor
from torch.fx import GraphModule, Node

_ATEN, _QUANTIZED = torch.ops.aten, torch.ops.quantized_decomposed
_QUANTIZE, _DEQUANTIZE = _QUANTIZED.quantize_per_tensor.default, _QUANTIZED.dequantize_per_tensor.default
_WEIGHT = _QUANTIZED.dequantize_per_channel.default
_SHUFFLE = _ATEN.pixel_shuffle.default
# What treats all channels alike, so that their order may be changed before it or after it.
_BY_VALUE = {
    *(_QUANTIZE, _DEQUANTIZE, _ATEN.relu.default, _ATEN.relu_.default, _ATEN.clamp.default),
    *(_ATEN.leaky_relu.default, _ATEN.leaky_relu_.default, _ATEN.gelu.default, _ATEN.silu.default),
}


def quantize_before_shuffles(module: GraphModule) -> None:
    """Rounds the values that a pixel shuffle moves before it too, not only after: so that integers are moved."""
    for node in _nodes(module, _SHUFFLE):
        users = list(node.users)
        if users and all(user.target == _QUANTIZE and user.args[1:] == users[0].args[1:] for user in users):
            settings = users[0].args[1:]
            value = _before(node)
            with module.graph.inserting_before(node):
                integers = module.graph.call_function(_QUANTIZE, (value, *settings))
                node.replace_input_with(value, module.graph.call_function(_DEQUANTIZE, (integers, *settings)))


def own_dequantize_for_each_user(module: GraphModule) -> None:
    """Copies what makes values of integers for each of its users, so that it can be merged with any."""
    for target in (_DEQUANTIZE, _WEIGHT):
        for node in _nodes(module, target):
            for user in list(node.users)[1:]:
                with module.graph.inserting_before(user):
                    user.replace_input_with(node, module.graph.call_function(target, node.args))


def weights_as_values(module: GraphModule) -> None:
    """Writes integer weights as the values that they stand for, which are rounded to the same integers again."""
    for node in _nodes(module, _WEIGHT):
        stored, axis = _before(node), _arguments(node)[3]
        integers, scales, zeros = (_constant(module, argument) for argument in _arguments(node)[:3])
        shape = [-1 if place == axis else 1 for place in range(integers.ndim)]
        values = (integers.float() - zeros.reshape(shape)) * scales.float().reshape(shape)
        kept = _add_constant(module, node, values)
        with module.graph.inserting_before(node):
            rounded = module.graph.call_function(_QUANTIZED.quantize_per_channel.default, (kept, *_arguments(node)[1:]))
        node.replace_input_with(stored, rounded)


def repeats_as_concatenations(module: GraphModule) -> None:
    """Writes channels that are repeated as a concatenation."""
    for node in _nodes(module, _ATEN.repeat.default):
        value, repeats = _arguments(node)
        if len(repeats) == 4 and repeats[0] == repeats[2] == repeats[3] == 1:
            _replace(module, node, _ATEN.cat.default, ([value] * repeats[1], 1))


def replace_enlargements(module: GraphModule, replacement: Callable[[Tensor, int], Tensor]) -> None:
    """Puts `replacement` in the place of enlargements that repeat pixels, of a whole factor."""
    for node in _nodes(module, _ATEN.upsample_nearest2d.vec):
        value, _, factors = _arguments(node)
        if factors is not None and factors[0] == factors[1] == int(factors[0]):
            _replace(module, node, replacement, (value, int(factors[0])))


def replace_prelus(module: GraphModule, replacement: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Puts `replacement` in the place of PReLUs of images; it takes the slopes as (1, 1, C)."""
    for node in _nodes(module, _ATEN.prelu.default):
        if node.meta["val"].ndim == 4:
            value, slopes = _arguments(node)
            kept = _constant(module, slopes).expand(node.meta["val"].shape[1])
            slopes = _add_constant(module, node, kept.reshape(1, 1, -1).clone())
            _replace(module, node, replacement, (value, slopes))


def replace_shuffles(module: GraphModule, replacement: Callable[[Tensor, int], Tensor]) -> None:
    """Puts `replacement` in the place of pixel shuffles: of a factor r, from channels in another order.

    Channel c of the output at a place of the r x r comes from channel c r r + place in PyTorch, here from
    place C + c. So the convolution before gives them in that order, or what it gives is put in order.
    """
    for node in _nodes(module, _SHUFFLE):
        value, factor = _arguments(node)
        channels = node.meta["val"].shape[1]
        order = torch.arange(channels * factor**2).reshape(channels, -1).t().flatten()
        if not _reordered(module, value, order):
            index = _add_constant(module, node, order)
            with module.graph.inserting_before(node):
                value = module.graph.call_function(_ATEN.index_select.default, (value, 1, index))
        _replace(module, node, replacement, (value, factor))


def _reordered(module: GraphModule, value: Node, order: Tensor) -> bool:
    """Puts the output channels of the convolution that `value` is made of in another order, if only `value` is."""
    while len(value.users) == 1 and value.target in _BY_VALUE:
        value = _before(value)
    is_convolution = value.target in (_ATEN.conv2d.default, _ATEN.conv2d.padding)
    if len(value.users) != 1 or not is_convolution or _arguments(value)[6:] not in ((), (1,)):
        return False
    weight, bias = (*_arguments(value)[1:], None)[:2]
    parts: Sequence[Node] = _arguments(weight)[:3] if weight.target == _WEIGHT else [weight]
    if any(part.op != "get_attr" for part in (*parts, *([bias] if bias is not None else []))):
        return False
    moved = [_add_constant(module, value, _constant(module, part)[order]) for part in parts]
    if weight.target == _WEIGHT:
        with module.graph.inserting_before(value):
            moved = [module.graph.call_function(_WEIGHT, (*moved, *_arguments(weight)[3:]))]
    if bias is not None:
        moved.append(_add_constant(module, value, _constant(module, bias)[order]))
    value.args = (value.args[0], *moved, *value.args[1 + len(moved) :])
    return True


def finished(module: GraphModule) -> GraphModule:
    """The module without what nothing uses, ready to run."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def _nodes(module: GraphModule, target: Any) -> list[Node]:
    return [node for node in module.graph.nodes if node.target == target]


def _arguments(node: Node) -> tuple[Any, ...]:
    return node.args


def _before(node: Node) -> Node:
    """The first argument."""
    return _arguments(node)[0]


def _replace(module: GraphModule, node: Node, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with module.graph.inserting_before(node):
        new = module.graph.call_function(target, arguments)
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _constant(module: GraphModule, node: Node) -> Tensor:
    """The value of a `get_attr` node."""
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value.detach()


def _add_constant(module: GraphModule, before: Node, value: Tensor) -> Node:
    """A new constant, for a node."""
    number = sum(name.startswith("rewritten_") for name, _ in module.named_buffers())
    module.register_buffer(f"rewritten_{number}", value)
    with module.graph.inserting_before(before):
        return module.graph.get_attr(f"rewritten_{number}")
