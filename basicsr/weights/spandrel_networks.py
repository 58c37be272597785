"""spandrel's networks: recognised by it, loaded by it, run on images of any size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PURPOSES = ("SR", "Restoration")
# spandrel makes their noise map, or cuts them into patches, for one image.
_ONE_AT_A_TIME = ("DRUNet", "IPT")


class NotRecognised(Exception):
    """spandrel knows no such network, or knows one that is no super-resolution; the message says which."""


class SpandrelNetwork(nn.Module):
    """A network of spandrel's under `model`, for images of any size: padded as it asks for, its output cropped.

    Attributes:
        architecture: spandrel's name of the architecture.
        scale: factor of enlargement; 1 for restoration.
        in_channels, out_channels: colours of the input and the output.
        window_size: images are best cut at multiples of it.

    Raises:
        NotRecognised: spandrel does not know the network, cannot load it, or it is for another purpose.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        descriptor = _descriptor(state)
        self.model: nn.Module = descriptor.model.float().eval()
        self.architecture = str(descriptor.architecture.id)
        self.scale: int = descriptor.scale
        self.in_channels: int = descriptor.input_channels
        self.out_channels: int = descriptor.output_channels
        self._size_requirements = descriptor.size_requirements
        step, window = self._size_requirements.multiple_of, getattr(self.model, "window_size", None)
        self.window_size: int = math.lcm(step, window) if isinstance(window, int) else step
        self._call = descriptor._call_fn  # not public; the public call allows no gradients, not even of a later loss

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) in [0, 1] to (B, C, scale H, scale W), clipped to [0, 1] in eval mode; any H and W."""
        height, width = x.shape[-2:]
        padded = _extended(x, *self._size_requirements.get_padding(width, height))
        # Some of spandrel's networks change their input in place.
        padded = padded.clone() if padded is x else padded
        parts = padded.split(1) if self.architecture in _ONE_AT_A_TIME else (padded,)
        output = torch.cat([self._call(self.model, part) for part in parts])
        output = output[..., : height * self.scale, : width * self.scale]
        return output if self.training else output.clamp(0, 1)


def _extended(x: Tensor, right: int, bottom: int) -> Tensor:
    """Extends (B, C, H, W) as spandrel does: by reflection as far as that goes, then by repetition."""
    if not right and not bottom:
        return x
    reflected = min(right, x.shape[-1] - 1), min(bottom, x.shape[-2] - 1)
    x = F.pad(x, (0, reflected[0], 0, reflected[1]), "reflect")
    return F.pad(x, (0, right - reflected[0], 0, bottom - reflected[1]), "replicate")


def _descriptor(state: Mapping[str, Tensor]) -> Any:
    from basicsr.utils.torchvision_import import import_torchvision

    import_torchvision()
    from spandrel import MAIN_REGISTRY, ImageModelDescriptor

    known = dict(state)  # loading changes it
    support = next((entry for entry in MAIN_REGISTRY.architectures("detection") if entry.detect(known)), None)
    if support is None:
        raise NotRecognised("spandrel does not know it either")
    name = support.architecture.id
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about how spandrel's networks are written
            descriptor = support.architecture.load(known)
    except Exception as error:  # whatever a network's code raises on weights unlike its own
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise NotRecognised(f"spandrel takes it for {name}, but cannot load it ({reason})") from error
    if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose not in _PURPOSES:
        raise NotRecognised(f"it is {name}, for {descriptor.purpose}: not a network for images of any content")
    if descriptor.input_channels not in (1, 3):
        raise NotRecognised(f"it is {name} for {descriptor.input_channels} channels, which pictures do not have")
    return descriptor
