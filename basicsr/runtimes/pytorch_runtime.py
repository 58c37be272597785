"""PyTorch on the CPU: programs of torch.export, and networks that others load. It imports PyTorch when it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime, tried_scale
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY
from basicsr.utils.text import first_line

if TYPE_CHECKING:
    import torch

_NOTES = "metadata.json"
_SETTINGS = {"precision": ("float32", "bf16"), "layout": ("contiguous", "channels_last")}


@RUNTIME_REGISTRY.register()
class PyTorchRuntime(Runtime):
    """Runs `.pt2` files, eagerly; settings are `precision` (float32, bf16) and `layout` (contiguous, channels_last)."""

    name, extra, packages, distribution, endings = "pytorch", "", ("torch",), "torch", (".pt2",)

    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """See `Runtime.load`."""
        checked = check_settings(settings)
        import torch

        try:
            files = {_NOTES: ""}
            program = torch.export.load(path, extra_files=files)
            network = program.module()
            facts = _facts(program, network, json.loads(files[_NOTES] or "{}"))
        except Exception as error:  # whatever PyTorch raises on a file that is damaged or no program
            raise CheckpointError(f"PyTorch does not load {path.name} ({first_line(error)})") from error
        return run_network(network, facts, threads=threads, settings=checked)


def _facts(program: Any, network: Any, about: Mapping[str, str]) -> FileFacts:
    """What the shapes say that the program was traced for, and its notes where it has some."""
    import torch

    names = program.graph_signature.user_inputs
    batch, channels, *sides = next(node for node in program.graph.nodes if node.name in names).meta["val"].shape
    size = (int(sides[0]), int(sides[1])) if all(isinstance(side, int) for side in sides) else None

    def run(image: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(image)).detach().numpy()

    return FileFacts(
        scale=int(about["scale"]) if "scale" in about else tried_scale(run, int(channels), size),
        channels=int(channels),
        size=size,
        batches=not isinstance(batch, int),
        precision=about.get("precision", "float32"),
    )


def check_settings(settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Settings with their defaults; OptionsError for unknown ones."""
    chosen = {name: allowed[0] for name, allowed in _SETTINGS.items()}
    for name, value in (settings or {}).items():
        if name not in _SETTINGS:
            raise OptionsError(f"pytorch has no setting {name}; there are: {', '.join(_SETTINGS)}")
        if value not in _SETTINGS[name]:
            raise OptionsError(f"pytorch: {name} {value}: give {' or '.join(_SETTINGS[name])}")
        chosen[name] = value
    return chosen


def run_network(
    network: Callable[[torch.Tensor], torch.Tensor], facts: FileFacts, *, threads: int, settings: Mapping[str, str]
) -> LoadedFile:
    """A network, in eval mode on the CPU, as a loaded file; `threads` are those of the whole process."""
    import torch

    torch.set_num_threads(threads)
    if settings["layout"] == "channels_last" and isinstance(network, torch.nn.Module):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _Loaded(network, facts, settings)


class _Loaded(LoadedFile):
    def __init__(
        self, network: Callable[[torch.Tensor], torch.Tensor], facts: FileFacts, settings: Mapping[str, str]
    ) -> None:
        self._network, self.facts = network, facts
        self._low = settings["precision"] == "bf16"
        self._last = settings["layout"] == "channels_last"
        self.computes_in = "bf16" if self._low else facts.precision

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        lq = torch.from_numpy(np.ascontiguousarray(images))
        if self._last:
            lq = lq.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._low):
            return self._network(lq).float().contiguous().numpy()
