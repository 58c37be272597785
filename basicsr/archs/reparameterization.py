"""A convolution that is trained as a sum of linear branches: plain, expanded, edges, identity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.utils.precision import at_least_float32, without_autocast
from basicsr.utils.reparameterization import Mergeable

Branch = Literal["3x3", "1x1", "identity", "1x1-3x3", "3x3-1x1", "1x1-3x3-1x1", "sobel_x", "sobel_y", "laplacian"]
BRANCHES: tuple[Branch, ...] = get_args(Branch)
SPATIAL = tuple(name for name in BRANCHES if "3x3" in name)
_FILTERS = {
    "sobel_x": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "sobel_y": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
}
_OF_FACTORS = 0.3


class EdgeFilter(nn.Module):
    """`scale` times a fixed filter of 3x3 plus `bias`, each for every channel; as ECBSR's, both begin near 0."""

    filter: Tensor

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(channels) * 1e-3)
        self.bias = nn.Parameter(torch.randn(channels) * 1e-3)
        self.register_buffer("filter", torch.tensor(_FILTERS[kind], dtype=torch.float32), persistent=False)


def composed(parts: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
    """The weight and the bias of the one convolution that several, one after the other, amount to; in float32 or more.

    At most one of the parts is larger than 1x1, or is an `EdgeFilter`, which wants the part before it without a bias.
    At the image's border it is what the parts give if zeros are around the image before the first of them.
    """
    weight = bias = None
    for part in parts:
        if isinstance(part, EdgeFilter):
            assert weight is not None and bias is None
            weight = weight * (at_least_float32(part.scale).view(-1, 1, 1, 1) * part.filter)
            bias = at_least_float32(part.bias)
            continue
        assert isinstance(part, nn.Conv2d)
        own = at_least_float32(part.weight)
        own_bias = None if part.bias is None else at_least_float32(part.bias)
        if weight is None:
            weight, bias = own, own_bias
            continue
        assert bias is not None and own_bias is not None
        if part.kernel_size == (1, 1):
            weight = torch.tensordot(own[..., 0, 0], weight, ([1], [0]))
        else:
            weight = torch.tensordot(own, weight[..., 0, 0], ([1], [0])).permute(0, 3, 1, 2)
        bias = own.sum((2, 3)) @ bias + own_bias
    assert weight is not None and bias is not None
    return weight, bias


class BranchedConv2d(Mergeable):
    """A convolution of `side` x `side`, (B, `num_in`, H, W) to (B, `num_out`, H, W), trained as a sum of branches.

    `3x3` and `1x1` are convolutions, names with `-` several of them one after the other, with `expansion` times
    `num_out` channels between; of 5x5 in place of 3x3 where that is the `side`. Edges are a 1x1, then a fixed filter
    for each channel. `identity` adds the input, where it has as many channels as the output. Zeros are put around the
    image before the first convolution of a branch, so that the merged one is exact at the border, too.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, num_in: int, num_out: int, branches: Iterable[Branch], expansion: float, merged: bool, side: int = 3
    ) -> None:
        super().__init__(num_in, num_out, merged)
        self.kernel_size, self.padding = (side, side), (side // 2, side // 2)
        self.branches: tuple[str, ...] = ()
        if merged:
            self._keep(*nn.Conv2d(num_in, num_out, side).parameters())
            return
        self.branches = tuple(name for name in BRANCHES if name in branches)
        if num_in != num_out:
            self.branches = tuple(name for name in self.branches if name != "identity")
        for name in self.branches:
            self._add(name, max(int(num_out * expansion), 1))

    def _add(self, name: str, hidden: int) -> None:
        if name == "identity":
            # It has no weights: in a saved state this alone says that it is there.
            self.register_buffer("identity", torch.ones((), dtype=torch.bool))
        elif name in _FILTERS:
            # A bias before the filter would change nothing: its entries add up to 0.
            first = nn.Conv2d(self.in_channels, self.out_channels, 1, bias=False)
            self.add_module(name, nn.Sequential(first, EdgeFilter(name, self.out_channels)))
        else:
            sides = [self.kernel_size[0] if part == "3x3" else 1 for part in name.split("-")]
            widths = [self.in_channels, *[hidden] * (len(sides) - 1), self.out_channels]
            ends = zip(widths[:-1], widths[1:], sides, strict=True)
            parts = (nn.Conv2d(inputs, outputs, side) for inputs, outputs, side in ends)
            self.add_module(name, nn.Sequential(*parts))

    def kernel(self) -> tuple[Tensor, Tensor]:
        """See `Mergeable.kernel`."""
        if self.merged:
            return self.weight, self.bias
        first = next(self.parameters())
        with without_autocast(first.device.type):
            branches = [self.get_submodule(name) for name in self.branches if name != "identity"]
            kernels = [composed(branch.children()) for branch in branches]
            weights = [self._padded(weight) for weight, _ in kernels]
            if "identity" in self.branches:
                ones = torch.eye(self.out_channels, dtype=weights[0].dtype, device=first.device)
                weights.append(self._padded(ones[..., None, None]))
            weight, bias = sum(weights[1:], weights[0]), sum((bias for _, bias in kernels[1:]), kernels[0][1])
        return weight.to(first.dtype), bias.to(first.dtype)

    @torch.no_grad()
    def rescale(self, gain: float) -> None:
        """Scales the initial weights: independent values of variance 1 come out with `gain` squared; biases become 0.

        Several branches, some of them products, have any variance else. Products begin small, for an optimizer's step
        moves them by as much as their factors are large. Not for a branch `identity`, which passes features on as it
        is.
        """
        if next(self.parameters()).is_meta:
            return
        learned = [list(self.get_submodule(name).children()) for name in self.branches]
        for part in [self, *(part for branch in learned for part in branch)]:
            if isinstance(bias := getattr(part, "bias", None), nn.Parameter):
                bias.zero_()
        for part in [part for branch in learned for part in branch if len(branch) > 1]:
            next(part.parameters()).mul_(_OF_FACTORS)
        factor = gain * math.sqrt(self.out_channels) / float(self.kernel()[0].double().norm())
        for weight in [self.weight] if self.merged else [next(branch[0].parameters()) for branch in learned]:
            weight.mul_(factor)

    def _padded(self, weight: Tensor) -> Tensor:
        """A kernel of any of the branches as one of the largest."""
        margin = (self.kernel_size[0] - weight.shape[-1]) // 2
        return F.pad(weight, (margin,) * 4) if margin else weight

    def _keep(self, weight: nn.Parameter, bias: nn.Parameter) -> None:
        for name in self.branches:
            delattr(self, name)
        self.branches = ()
        self.weight, self.bias = weight, bias

    @torch.no_grad()
    def add_identity(self, repeated: int = 1) -> None:
        """Adds to the initial weights what passes the channels on, each `repeated` times; needs the branch '3x3'."""
        weight = self.weight if self.merged else self.get_parameter("3x3.0.weight")
        outputs = torch.arange(min(self.out_channels, self.in_channels * repeated))
        center = self.kernel_size[0] // 2
        weight[outputs, outputs // repeated, center, center] += 1
