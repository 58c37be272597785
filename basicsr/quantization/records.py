"""What a checkpoint says of a quantised network, beside its weights and ranges: written, read and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from basicsr.quantization.layers import Affine, LayerPlan, quantizable_layers, quantized_layers
from basicsr.quantization.network import Quantization, quantization_of, quantize_network
from basicsr.utils.registry import problems_of

_ENDINGS = tuple(f"{side}_quantizer.{value}" for side in ("input", "output") for value in ("scale", "zero_point"))
_CHOICES: dict[str, tuple[Any, ...]] = {
    "integers": ("int8", "int16"),
    "output": (None, "calibrated", "image", "residual"),
    "relu": (False, True),
}
_AFFINES = ("image_in", "image_out")


def to_record(network: nn.Module) -> dict[str, Any] | None:
    """The block `quantization` of a checkpoint, in plain values; None of a float network."""
    quantization = quantization_of(network)
    if quantization is None:
        return None
    plans = {name: plan.to_data() for name, plan in quantization.plans.items()}
    return {"settings": quantization.settings.to_data(), "plans": plans}


def is_range(key: str) -> bool:
    """Whether a weight's name is that of a quantiser's number."""
    return key.endswith(_ENDINGS)


def quantize_as_recorded(network: nn.Module, record: Mapping[str, Any], ranges: Mapping[str, Tensor]) -> Quantization:
    """Gives a float network the quantisers of a checkpoint; ValueError, in words, where that does not fit.

    Args:
        network: with the float weights.
        record: as from `to_record`, of unknown origin.
        ranges: the entries of the state dict that `is_range` names.
    """
    quantization = read_record(network, record)
    quantize_network(network, quantization.settings, plans=quantization.plans)
    load_ranges(network, ranges)
    return quantization


def load_ranges(network: nn.Module, ranges: Mapping[str, Tensor]) -> None:
    """Sets the ranges of a quantised network; ValueError where one is missing, unknown or out of bounds."""
    expected = {key: value for key, value in network.state_dict().items() if is_range(key)}
    if wrong := sorted(expected.keys() ^ ranges.keys()):
        raise ValueError(f"it {'lacks' if wrong[0] in expected else 'has no layer for'} the range '{wrong[0]}'")
    for name, layer in quantized_layers(network).items():
        for side, quantizer in (("input", layer.input_quantizer), ("output", layer.output_quantizer)):
            if quantizer is None:
                continue
            scale, zero_point = (ranges[f"{name}.{side}_quantizer.{value}"] for value in ("scale", "zero_point"))
            fits = scale.numel() == zero_point.numel() == 1 and math.isfinite(float(scale)) and float(scale) > 0
            if not fits or not quantizer.quant_min <= int(zero_point) <= quantizer.quant_max:
                raise ValueError(f"the range of {name}.{side}_quantizer is no range")
            quantizer.set_step(float(scale), int(zero_point))


def read_record(network: nn.Module, record: Mapping[str, Any]) -> Quantization:
    """What a block `quantization` says of a float network; ValueError, in words, where it does not fit it."""
    from pydantic import ValidationError  # imported here, as all but quantised networks do without

    from basicsr.config.component_blocks import freeze
    from basicsr.config.quantization import QuantizationSettings

    settings, given = (record.get(key) for key in ("settings", "plans"))
    if not isinstance(settings, Mapping) or not isinstance(given, Mapping):
        raise ValueError("its block 'quantization' has no settings and plans")
    try:
        read = QuantizationSettings.model_validate(freeze(settings))
    except ValidationError as error:
        problem = problems_of(error, settings)[0]
        key = ".".join(map(str, problem.key))
        raise ValueError(f"its block 'quantization' is wrong: {key}: {problem.message}") from error
    known = quantizable_layers(network)
    plans = {}
    for name, plan in given.items():
        if name not in known:
            raise ValueError(f"it quantises '{name}', which is no layer of {type(network).__name__}")
        if (read_plan := _read_plan(plan)) is None:
            raise ValueError(f"its block 'quantization' says nothing of use of the layer '{name}'")
        plans[name] = read_plan
    if not plans:
        raise ValueError("its block 'quantization' names no layer")
    return Quantization(read, plans)


def _read_plan(data: Any) -> LayerPlan | None:
    if not isinstance(data, Mapping) or data.keys() != {*_CHOICES, *_AFFINES}:
        return None
    values = {key: data[key] for key in _CHOICES}
    if any(not any(value is one or value == one for one in _CHOICES[key]) for key, value in values.items()):
        return None
    for key in _AFFINES:
        parts = data[key]
        if parts is not None:
            fits = isinstance(parts, (list, tuple)) and len(parts) == 2 and all(map(_is_row, parts))
            if not fits or 0 in parts[0]:
                return None
            parts = Affine(*map(tuple, parts))
        values[key] = parts
    if (values["image_out"] is None) != (values["output"] in (None, "calibrated")):
        return None
    return LayerPlan(**values)


def _is_row(part: Any) -> bool:
    """Whether it is a list of finite numbers."""
    is_list = isinstance(part, (list, tuple)) and len(part) > 0
    return is_list and all(type(value) in (int, float) and math.isfinite(value) for value in part)
