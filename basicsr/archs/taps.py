"""Feature taps: outputs of named modules, without touching the network's code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import nearest

_LARGEST_WINDOW = 64


class FeatureTaps:
    """Collects the outputs of modules during the forward passes within a `with` block, as (B, C, H, W).

    Token maps, (B, H W, C) or (B, H, W, C), are folded, see `folded`.

    Args:
        network: the network to listen to.
        paths: names as in `network.named_modules()`, such as `body.31`.

    Raises:
        OptionsError: a path names no module; lists those near it. While listening: a module's output is no feature map.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]) -> None:
        modules = dict(network.named_modules())
        for path in paths:
            if path not in modules or path == "":
                shallow = [name for name in modules if name and name.count(".") <= max(1, path.count("."))]
                raise OptionsError(
                    f"{type(network).__name__} has no module '{path}'{nearest(path, list(modules))};"
                    f" there are: {', '.join(shallow[:60])}"
                )
        self._network = network
        self._modules = {path: modules[path] for path in paths}
        self._handles: list[Any] = []

    def __enter__(self) -> dict[str, torch.Tensor]:
        features: dict[str, torch.Tensor] = {}
        size = [0, 0]

        def look(network: nn.Module, inputs: tuple[Any, ...]) -> None:
            size[:] = inputs[0].shape[-2:]

        def listen(path: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                features[path] = folded(output, (size[0], size[1]), f"{type(self._network).__name__}'s module '{path}'")

            return hook

        if self._modules:
            self._handles = [self._network.register_forward_pre_hook(look)]
        self._handles += [module.register_forward_hook(listen(path)) for path, module in self._modules.items()]
        return features

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def folded(output: Any, size: tuple[int, int], source: str) -> torch.Tensor:
    """A module's output as a feature map (B, C, H, W).

    (B, N, C) is folded to the H W = N that `size` gives, or that it gives when extended to multiples of a window, as
    transformers do. (B, H, W, C) is told from (B, C, H, W) by where these H and W stand; where both would do, it is
    left as it is.

    Args:
        output: what the module returned.
        size: height and width of the network's input.
        source: what to call the module in an error.

    Raises:
        OptionsError: it is neither.
    """
    if isinstance(output, torch.Tensor) and output.dim() == 4:
        tokens_last = tuple(output.shape[2:]) in _grids(size)
        if tuple(output.shape[1:3]) in _grids(size) and not tokens_last:
            return output.permute(0, 3, 1, 2)
        return output
    if isinstance(output, torch.Tensor) and output.dim() == 3:
        for height, width in _grids(size):
            if height * width == output.shape[1]:
                return output.transpose(1, 2).unflatten(2, (height, width))
    shown = str(tuple(output.shape)) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
    raise OptionsError(f"{source} gives {shown}, no feature map (B, C, H, W) or token map; tap another module")


def _grids(size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes that an input may have inside a network: as it is, or extended to multiples of a window."""
    height, width = size
    windows = range(1, _LARGEST_WINDOW + 1)
    extended = [(math.ceil(height / window) * window, math.ceil(width / window) * window) for window in windows]
    return list(dict.fromkeys(extended))
