"""DnCNN and FDnCNN: denoisers of plain 3x3 convolutions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from basicsr.archs.arch_util import StagedNetwork, default_init_weights
from basicsr.archs.recognition import Recognised, State, UnsupportedWeights
from basicsr.archs.traits import Trait
from basicsr.utils.ranges import Features, ImageChannels, Layers, NoiseLevel
from basicsr.utils.registry import ARCH_REGISTRY, check_arguments

USUAL_NOISE = 25.0
"""The level that most published figures are for, in [0, 255]."""


class PlainDenoiser(StagedNetwork):
    """A stack `model` of 3x3 convolutions with ReLUs between them; a stage is a convolution with its ReLU."""

    def __init__(self, num_in_ch: int, num_out_ch: int, num_feat: int, num_layer: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(num_in_ch, num_feat, 3, 1, 1)]
        for _ in range(num_layer - 2):
            layers += [nn.ReLU(inplace=True), nn.Conv2d(num_feat, num_feat, 3, 1, 1)]
        self.model = nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Conv2d(num_feat, num_out_ch, 3, 1, 1))
        default_init_weights(self.model)

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(f"model.{number}" for number in range(3, len(self.model) - 1, 2))

    def stem(self, x):
        """See `StagedNetwork`; what is kept is the input."""
        return self.model[1](self.model[0](x)), x

    def run_stages(self, features, kept, first=0, last=None):
        stages = list(self.model[2:-1])
        for module in stages[2 * first : None if last is None else 2 * last]:
            features = module(features)
        return features


def with_noise_level(x: Tensor, noise_level: float) -> Tensor:
    """Images (B, C, H, W) with one more channel, which has the noise level, given in [0, 255], as a part of 255."""
    level = x.new_full((1, 1, 1, 1), noise_level / 255)
    return torch.cat([x, level.expand(x.shape[0], 1, *x.shape[-2:])], 1)


@ARCH_REGISTRY.register()
class DnCNN(PlainDenoiser):
    """DnCNN (Zhang et al., Beyond a Gaussian Denoiser, TIP 2017), without batch norm: x - f(x).

    Files with batch norm are loaded with it folded into the convolutions, which changes no output.

    Args:
        img_channel: colours of the input and of the output.
        num_feat: channels of the features.
        num_layer: convolutions in all.
    """

    def __init__(self, *, img_channel: ImageChannels = 3, num_feat: Features = 64, num_layer: Layers = 17) -> None:
        check_arguments(DnCNN, locals())
        super().__init__(img_channel, img_channel, num_feat, num_layer)
        default_init_weights(self.model[-1], 0.1)  # so that it begins near the identity

    def reconstruct(self, features, kept):
        return kept - self.model[-1](features)

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """KAIR's keys (`model.N`) and its PyTorch copies' (`dncnn.N`), both also with batch norm."""
        stack = read_stack(state)
        if stack is None or stack.inputs != stack.outputs:
            return None
        options = {"type": "DnCNN", "img_channel": stack.inputs, **stack.options}
        return Recognised("DnCNN", stack.layout, options, 1, stack.state, stack.assumed)


@ARCH_REGISTRY.register()
class FDnCNN(PlainDenoiser):
    """FDnCNN of DnCNN's authors: DnCNN that is told the noise level, by one more channel, and gives the clean image.

    Args:
        img_channel: colours of the input and of the output.
        num_feat: channels of the features.
        num_layer: convolutions in all.
        noise_level: standard deviation of the noise to remove, of images in [0, 255].
    """

    traits: ClassVar[frozenset[Trait]] = frozenset({"a channel of the noise level"})

    def __init__(
        self,
        *,
        img_channel: ImageChannels = 3,
        num_feat: Features = 64,
        num_layer: Layers = 20,
        noise_level: NoiseLevel = USUAL_NOISE,
    ) -> None:
        check_arguments(FDnCNN, locals())
        super().__init__(img_channel + 1, img_channel, num_feat, num_layer)
        self.noise_level = noise_level

    def stem(self, x):
        """See `StagedNetwork`; nothing is kept."""
        return super().stem(with_noise_level(x, self.noise_level))[0], None

    def reconstruct(self, features, kept):
        return self.model[-1](features)

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> Recognised | None:
        """KAIR's keys, `model.N`."""
        stack = read_stack(state)
        if stack is None or stack.outputs % 4 == 0 or stack.inputs != stack.outputs + 1:  # of 4: FFDNet
            return None
        options = {"type": "FDnCNN", "img_channel": stack.outputs, **stack.options, "noise_level": USUAL_NOISE}
        return Recognised("FDnCNN", stack.layout, options, 1, stack.state, (*stack.assumed, noise_assumed()))


