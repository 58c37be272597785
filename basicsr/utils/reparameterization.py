"""Convolutions that are trained as sums of branches and shipped as one kernel each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


class Mergeable(nn.Module):
    """A convolution with stride 1, (B, `in_channels`, H, W) to (B, `out_channels`, H, W), trained as linear branches.

    Training, EMA and checkpoints know the branches' weights. What is applied is always the one kernel that they amount
    to, with zeros around the image, so that the merged network computes the same. Code that takes convolutions one by
    one (quantisation, half precision, counting) takes a Mergeable as one and leaves alone what is inside, see
    `convolutions`. A network that has some takes an argument `merged`, which builds it without branches.

    Attributes:
        in_channels, out_channels, kernel_size, padding: as of the `nn.Conv2d` that it is shipped as.
        merged: whether there are no branches any more.
    """

    kernel_size = (3, 3)
    padding = (1, 1)

    def __init__(self, in_channels: int, out_channels: int, merged: bool) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.merged = in_channels, out_channels, merged

    @abstractmethod
    def kernel(self) -> tuple[Tensor, Tensor]:
        """The weight (`out_channels`, `in_channels`, 3, 3) and the bias (`out_channels`), with gradients; at any time.

        In the parameters' type, computed in float32 at least and without autocast.
        """

    @abstractmethod
    def _keep(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        """Puts this kernel in the place of the branches; other submodules stay."""

    def forward(self, x: Tensor) -> Tensor:
        """Applies the kernel."""
        return F.conv2d(x, *self.kernel(), padding=self.padding)

    @torch.no_grad()
    def merge(self) -> None:
        """Leaves the kernel alone, as with `merged`; trainable if the branches were."""
        if self.merged:
            return
        parameters = list(self.parameters())
        trainable = any(parameter.requires_grad for parameter in parameters)
        if parameters[0].is_meta:  # where no values are, computing imports much for nothing
            shape = self.out_channels, self.in_channels, *self.kernel_size
            kernel = parameters[0].new_empty(shape), parameters[0].new_empty(shape[0])
        else:
            kernel = self.kernel()
        weight, bias = (nn.Parameter(tensor, requires_grad=trainable) for tensor in kernel)
        self._keep(weight, bias)
        self.merged = True


def merge(network: Network) -> Network:
    """Merges in place whatever is mergeable in a network, and returns it: the network as it is shipped."""
    for module in list(network.modules()):
        if isinstance(module, Mergeable):
            module.merge()
    return network


def mergeable(network: nn.Module) -> bool:
    """Whether any part of a network still has branches."""
    return any(isinstance(module, Mergeable) and not module.merged for module in network.modules())


def convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | Mergeable]]:
    """The convolutions that a network is shipped with, and their names, in the order of `named_modules`."""
    return _convolutions(network, "", set())


def computes_as_usual(convolution: nn.Conv2d | Mergeable) -> bool:
    """Whether a convolution applies its kernel and nothing else: others derive classes that do more."""
    return isinstance(convolution, Mergeable) or type(convolution) is nn.Conv2d


def _convolutions(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Conv2d | Mergeable]]:
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, (nn.Conv2d, Mergeable)):
        yield name, module
        return
    for child, inner in module.named_children():
        yield from _convolutions(inner, f"{name}.{child}" if name else child, seen)
