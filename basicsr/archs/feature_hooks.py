"""Feature hooks: outputs of named modules, without touching the network's code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from basicsr.utils.errors import OptionsError
from basicsr.utils.reparameterization import convolutions
from basicsr.utils.text import nearest

_PROBE_SIDE = 16
_LARGEST_WINDOW = 64
_MOST_LISTED = 60


class FeatureHooks:
    """Collects the outputs of modules during the forward passes within a `with` block, as (B, C, H, W).

    `paths` are names as in `network.named_modules()`. One that names no module, or whose output is no feature map,
    raises OptionsError. Token maps are folded, see `folded`. After `probe`, outputs changed in place are copied.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]) -> None:
        modules = dict(network.named_modules())
        for path in paths:
            if path not in modules or path == "":
                raise OptionsError(_no_module(network, modules, path))
        self._network = network
        self._modules = {path: modules[path] for path in paths}
        self._tokens_last: dict[str, bool] = {}
        self._overwritten: set[str] = set()
        self._probed: dict[str, tuple[torch.Tensor, int]] | None = None
        self._handles: list[Any] = []
        self._size = (0, 0)

    @torch.no_grad()
    def probe(self) -> dict[str, tuple[int, int, int]]:
        """Runs the network once in eval mode on `probe_image`, to learn how each output is laid out.

        Returns (C, H, W) of features by path, and of the image under ''; a module that is not run raises OptionsError.
        """
        training = [module for module in self._network.modules() if module.training]
        self._network.eval()  # so that no statistic moves and no random number is drawn
        self._probed = {}
        try:
            with self as features:
                image = probe_image(self._network)
            for path, (tensor, version) in self._probed.items():
                if tensor._version != version:
                    self._overwritten.add(path)
                if tensor.dim() == 4:
                    self._tokens_last[path] = _is_tokens_last(tensor, (image.shape[-2], image.shape[-1]))
        finally:
            self._probed = None
            for module in training:
                module.training = True
        if silent := [path for path in self._modules if path not in features]:
            raise OptionsError(f"the module '{silent[0]}' is not run in the network's forward; tap another")
        looked_at = {"": image, **features}
        return {path: (tensor.shape[1], tensor.shape[2], tensor.shape[3]) for path, tensor in looked_at.items()}

    def __enter__(self) -> dict[str, torch.Tensor]:
        features: dict[str, torch.Tensor] = {}
        if self._modules:
            self._handles = [self._network.register_forward_pre_hook(self._look)]
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(partial(self._collect, features, path)))
        return features

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _look(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._size = (inputs[0].shape[-2], inputs[0].shape[-1])

    def _collect(
        self, features: dict[str, torch.Tensor], path: str, module: nn.Module, given: Any, output: Any
    ) -> None:
        if self._probed is not None and isinstance(output, torch.Tensor):
            self._probed[path] = (output, output._version)
        output = output.clone() if path in self._overwritten else output
        source = f"{type(self._network).__name__}'s module '{path}'"
        features[path] = folded(output, self._size, source, self._tokens_last.get(path))


def probe_image(network: nn.Module) -> torch.Tensor:
    """Runs `network` on an image that is not square, zeros of (1, C, H, W), and returns that image.

    H is 16, or the next multiple of the network's window, and W a window more. A network that takes one size gets that.
    """
    parameter = next(network.parameters(), torch.zeros(()))
    window = getattr(network, "window_size", 8)
    window = window if isinstance(window, int) else 8
    height = math.ceil(_PROBE_SIDE / window) * window
    size = (height, height + window)
    if getattr(network, "absolute_pos_embed", None) is not None:
        size = getattr(network, "resolution", size)
    own = getattr(network, "in_channels", None)
    first = next((module for _, module in convolutions(network)), None)
    counts = [own] if isinstance(own, int) else [first.in_channels if first is not None else 3, 3]
    for number, count in enumerate(counts):  # the first convolution of some networks sees an image folded into channels
        image = torch.zeros(1, count, *size, device=parameter.device, dtype=parameter.dtype)
        try:
            network(image)
            break
        except RuntimeError:
            if number == len(counts) - 1:
                raise
    return image


def folded(output: Any, size: tuple[int, int], source: str, tokens_last: bool | None = None) -> torch.Tensor:
    """A module's output as a feature map (B, C, H, W); another output raises OptionsError, naming `source`.

    (B, N, C) is folded to the H W = N of the network's input `size`, or of that size extended to multiples of a window.
    (B, H, W, C) is told from (B, C, H, W) by where these H and W stand, unless `tokens_last` says which it is.
    """
    if isinstance(output, torch.Tensor) and output.dim() == 4:
        if tokens_last is None:
            tokens_last = _is_tokens_last(output, size)
        return output.permute(0, 3, 1, 2) if tokens_last else output
    if isinstance(output, torch.Tensor) and output.dim() == 3:
        for height, width in _grids(size):
            if height * width == output.shape[1]:
                return output.transpose(1, 2).unflatten(2, (height, width))
    shown = str(tuple(output.shape)) if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
    raise OptionsError(f"{source} gives {shown}, no feature map (B, C, H, W) or token map; tap another module")


def _is_tokens_last(output: torch.Tensor, size: tuple[int, int]) -> bool:
    """Whether (B, H, W, C) is more likely than (B, C, H, W), for an input of `size`."""
    front, back = tuple(output.shape[1:3]), tuple(output.shape[2:])
    if (front == size) != (back == size):
        return front == size
    grids = _grids(size)
    return front in grids and back not in grids


def _grids(size: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes that an input may have inside a network: as it is, or extended to multiples of a window."""
    height, width = size
    windows = range(1, _LARGEST_WINDOW + 1)
    extended = [(math.ceil(height / window) * window, math.ceil(width / window) * window) for window in windows]
    return list(dict.fromkeys(extended))


def _no_module(network: nn.Module, modules: dict[str, nn.Module], path: str) -> str:
    """The error for a missing path: lists those beside it, under the deepest parent that exists."""
    parent = path.rpartition(".")[0]
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    depth = parent.count(".") + 1 if parent else 0
    prefix = f"{parent}." if parent else ""
    near = [name for name in modules if name and name.startswith(prefix) and name.count(".") <= max(1, depth)]
    more = f", and {len(near) - _MOST_LISTED} more" if len(near) > _MOST_LISTED else ""
    there = f"in '{parent}' there are" if parent else "there are"
    return (
        f"{type(network).__name__} has no module '{path}'{nearest(path, list(modules))}; {there}:"
        f" {', '.join(near[:_MOST_LISTED])}{more}"
    )
