"""The ranges of activations, from what a float network computes on some images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.quantization.layers import QuantLayer, quantized_layers
from basicsr.quantization.network import in_float, quantization_of
from basicsr.quantization.quantizers import IMAGE_STEPS, ActivationQuantizer, ImageQuantizer, of_channels
from basicsr.utils.errors import DataError, NonFiniteError, OptionsError

_BINS = 4096
_INNER = 0.9999  # of values, that 'percentile' keeps
_SHRINKINGS = tuple(step / 100 for step in range(100, 29, -2))

Images = Sequence[tuple[str, Tensor]]
"""Names and images (C, H, W) or (B, C, H, W) in [0, 1]; they are gone through once or twice."""


class _Range:
    """What one quantiser saw."""

    def __init__(self, quantizer: ActivationQuantizer, relu: bool) -> None:
        self.quantizer, self.relu = quantizer, relu
        self.low, self.high = 0.0, 0.0  # zero is always in the range
        self.counts = torch.zeros(_BINS, dtype=torch.float64)

    def widen(self, values: Tensor) -> None:
        low, high = (float(end) for end in values.aminmax())
        self.low, self.high = min(self.low, 0.0 if self.relu else low), max(self.high, high)

    def count(self, values: Tensor) -> None:
        values = values.float().flatten().cpu()
        values = values.clamp(min=0) if self.relu else values
        if self.low < self.high:
            self.counts += torch.histc(values, _BINS, self.low, self.high).double()

    @property
    def values(self) -> Tensor:
        """The middles of the bins."""
        width = (self.high - self.low) / _BINS
        return self.low + width * (torch.arange(_BINS, dtype=torch.float64) + 0.5)

    def inner(self) -> tuple[float, float]:
        """The range without what is outermost."""
        share = self.counts.cumsum(0) / self.counts.sum().clamp(min=1)
        cut = (1 - _INNER) / 2
        kept = self.values[(share > cut) & (share <= 1 - cut)]
        return (float(kept[0]), float(kept[-1])) if len(kept) > 1 else (self.low, self.high)

    def best(self) -> tuple[float, float]:
        """The part of the range with the least squared error."""
        ranges = [(self.low * low, self.high * high) for low, high in _shrunk(self.low, self.high)]
        return min(ranges, key=lambda ends: self.error(*ends))

    def error(self, low: float, high: float) -> float:
        """The squared error of 256 steps from `low` to `high`, in all: of rounding and of cutting off."""
        return self.cut_off(low, high) + float(self.counts.sum()) * ((high - low) / IMAGE_STEPS) ** 2 / 12

    def cut_off(self, low: float, high: float) -> float:
        """The squared error, in all, of what is outside."""
        return float((self.counts * (self.values - self.values.clamp(low, high)).square()).sum())


def _shrunk(low: float, high: float) -> list[tuple[float, float]]:
    """By how much both ends are shrunk, in all combinations; an end at zero stays."""
    lows = _SHRINKINGS if low < 0 else (1.0,)
    return [(first, second) for first in lows for second in (_SHRINKINGS if high > 0 else (1.0,))]


def calibrate(network: nn.Module, images: Images, *, report: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> None:
    """Sets the range of every quantiser, from the float network's values on `images`; the same on every run.

    Args:
        network: from `quantize_network`; its mode and whether it quantises are left as they are.
        images: on any device; they are moved to the network's.
        report: goes round what is iterated, as tqdm does.

    Raises:
        OptionsError: the network is not quantised.
        DataError: there are no images.
        NonFiniteError: a layer's values are not finite; layer and image are named.
    """
    quantization = quantization_of(network)
    if quantization is None:
        raise OptionsError(f"this {type(network).__name__} is not quantised, so there is nothing to calibrate")
    if not len(images):
        raise DataError("there is no image to calibrate with; give at least one LR image")
    ranges = _ranges_of(network)
    method = quantization.settings.ranges
    _run(network, images, ranges, _Range.widen, report)
    wide = [seen for seen in ranges.values() if method != "minmax" or isinstance(seen.quantizer, ImageQuantizer)]
    if wide:
        chosen = {key: seen for key, seen in ranges.items() if seen in wide}
        _run(network, images, chosen, _Range.count, report)
    for seen in ranges.values():
        if isinstance(seen.quantizer, ImageQuantizer):
            _set_residual(seen)
        elif seen.quantizer.integers == "int16" or method == "minmax":
            seen.quantizer.set_range(seen.low, seen.high)
        else:
            seen.quantizer.set_range(*(seen.inner() if method == "percentile" else seen.best()))


def _ranges_of(network: nn.Module) -> dict[tuple[str, str], _Range]:
    """What is to be calibrated, by layer and side: not what holds images, whose range is known."""
    found = {}
    for name, layer in quantized_layers(network).items():
        if layer.plan.image_in is None:
            found[name, "input"] = _Range(layer.input_quantizer, relu=False)
        if layer.output_quantizer is not None and layer.plan.output != "image":
            found[name, "output"] = _Range(layer.output_quantizer, layer.plan.relu)
    return found


def _set_residual(seen: _Range) -> None:
    """The steps of 8-bit images, so that the sum with the image is one; others where these would cut off too much.

    The sum is rounded to these steps in any case, so that they cost nothing but what they cut off.
    """
    quantizer, half = seen.quantizer, 128 / IMAGE_STEPS
    if quantizer.integers == "int16":
        return
    if seen.cut_off(-half, half - 1 / IMAGE_STEPS) <= seen.error(*(best := seen.best())):
        quantizer.set_step(1 / IMAGE_STEPS, 128)
    else:
        quantizer.set_range(*best)


def _run(
    network: nn.Module,
    images: Images,
    ranges: dict[tuple[str, str], _Range],
    use: Callable[[_Range, Tensor], None],
    report: Callable[[Iterable[Any]], Iterable[Any]],
) -> None:
    """Runs the float network on all images, and hands `use` what goes through each quantiser."""
    layers = quantized_layers(network)
    shown = ""

    def look(name: str, layer: QuantLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for side, values in (("input", inputs[0]), ("output", output)):
            if not torch.isfinite(values).all():
                raise NonFiniteError(
                    f"calibration: the {side} of {name} has values that are not finite on {shown}; the network's"
                    " weights or the image are broken"
                )
            if (seen := ranges.get((name, side))) is not None:
                if isinstance(seen.quantizer, ImageQuantizer):
                    values = values * of_channels(seen.quantizer.gain, values)
                use(seen, values.detach())

    training = network.training
    device = next(network.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(in_float(network))
        stack.enter_context(torch.no_grad())
        stack.callback(network.train, training)
        network.eval()
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(partial(look, name)).remove)
        for shown, image in report(images):  # noqa: B007 - `look` names it
            network((image if image.ndim == 4 else image[None]).to(device))
