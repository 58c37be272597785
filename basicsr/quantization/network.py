"""A whole network with fake quantisation: made of a float one, recognised as one, and switched off for a while.

    plans = quantize_network(network, settings)
    calibrate(network, images)  # basicsr.quantization.calibration

The network is changed in place and stays what it was: its class, its modules' names, its weights and their names. Each
quantised layer adds `NAME.input_quantizer.scale` and `.zero_point`, and where its output is quantised too,
`NAME.output_quantizer.scale` and `.zero_point`, to the state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from basicsr.quantization.layers import LayerPlan, quantize_layer, quantized_layers
from basicsr.utils.errors import OptionsError

if TYPE_CHECKING:
    from basicsr.config.quantization import QuantizationSettings  # takes a second to import

_KEPT_AT = "quantization"


@dataclass(frozen=True)
class Quantization:
    """How a network is quantised: what was asked for, and what this means for each layer, by name."""

    settings: QuantizationSettings
    plans: Mapping[str, LayerPlan]

    @property
    def bits(self) -> str:
        """Of weights and activations, such as '7/8 bits'."""
        widths = sorted({plan.integers.removeprefix("int") for plan in self.plans.values()}, key=int)
        return f"{self.settings.weight_bits}/{' and '.join(widths)} bits"

    def __str__(self) -> str:
        return f"quantised, {self.bits}, {len(self.plans)} layer{'s' if len(self.plans) != 1 else ''}"


def quantize_network(
    network: nn.Module,
    settings: QuantizationSettings,
    *,
    channels: int = 3,
    plans: Mapping[str, LayerPlan] | None = None,
) -> Quantization:
    """Gives a float network its fake quantisers, in place; `calibrate` or a state dict sets their ranges.

    Args:
        network: takes images (B, `channels`, H, W) in [0, 1].
        settings: what is quantised and how.
        channels: of the network's input.
        plans: of its layers, as found before; None finds them from the traced graph, which takes seconds.

    Raises:
        OptionsError: the network is quantised already, cannot be traced, or has nothing to quantise.
    """
    if quantization_of(network) is not None:
        raise OptionsError(f"this {type(network).__name__} is quantised already; give its float weights")
    if plans is None:
        from basicsr.quantization.graph import plan_layers  # not needed where a checkpoint says it

        plans = plan_layers(network, settings, channels)
    for name, plan in plans.items():
        quantize_layer(network.get_submodule(name), plan, settings.weight_bits)
    quantization = Quantization(settings, dict(plans))
    setattr(network, _KEPT_AT, quantization)
    return quantization


def quantization_of(network: nn.Module) -> Quantization | None:
    """How a network is quantised; None of a float one."""
    return getattr(network, _KEPT_AT, None)


@contextmanager
def in_float(network: nn.Module) -> Iterator[None]:
    """Inside of it the network computes in float, as before it was quantised."""
    layers = list(quantized_layers(network).values())
    before = [layer.quantizes for layer in layers]
    for layer in layers:
        layer.quantizes = False
    try:
        yield
    finally:
        for layer, quantizes in zip(layers, before, strict=True):
            layer.quantizes = quantizes