def noise_assumed() -> str:
    """For the remark on a network that is told the noise level."""
    return f"noise_level {USUAL_NOISE:g}, which is yours to choose"


class Stack:
    """What a state dict of a stack of 3x3 convolutions shows; the state is under the keys of `PlainDenoiser`."""

    def __init__(self, layout: str, convolutions: list[State], assumed: tuple[str, ...]) -> None:
        first, last = convolutions[0]["weight"], convolutions[-1]["weight"]
        self.layout, self.assumed = layout, assumed
        self.inputs, self.outputs = first.shape[1], last.shape[0]
        self.options: dict[str, Any] = {"num_feat": first.shape[0], "num_layer": len(convolutions)}
        self.state: State = {}
        for at, convolution in enumerate(convolutions):
            self.state |= {f"model.{2 * at}.{name}": value for name, value in convolution.items()}


def read_stack(state: Mapping[str, Tensor]) -> Stack | None:
    """Reads a stack whose keys are a name, a number in a sequence and a parameter's; folds batch norm."""
    layers: dict[int, State] = {}
    names = set()
    for key, value in state.items():
        if (match := re.fullmatch(r"(model|dncnn)\.(\d+)\.([a-z_]+)", key)) is None:
            return None
        names.add(match[1])
        layers.setdefault(int(match[2]), {})[match[3]] = value
    numbers = sorted(layers)
    is_norm = {number: "running_var" in layers[number] for number in numbers}
    plain = [number for number in numbers if not is_norm[number]]
    if len(names) != 1 or len(plain) < 3 or any(layers[at]["weight"].shape[2:] != (3, 3) for at in plain):
        return None
    widths = [layers[at]["weight"].shape[0] for at in plain[:-1]]
    if len({*widths, *(layers[at]["weight"].shape[1] for at in plain[1:])}) != 1:
        return None
    # In a sequence ReLUs have a number but no key.
    expected, at = [], 0
    for position in range(len(plain)):
        expected.append(at)
        with_norm = is_norm.get(at + 1, False)
        if with_norm and position in (0, len(plain) - 1):
            return None
        at += 3 if with_norm else 2
    if expected != plain:
        return None
    biased = "bias" in layers[plain[0]]
    epsilon = 1e-4 if biased else 1e-5  # KAIR's and that of its PyTorch copies, which have no biases
    norms = {number: layer for number, layer in layers.items() if is_norm[number]}
    folded = [_folded(layers[number], norms.get(number + 1), epsilon) for number in plain]
    layout = "KAIR" if "model" in names else "DnCNN in PyTorch"
    if not norms:
        return Stack(layout, folded, ())
    return Stack(f"{layout}, with batch norm", folded, (f"a batch norm's epsilon of {epsilon:g}",))


def _folded(convolution: State, norm: State | None, epsilon: float) -> State:
    """A convolution's weight and bias, with those of the batch norm after it multiplied in, in float64."""
    weight = convolution["weight"]
    bias = convolution.get("bias", weight.new_zeros(len(weight)))
    if norm is None:
        return {"weight": weight, "bias": bias}
    if "weight" not in norm or "bias" not in norm:
        raise UnsupportedWeights("it has a batch norm without weights")
    factor = norm["weight"].double() / (norm["running_var"].double() + epsilon).sqrt()
    scaled = weight.double() * factor[:, None, None, None]
    shifted = (bias.double() - norm["running_mean"].double()) * factor + norm["bias"].double()
    return {"weight": scaled.to(weight.dtype), "bias": shifted.to(weight.dtype)}
