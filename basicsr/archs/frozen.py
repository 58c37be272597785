"""A network that a loss looks through and that never learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from basicsr.utils.errors import OptionsError

Network = TypeVar("Network", bound=nn.Module)


class Frozen(nn.Module, Generic[Network]):
    """Holds a network that is frozen for good and belongs to no checkpoint.

    Its weights get no gradients, its input does. It stays in eval mode. No optimizer, checkpoint or exchange among
    processes sees it, for it is in neither `parameters()`, `state_dict()` nor `children()`; yet it follows to another
    device, precision or memory format. The network itself, not a copy, is frozen.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        # In a tuple it is no submodule: hundreds of megabytes stay out of every checkpoint.
        self._hidden = (network.requires_grad_(False).eval(),)

    @property
    def network(self) -> Network:
        """The frozen network."""
        return self._hidden[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        return self.network(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Frozen[Network]:
        self.network._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self


def check_images_for(method: str, network: str, shape: Sequence[int], least: int) -> None:
    """Raises OptionsError unless images (C, H, W) are gray or RGB and `least` pixels a side, for a method's network."""
    channels, *size = shape
    if channels not in (1, 3) or min(size) < least:
        raise OptionsError(
            f"{method}: the {network} needs gray or colour images of {least}x{least} at least, the output has"
            f" {channels} channels and {size[0]}x{size[1]} pixels; raise gt_size or leave the method out"
        )
