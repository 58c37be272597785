"""From fake quantisation to integers: networks whose graphs runtimes read, with weights stored as int8.

    lower(network, LoweredForm("uint8"))  # a merged copy, in place
    program = simplify(torch.export.export(network, ...))

Activations go through pairs of `quantized_decomposed.quantize_per_tensor` and `dequantize_per_tensor`, weights through
`dequantize_per_channel`: PyTorch's own representation (PT2E), which the exporters to ONNX, LiteRT and ExecuTorch know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.nn import functional as F

from basicsr.quantization.graph import TracedGraph
from basicsr.quantization.layers import QuantLayer
from basicsr.quantization.quantizers import ActivationQuantizer, ImageQuantizer, largest_weight, weight_scales
from basicsr.utils.errors import CheckpointError

_OPERATORS = torch.ops.quantized_decomposed
_QUANTIZE, _DEQUANTIZE = _OPERATORS.quantize_per_tensor.default, _OPERATORS.dequantize_per_tensor.default
_LARGEST_BIAS = 2**30
_HALF = 128


@dataclass(frozen=True)
class LoweredForm:
    """What a runtime wants.

    Attributes:
        activations: type of 8-bit activations: 'uint8' from 0 to 255, or 'int8' from -128 to 127; the values are the
            same. 16-bit ones are int16.
        int32_bias: store biases as int32, with the scale of the input times that of the weight; else in float32.
    """

    activations: Literal["int8", "uint8"] = "int8"
    int32_bias: bool = False


@dataclass(frozen=True)
class _Grid:
    """The integers of a tensor, as the operators take them."""

    scale: float
    zero_point: int
    smallest: int
    largest: int
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        parameters = self.scale, self.zero_point, self.smallest, self.largest, self.dtype
        return _DEQUANTIZE(_QUANTIZE(x, *parameters), *parameters)


class LoweredLayer(nn.Module):
    """A quantised layer as integers: int8 weights (`weight`) and their steps (`scales`), no float weights."""

    bias: Tensor | None

    def __init__(self, name: str, layer: QuantLayer, form: LoweredForm) -> None:
        super().__init__()
        self.layer = (layer,)  # no submodule: its float weights stay out of the graph
        self.has_colour, made = layer.plan.has_colour, layer.output_quantizer
        self.given = _grid(f"{name}.input_quantizer", layer.input_quantizer, form)
        self.made = None if made is None else _grid(f"{name}.output_quantizer", made, form)
        self.to_image, self.from_image = _Steps(layer.input_quantizer), _Steps(made)
        with torch.no_grad():
            weight, bias = layer.operands()
            scales, most = weight_scales(weight, layer.weight_bits), largest_weight(layer.weight_bits)
            self.int32_bias = form.int32_bias and bias is not None
            if self.int32_bias:  # of a channel without weights any scale will do
                scales = torch.maximum(scales, cast(Tensor, bias).abs() / (self.given.scale * _LARGEST_BIAS))
                bias_scales = scales * self.given.scale
                self.register_buffer("bias_scales", bias_scales)
                bias = (cast(Tensor, bias) / bias_scales).round().to(torch.int32)
            steps = scales.view(-1, *[1] * (weight.ndim - 1))
            self.register_buffer("weight", (weight / steps).round().clamp(-most, most).to(torch.int8))
            self.register_buffer("scales", scales)
            self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))
            self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """As the quantised layer."""
        x = self.to_image(x)
        if self.has_colour:
            x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
        weight = _dequantized(self.weight, self.scales, self.zeros, 127)
        bias = _dequantized(self.bias, self.bias_scales, self.zeros, 2**31 - 1) if self.int32_bias else self.bias
        y = self.layer[0].operate(self.given(x), weight, bias)
        return y if self.made is None else self.from_image(self.made(y))


class _Steps(nn.Module):
    """The way between what a network computes and images, undone where an `ImageQuantizer` holds images."""

    shift: Tensor | None
    gain: Tensor | None

    def __init__(self, quantizer: ActivationQuantizer | None) -> None:
        super().__init__()
        shift = gain = None
        if isinstance(quantizer, ImageQuantizer):
            shift, gain = (part.view(1, -1, 1, 1) for part in (quantizer.shift, quantizer.gain))
        self.register_buffer("shift", shift if shift is not None and bool(shift.any()) else None)
        self.register_buffer("gain", gain if gain is not None and bool((gain != 1).any()) else None)

    def forward(self, x: Tensor) -> Tensor:
        """(x - shift) / gain, for (B, C, H, W)."""
        x = x if self.shift is None else x - self.shift
        return x if self.gain is None else x / self.gain


def _dequantized(integers: Any, scales: Any, zeros: Any, largest: int) -> Tensor:
    """The values of integers with a step for each output channel."""
    return _OPERATORS.dequantize_per_channel(integers, scales, zeros, 0, -largest, largest, integers.dtype)


def _grid(name: str, quantizer: ActivationQuantizer, form: LoweredForm) -> _Grid:
    scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
    if not scale > 0:
        raise CheckpointError(f"{name} has no range: calibrate the network before it is exported")
    smallest, largest = quantizer.quant_min, quantizer.quant_max
    if quantizer.integers == "int16":
        return _Grid(scale, zero_point, smallest, largest, torch.int16)
    if form.activations == "uint8":
        return _Grid(scale, zero_point, smallest, largest, torch.uint8)
    return _Grid(scale, zero_point - _HALF, smallest - _HALF, largest - _HALF, torch.int8)


def lower(network: nn.Module, form: LoweredForm) -> None:
    """Replaces the quantised layers of a network by `LoweredLayer`s, in place; branches of convolutions are merged.

    Raises CheckpointError where a range was not calibrated.
    """
    lowered: dict[nn.Module, LoweredLayer] = {}
    for name, layer in list(network.named_modules(remove_duplicate=False)):  # a shared layer has several names
        if isinstance(layer, QuantLayer):
            if layer not in lowered:
                lowered[layer] = LoweredLayer(name, layer, form)
            network.set_submodule(name, lowered[layer])


def simplify(program: ExportedProgram) -> ExportedProgram:
    """Removes from a lowered network's graph what its integers make superfluous, in place, and returns it.

    That is: the factors and colours between the image and the integers of the first layer, and between those of the
    last layer and the image; pairs that round once more what is rounded already, or that another pair equals.
    """
    graph, traced = program.graph_module.graph, TracedGraph(program)
    for node in graph.nodes:
        if node.target == _QUANTIZE:
            pad = node.args[0]
            user = pad if pad.target == torch.ops.aten.pad.default else node
            user.replace_input_with(user.args[0], traced.image_before(user.args[0]))
    ends = {node for node in graph.nodes if node.target == _DEQUANTIZE}
    for node in traced.superfluous_after(ends):
        node.replace_all_uses_with(cast(Node, node.args[0]))
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.target not in (_QUANTIZE, _DEQUANTIZE):
            continue
        source = node.args[0]
        key = node.target, node.args
        if node.target == _QUANTIZE and source.target == _DEQUANTIZE and source.args[1:] == node.args[1:]:
            node.replace_all_uses_with(source.args[0])
        elif key in seen:
            node.replace_all_uses_with(seen[key])
        seen.setdefault((node.target, node.args), node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    (output,) = [node for node in graph.nodes if node.op == "output"]
    specs = program.graph_signature.output_specs
    for spec, node in zip(specs, output.args[0], strict=True):
        spec.arg = replace(spec.arg, name=node.name)
    return program
