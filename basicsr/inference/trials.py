"""A network tried on an image before a run begins, with nothing of it changed; and what colours it takes."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.archs.luma import LumaNetwork
from basicsr.inference.runner import evaluating
from basicsr.utils.complexity import MultiplyAddCounter, count_parameters, on_meta
from basicsr.utils.precision import Precision
from basicsr.utils.randomness import seeded_global_state
from basicsr.utils.reparameterization import convolutions

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

_CHANNELS = (1, 3, 4)
_HARMLESS = ("basicsr.archs.", "basicsr.utils.precision", "torch.nn.")
_QUICK = 1e9  # parameters times pixels: run in no more time than the meta device takes for a network of many layers
_STEP = 64  # sides are shortened by multiples of it, so that networks in need of multiples show the same


@dataclass(frozen=True)
class Outcome:
    """The result of a trial; `reason` and `error` say why it failed."""

    given: Shape  # of the image that was tried, at most as large as the one asked for
    made: Shape | None  # of the output; None where it failed
    takes: int | None = None  # channels with which it works, where it fails with those given
    reason: str = ""
    error: Exception | None = None
    of_image: bool = False  # whether a whole image was run, so that `reason` speaks of its values too


class Trial:
    """A network that is tried, on the meta device where that works; weights, modes and random generators stay."""

    def __init__(
        self, label: str, network: nn.Module, device: torch.device, precision: Precision | None = None
    ) -> None:
        self.label, self._network, self._device = label, network, device
        self._precision = precision or Precision(device.type)

    @property
    def name(self) -> str:
        """Label and architecture: 'network_g (EDSR)'."""
        return f"{self.label} ({getattr(self._network, 'architecture', type(self._network).__name__)})"

    @property
    def network(self) -> nn.Module:
        """What is run: the network, or a copy if it has modules of others."""
        return self._unharmed

    def run(self, images: Tensor) -> Tensor:
        """The network's outputs for images (B, C, h, w), float32 (B, C, sh, sw) on the CPU, in eval mode."""
        return self._output(images).float().cpu()

    def _output(self, images: Tensor) -> Any:
        with seeded_global_state(0), torch.no_grad(), self._precision.autocast(), evaluating(self.network):
            return self.network(images.to(self._device))

    @property
    def first_channels(self) -> int | None:
        """Channels that the network's first convolution takes; None where it has none."""
        return next((module.in_channels for _, module in convolutions(self._network)), None)

    def outcome(self, shape: Shape, *, image: Tensor | None = None, any_output: bool = False) -> Outcome:
        """What the network makes of an image of this shape, or a shorter one where it must be run.

        A network that is quick is run on `image`, if that is large enough, else on noise.
        """
        shorter = _shortened(shape)
        quick = shape == shorter and 0 < count_parameters(self._network) * shape[1] * shape[2] < _QUICK
        made = None if quick else self._made_on_meta(shape, any_output)
        if made is not None:
            return Outcome(shape, made)
        shorter = shape if any_output else shorter
        corner = None if image is None else image[..., : shape[1], : shape[2]]
        if quick and corner is not None and corner.shape == shape:
            outcome = replace(self._outcome(corner), of_image=True)
        else:
            outcome = self._outcome(_noise(shorter), any_output)
        if outcome.made is not None:
            return outcome
        first = self.first_channels  # some take a single channel too, as it spreads to all where a mean is subtracted
        for channels in dict.fromkeys((first, *_CHANNELS) if first is not None else _CHANNELS):
            other = (channels, *shorter[1:])
            if other != shorter and (
                self._made_on_meta(other, any_output) or self._outcome(_noise(other), any_output).made
            ):
                return replace(outcome, takes=channels)
        return outcome

    def values(self, image: Tensor) -> Outcome:
        """Runs the network on a corner of an image (C, H, W), as small as it takes; `reason` says what is wrong."""
        # Small enough to be run in no time, with sides alike in multiples.
        height, width = (min(side, 16 + side % 16) for side in image.shape[-2:])
        outcome = self._outcome(image[..., :height, :width])
        if outcome.made is not None:
            return outcome
        _, height, width = _shortened(_shape(image))
        return self._outcome(image[..., :height, :width])

    def _outcome(self, image: Tensor, any_output: bool = False) -> Outcome:
        """Runs the network on an image (C, H, W)."""
        try:
            output = self._output(image.unsqueeze(0))
            made = _checked_shape(output, any_output)
        except Exception as error:  # whatever a network's code raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Outcome(_shape(image), None, reason=reason, error=error)
        finite = any_output or bool(torch.isfinite(output).all())
        return Outcome(_shape(image), made, reason="" if finite else "puts out values that are not finite")

    def _made_on_meta(self, shape: Shape, any_output: bool) -> Shape | None:
        if self._meta is not None:
            # Sound networks fail too where they read values. Without the counter PyTorch's compiler would be imported.
            with suppress(Exception), torch.no_grad(), MultiplyAddCounter():
                return _checked_shape(self._meta(torch.empty(1, *shape, device="meta")), any_output)
        return None

    @cached_property
    def _meta(self) -> nn.Module | None:
        with suppress(Exception):  # modules of the user's own may hold what cannot be copied
            return on_meta(self._network)
        return None

    @cached_property
    def _unharmed(self) -> nn.Module:
        """The network, or a copy if it has modules of others, which may change anything when they run."""
        if not all(type(module).__module__.startswith(_HARMLESS) for module in self._network.modules()):
            with suppress(Exception):
                return copy.deepcopy(self._network)
        return self._network


def for_colours(network: nn.Module) -> nn.Module:
    """The network, as a `LumaNetwork` if it takes images of one channel and none of three."""
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    trial = Trial("network", network, device)
    if trial.first_channels in (3, None) or trial.outcome((3, _STEP, _STEP)).takes != 1:
        return network
    outcome = trial.outcome((1, _STEP, _STEP))
    if outcome.made is None or outcome.made[0] != 1:
        return network
    return LumaNetwork(network, outcome.made[1] // outcome.given[1]).to(device)


def on_images_of(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """The teacher, as a `LumaNetwork` where it takes gray images only and the student colours."""
    return teacher if isinstance(for_colours(student), LumaNetwork) else for_colours(teacher)


def _shortened(shape: Shape) -> Shape:
    channels, *sides = shape
    height, width = (side if side <= 2 * _STEP else _STEP + side % _STEP for side in sides)
    return channels, height, width


def _shape(image: Tensor) -> Shape:
    channels, height, width = image.shape
    return channels, height, width


def _noise(shape: Shape) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _checked_shape(output: Any, any_output: bool) -> Shape:
    """The output's shape without the batch; raises TypeError where it is no image but must be."""
    if any_output:
        return 1, 1, 1
    if not isinstance(output, Tensor) or output.dim() != 4 or len(output) != 1:
        found = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise TypeError(f"forward returned {found}; it must return one tensor (B, C, H, W)")
    return _shape(output[0])
