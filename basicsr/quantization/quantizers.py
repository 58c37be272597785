"""Fake quantisation: values rounded to those that int8 or int16 can hold, still in float32, with straight gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Integers = Literal["int8", "int16"]

IMAGE_STEPS = 255
_FINER = 128  # steps of an int16 image to one of an int8 image, so that 8-bit images are exact in both
_SMALLEST_SCALE = 1e-8


class ActivationQuantizer(nn.Module):
    """Rounds a tensor of any shape to 256 equal steps over a range, or to 65535 around zero, and cuts off the rest.

    value = scale (integer - zero_point). Integers of 8 bits are counted from 0 to 255 here; runtimes that want -128 to
    127 get both numbers less 128. Integers of 16 bits go from -32767 to 32767 with a zero point of 0. Zero is always
    one of the values. Not calibrated, the scale is NaN, and so is every output.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, integers: Integers = "int8") -> None:
        super().__init__()
        self.integers = integers
        self.quant_min, self.quant_max = (0, 255) if integers == "int8" else (-32767, 32767)
        self.register_buffer("scale", torch.full((), torch.nan))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

    def set_range(self, low: float, high: float) -> None:
        """Takes the values from `low` to `high`, and zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        if self.integers == "int16":
            self.set_step(max(high, -low) / self.quant_max)
            return
        scale = max((high - low) / self.quant_max, _SMALLEST_SCALE)
        self.set_step(scale, round(-low / scale))

    def set_step(self, scale: float, zero_point: int = 0) -> None:
        """Takes a scale and the integer that stands for zero."""
        self.scale.fill_(max(scale, _SMALLEST_SCALE))
        self.zero_point.fill_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds float32; the gradient is 1 inside of the range and 0 outside."""
        if x.is_meta:  # PyTorch has no kernel that only knows shapes
            return x
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def extra_repr(self) -> str:
        """For `print`."""
        return self.integers


class ImageQuantizer(ActivationQuantizer):
    """Rounds to the values of 8-bit images: the tensor is `gain` and `shift` away from an image in [0, 1].

    Of the network's input, tensor = image * gain + shift; of its output, image = tensor * gain + shift, each by channel
    (C). Layers fold both into their weights, so that the integers are those of the image itself.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, gain: Tensor, shift: Tensor, integers: Integers = "int8") -> None:
        super().__init__(integers)
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.set_step(1 / IMAGE_STEPS if integers == "int8" else 1 / (IMAGE_STEPS * _FINER))


def of_channels(values: Tensor, like: Tensor) -> Tensor:
    """(C) as (1, C, 1, 1), for a tensor (B, C, H, W)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


def weight_scales(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """The step of each output channel, (C): the largest magnitude becomes the largest integer, 63 or 127."""
    others = [dimension for dimension in range(weight.ndim) if dimension != axis]
    return (weight.detach().abs().amax(others) / largest_weight(bits)).clamp(min=_SMALLEST_SCALE)


def largest_weight(bits: int) -> int:
    """The largest integer of a weight: integers are symmetric, of 7 or 8 bits."""
    return 2 ** (bits - 1) - 1


def fake_quantized_weight(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """A weight rounded to its integers, by output channel (`axis`); as it is where there are no values (meta)."""
    if weight.is_meta:
        return weight
    scales, most = weight_scales(weight, bits, axis), largest_weight(bits)
    zeros = torch.zeros(scales.shape, dtype=torch.int32, device=scales.device)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis, -most, most)
