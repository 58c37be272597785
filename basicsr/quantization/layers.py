"""Layers with fake quantisation: each is an ordinary layer whose class is changed, with quantisers beside its weights.

A layer computes output_quantizer(operation(input_quantizer(x), rounded weight) + bias), all in float32. Its own weights
stay as they are, under the same names; only what the quantisers know is added to the state dict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.quantization.quantizers import (
    ActivationQuantizer,
    ImageQuantizer,
    Integers,
    fake_quantized_weight,
    of_channels,
)
from basicsr.utils.precision import at_least_float32, without_autocast
from basicsr.utils.reparameterization import Mergeable

OutputKind = Literal["calibrated", "image", "residual"]


class Affine(NamedTuple):
    """A factor and an offset for each channel."""

    gain: tuple[float, ...]
    shift: tuple[float, ...]


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is quantised.

    Attributes:
        integers: of its input and output.
        output: None where the output is quantised as the input of the next layer; 'calibrated'; 'image' where it is the
            network's output up to factors and colours; 'residual' where the enlarged input is still added to that.
        relu: whether only a ReLU follows, so that nothing below zero is of use.
        image_in: where the input is the network's, input = image * gain + shift; else None.
        image_out: where the output is 'image' or 'residual', image = output * gain + shift; else None.
    """

    integers: Integers = "int8"
    output: OutputKind | None = None
    relu: bool = False
    image_in: Affine | None = None
    image_out: Affine | None = None

    @property
    def has_colour(self) -> bool:
        """Whether a colour was subtracted from the input image."""
        return self.image_in is not None and any(self.image_in.shift)

    def to_data(self) -> dict[str, Any]:
        """Plain values, as in checkpoints."""
        affines = {"image_in": self.image_in, "image_out": self.image_out}
        return {
            **{"integers": self.integers, "output": self.output, "relu": self.relu},
            **{name: None if value is None else [list(part) for part in value] for name, value in affines.items()},
        }


class QuantLayer(nn.Module):
    """What quantised layers have beside the layer that they are.

    Attributes:
        input_quantizer: of what comes in.
        output_quantizer: of what goes out, or None.
        weight_bits: 7 or 8.
        quantizes: whether it does; a layer that does not computes what it did before.
        plan: how it is quantised.
    """

    input_quantizer: ActivationQuantizer
    output_quantizer: ActivationQuantizer | None
    weight_bits: int
    quantizes: bool
    plan: LayerPlan
    channel_axis = 0

    def kernel(self) -> tuple[Tensor, Tensor | None]:
        """The float weight and bias, with gradients."""
        return cast(Tensor, self.weight), cast("Tensor | None", self.bias)

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's operation with other weights."""
        raise NotImplementedError

    def operands(self) -> tuple[Tensor, Tensor | None]:
        """The weight and bias that are quantised: the layer's, for images and not for what networks make of them.

        Where a colour was subtracted there is one input channel more: 1 all over the image, 0 in the padding.
        """
        weight, bias = (None if part is None else at_least_float32(part) for part in self.kernel())
        assert weight is not None
        if isinstance(given := self.input_quantizer, ImageQuantizer):
            shifted = (weight * of_channels(given.shift, weight)).sum(1, keepdim=True)
            weight = weight * of_channels(given.gain, weight)
            if self.plan.has_colour:
                weight = torch.cat([weight, shifted], 1)
        if isinstance(made := self.output_quantizer, ImageQuantizer):
            weight = weight * made.gain.view(-1, *[1] * (weight.ndim - 1))
            bias = made.shift if bias is None else bias * made.gain + made.shift
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that it is, rounded as the integers will be; in float32, whatever autocast says."""
        if not self.quantizes:
            return super().forward(x)
        with without_autocast(x.device.type):
            weight, bias = self.operands()
            weight = fake_quantized_weight(weight, self.weight_bits, self.channel_axis)
            x = self.quantized_input(at_least_float32(x))
            return self.quantized_output(self.operate(x, weight, bias))

    def quantized_input(self, x: Tensor) -> Tensor:
        """What the operation gets."""
        quantizer = self.input_quantizer
        if not isinstance(quantizer, ImageQuantizer):
            return quantizer(x)
        image = quantizer((x - of_channels(quantizer.shift, x)) / of_channels(quantizer.gain, x))
        return F.pad(image, (0, 0, 0, 0, 0, 1), value=1.0) if self.plan.has_colour else image

    def quantized_output(self, y: Tensor) -> Tensor:
        """What the operation's result becomes."""
        quantizer = self.output_quantizer
        if quantizer is None:
            return y
        y = quantizer(y)
        if isinstance(quantizer, ImageQuantizer):
            y = (y - of_channels(quantizer.shift, y)) / of_channels(quantizer.gain, y)
        return y


class QuantConv2d(QuantLayer, nn.Conv2d):
    """A quantised convolution of (B, C, H, W)."""

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `QuantLayer`."""
        return self._conv_forward(x, weight, bias)


class QuantLinear(QuantLayer, nn.Linear):
    """A quantised linear layer on the last axis."""

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `QuantLayer`."""
        return F.linear(x, weight, bias)


class QuantMerged(QuantLayer):
    """Several convolutions in one (`Mergeable`), quantised as the one that they amount to."""

    def operate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `QuantLayer`."""
        return F.conv2d(x, weight, bias, padding=cast(Mergeable, self).padding)


_CLASSES: dict[type[nn.Module], type[QuantLayer]] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def _class_for(kind: type[Any]) -> type[QuantLayer]:
    """The quantised class of a layer's class; of each `Mergeable` one is made."""
    if kind not in _CLASSES:
        made = type(
            f"Quant{kind.__name__}", (QuantMerged, kind), {"kernel": kind.kernel, "__doc__": QuantMerged.__doc__}
        )
        _CLASSES[kind] = cast(type[QuantLayer], made)
    return _CLASSES[kind]


def can_be_quantized(module: nn.Module) -> bool:
    """Whether there is a quantised layer for it."""
    return type(module) in (nn.Conv2d, nn.Linear) or isinstance(module, Mergeable)


def quantizable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Layers that can be quantised, by name: branches only as their whole, a shared layer under its first name."""
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in network.named_modules():
        if name and can_be_quantized(module) and module not in inside:
            found[name] = module
            inside.update(module.modules())
    return found


def quantized_layers(network: nn.Module) -> dict[str, QuantLayer]:
    """The quantised layers by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantLayer)}


def quantize_layer(layer: nn.Module, plan: LayerPlan, weight_bits: int) -> None:
    """Makes a quantised layer of a layer, in place; its ranges are still to be set."""
    layer.__class__ = _class_for(type(layer))
    assert isinstance(layer, QuantLayer)
    weight, _ = layer.kernel()
    outputs, inputs = weight.shape[:2]
    layer.plan, layer.weight_bits, layer.quantizes = plan, weight_bits, True
    layer.input_quantizer = _made(plan.image_in, inputs, plan.integers)
    layer.output_quantizer = None if plan.output is None else _made(plan.image_out, outputs, plan.integers)
    layer.to(weight.device)


def _made(image: Affine | None, channels: int, integers: Integers) -> ActivationQuantizer:
    if image is None:
        return ActivationQuantizer(integers)
    if unfit := {len(part) for part in image} - {1, channels}:
        raise ValueError(f"a factor or an offset of {unfit.pop()} channels is given for {channels} channels")
    gain, shift = (torch.tensor(part).expand(channels).clone() for part in image)
    return ImageQuantizer(gain, shift, integers)
