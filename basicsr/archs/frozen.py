"""A network that a loss looks through and that never learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import nn

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
