"""spandrel's networks: recognised by it, loaded by it, run on images of any size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.utils.text import printable
from basicsr.weights.derived_buffers import own_buffers_where_missing, stand_ins_for

_PURPOSES = ("SR", "Restoration")
# spandrel makes their noise map, or cuts them into patches, for one image.
_ONE_AT_A_TIME = ("DRUNet", "IPT")
_NOISE_OF_DRUNET = 15 / 255  # that its map says
_LONGEST_REASON = 400


class NotRecognised(Exception):
    """spandrel knows no such network, or knows one that is no super-resolution; the message says which."""


class SpandrelNetwork(nn.Module):
    """A network of spandrel's under `model`, for images of any size: padded as it asks for, its output cropped.

    Attributes:
        architecture: spandrel's name of the architecture.
        scale: factor of enlargement; 1 for restoration.
        in_channels, out_channels: colours of the input and the output.
        window_size: images are best cut at multiples of it.
        assumed: sizes that the file does not show, in words.

    Raises:
        NotRecognised: spandrel does not know the network, cannot load it, or it is for another purpose.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        descriptor, self.assumed = _descriptor(state)
        self.model: nn.Module = descriptor.model.float().eval()
        self.architecture = str(descriptor.architecture.id)
        self.scale: int = descriptor.scale
        self.in_channels: int = descriptor.input_channels
        self.out_channels: int = descriptor.output_channels
        self.sizes = descriptor.size_requirements
        step, window = self.sizes.multiple_of, getattr(self.model, "window_size", None)
        self.window_size: int = math.lcm(step, window) if isinstance(window, int) else step
        self._call = descriptor._call_fn  # not public; the public call allows no gradients, not even of a later loss

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) in [0, 1] to (B, C, scale H, scale W), clipped to [0, 1] in eval mode; any H and W."""
        height, width = x.shape[-2:]
        padded = _extended(x, *self.sizes.get_padding(width, height))
        # Some of spandrel's networks change their input in place.
        padded = padded.clone() if padded is x else padded
        parts = padded.split(1) if self.architecture in _ONE_AT_A_TIME else (padded,)
        output = torch.cat([self._call(self.model, part) for part in parts])
        output = output[..., : height * self.scale, : width * self.scale]
        return output if self.training else output.clamp(0, 1)

    def run_extended(self, x: Tensor) -> Tensor:
        """As spandrel's own code, neither cropped nor clipped, on images of a size that `sizes` allow."""
        if self.architecture == "DRUNet":
            return self.model(torch.cat([x, torch.full_like(x[:, :1], _NOISE_OF_DRUNET)], 1))
        output: Tensor = self._call(self.model, x)
        return output


def _extended(x: Tensor, right: int, bottom: int) -> Tensor:
    """Extends (B, C, H, W) as spandrel does: by reflection as far as that goes, then by repetition."""
    if not right and not bottom:
        return x
    reflected = min(right, x.shape[-1] - 1), min(bottom, x.shape[-2] - 1)
    x = F.pad(x, (0, reflected[0], 0, reflected[1]), "reflect")
    return F.pad(x, (0, right - reflected[0], 0, bottom - reflected[1]), "replicate")


def _descriptor(state: Mapping[str, Tensor]) -> tuple[Any, tuple[str, ...]]:
    """spandrel's descriptor of a loaded network, and what had to be assumed of its sizes."""
    from basicsr.utils.torchvision_import import import_torchvision

    import_torchvision()

    stand_ins, assumed = stand_ins_for(state)
    reasons: list[str] = []
    attempts: list[tuple[dict[str, Tensor], tuple[str, ...]]] = [(stand_ins, assumed)] if stand_ins else []
    for further, taken in [*attempts, ({}, ())]:
        with own_buffers_where_missing(further):
            descriptor = _loaded({**state, **further}, reasons)
        if descriptor is not None:
            return descriptor, taken
    said = "; ".join(dict.fromkeys(reasons))
    raise NotRecognised(f"spandrel takes it for {said}" if said else "spandrel does not know it either")


def _loaded(state: Mapping[str, Tensor], reasons: list[str]) -> Any:
    """What the first of spandrel's architectures that takes the weights makes of them; None where none does."""
    from spandrel import MAIN_REGISTRY, ImageModelDescriptor

    for support in MAIN_REGISTRY.architectures("detection"):
        name = support.architecture.id
        try:
            if not support.detect(dict(state)):
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch, about how spandrel's networks are written
                descriptor = support.architecture.load(dict(state))  # which changes it
        except Exception as error:  # whatever a network's code raises on weights unlike its own
            reasons.append(f"{name}, but cannot load it ({_reason(error)})")
            continue
        if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose not in _PURPOSES:
            raise NotRecognised(f"it is {name}, for {descriptor.purpose}: not a network for images of any content")
        if descriptor.input_channels not in (1, 3):
            raise NotRecognised(f"it is {name} for {descriptor.input_channels} channels, which pictures do not have")
        return descriptor
    return None


def _reason(error: Exception) -> str:
    """All that an error says, on one line."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):
        said = f"it has no {said}"
    return printable(said[:_LONGEST_REASON]) or type(error).__name__
