"""Feature taps: outputs of named modules, without touching the network's code."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import nearest


class FeatureTaps:
    """Collects the outputs of modules during the forward passes within a `with` block.

    Args:
        network: the network to listen to.
        paths: names as in `network.named_modules()`, such as `body.31`.

    Raises:
        OptionsError: a path names no module; lists those near it.
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
        self._modules = {path: modules[path] for path in paths}
        self._handles: list[Any] = []

    def __enter__(self) -> dict[str, torch.Tensor]:
        features: dict[str, torch.Tensor] = {}

        def listen(path: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
                features[path] = output

            return hook

        self._handles = [module.register_forward_hook(listen(path)) for path, module in self._modules.items()]
        return features

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
