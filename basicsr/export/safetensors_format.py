"""safetensors: the weights in this framework's layout or in spandrel's.

spandrel's layout has its keys, and factors that spandrel takes for granted are multiplied into weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.archs.edsr_arch import to_edsr_pytorch
from basicsr.archs.mean_shift import DIV2K_MEAN
from basicsr.archs.rcan_arch import to_original_rcan
from basicsr.archs.recognition import UnsupportedWeights
from basicsr.export.base import ExportFormat, ExportJob
from basicsr.export.checks import Check
from basicsr.export.spandrel_edsr import register
from basicsr.export.tracing import quiet, smallest_side
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.reparameterization import merge, mergeable
from basicsr.utils.text import first_line
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained
from basicsr.weights.spandrel_networks import NotRecognised, SpandrelNetwork

State = dict[str, Tensor]
Converted = tuple[State, Mapping[str, Any]]
"""Weights for spandrel, and the network's options that changed with them."""


@EXPORT_REGISTRY.register()
class Safetensors(ExportFormat):
    """Weights, with the metadata in the header; they are loaded again and compared, spandrel's layout by it too."""

    name, ending, order = "safetensors", ".safetensors", 1

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        from safetensors.torch import save

        network, architecture = job.student.pretrained.network, job.student.pretrained.architecture
        changed: Mapping[str, Any] | None = None
        if job.layout == "ours" and mergeable(network):  # as shipped; spandrel wants the branches
            network, changed = merge(copy.deepcopy(network)), {"merged": True}
        # spandrel's keys are those of its own module.
        state = (network.model if isinstance(network, SpandrelNetwork) else network).state_dict()
        if job.layout == "spandrel":
            state, changed = for_spandrel(network, architecture)
            if architecture == "EDSR":
                job.remarks.append(
                    "spandrel 0.4.2 has no EDSR: this file is in EDSR-PyTorch's layout, which spandrel loads after"
                    " basicsr.export.spandrel_edsr.register(); elsewhere (chaiNNer) use the ONNX file"
                )
        if job.precision == "fp16":
            state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        separate = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        path.write_bytes(save(separate, {"format": "pt", **job.metadata(changed)}))
        exact = job.precision == "float32" and job.layout == "ours"
        checks = job.compare("safetensors", load_pretrained(path).network, tolerance=0.0 if exact else None)
        if job.layout == "spandrel":
            # spandrel's SwinIR pads by a single reflection: a side must be longer than what it lacks to a window.
            smallest = max(16, smallest_side(network) // 2 + 1)
            checks += job.compare("safetensors (spandrel)", spandrel_runner(path, architecture), smallest=smallest)
        return checks


def for_spandrel(network: nn.Module, architecture: str) -> Converted:
    """Weights that spandrel 0.4.2 loads with the same outputs; CheckpointError if it knows no such layout.

    RCAN gets its authors' keys, SwinIR keeps its own, EDSR gets EDSR-PyTorch's, for `spandrel_edsr.register`.
    """
    converters: dict[str, Callable[[Any, State], Converted]] = {"EDSR": _edsr, "RCAN": _rcan, "SwinIR": _swinir}
    if architecture == "SPAN" and mergeable(network):
        return _span(network)
    if architecture not in converters or isinstance(network, SpandrelNetwork):
        if architecture == "NAFNet" or isinstance(network, SpandrelNetwork) or _is_spandrels(network):
            raise CheckpointError(
                f"--layout spandrel: spandrel loads {architecture} as --layout ours writes it; give that"
            )
        raise CheckpointError(
            f"--layout spandrel: {architecture} has no layout that spandrel loads; give --layout ours, or one of"
            f" {', '.join(converters)}"
        )
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    try:
        return converters[architecture](network, state)
    except UnsupportedWeights as error:
        raise CheckpointError(f"--layout spandrel: {error}; give --layout ours") from error


def _is_spandrels(network: nn.Module) -> bool:
    with suppress(NotRecognised):
        return bool(SpandrelNetwork(network.state_dict()).architecture)
    return False


def _edsr(network: Any, state: State) -> Converted:
    found = recognise(state)
    assumed = found.options["res_scale"] if found is not None else 1.0
    _scale(state, r"body\.\d+\.conv2\.(weight|bias)", _res_scale(network) / assumed)
    converted = to_edsr_pytorch(state, img_range=network.img_range, rgb_mean=network.mean.flatten().tolist())
    return converted, {"res_scale": assumed, **_range_of(converted)}


def _rcan(network: Any, state: State) -> Converted:
    # The attention sees the branch before the factor, so it must see the factor's inverse.
    factor = _res_scale(network)
    if not factor:
        raise UnsupportedWeights("a network with res_scale 0 has no residual branches")
    _scale(state, r"body\.\d+\.residual_group\.\d+\.rcab\.2\.(weight|bias)", factor)
    _scale(state, r"body\.\d+\.residual_group\.\d+\.rcab\.3\.attention\.1\.weight", 1 / factor)
    converted = to_original_rcan(state, img_range=network.img_range, rgb_mean=network.mean.flatten().tolist())
    return converted, {"res_scale": 1.0, **_range_of(converted)}


def _swinir(network: Any, state: State) -> Converted:
    assumed = 255.0 if network.window_size == 7 else 1.0  # spandrel's: the published JPEG networks have 7
    last = "upsample.0" if network.upsampler == "pixelshuffledirect" else "conv_last"
    _scale(state, r"conv_first\.weight", network.img_range / assumed)
    _scale(state, rf"{re.escape(last)}\.(weight|bias)", assumed / network.img_range)
    return state, {"img_range": assumed}


def _span(network: Any) -> Converted:
    """spandrel knows it with all branches only, and with its published range and mean colour, or without any."""
    state, given = dict(network.state_dict()), (network.img_range, *network.mean.flatten().tolist())
    if given == (1.0, 0.0, 0.0, 0.0):
        return {**state, "no_norm": torch.zeros(1)}, {}
    if not torch.allclose(torch.tensor(given), torch.tensor((255.0, *DIV2K_MEAN)), atol=1e-6):
        raise CheckpointError(
            "--layout spandrel: spandrel takes a SPAN's img_range to be 255 and its rgb_mean to be DIV2K's, or 1 and 0;"
            " give --layout ours"
        )
    return state, {}


def _range_of(converted: State) -> dict[str, Any]:
    """The range and mean colour that are read back from these weights; equal in effect to the network's own."""
    found = recognise(converted)
    return {key: found.options[key] for key in ("img_range", "rgb_mean")} if found is not None else {}


def _res_scale(network: nn.Module) -> float:
    """The factor on all residual branches: the blocks have it, the network does not."""
    found = (getattr(module, "res_scale", None) for module in network.modules())
    return next((float(value) for value in found if isinstance(value, (int, float))), 1.0)


def _scale(state: State, pattern: str, factor: float) -> None:
    for key in state if factor != 1 else ():
        if re.fullmatch(pattern, key):
            state[key] = (state[key].double() * factor).to(torch.float32)


def spandrel_runner(path: Path, architecture: str) -> Callable[[Tensor], Tensor]:
    """Loads a file into spandrel itself; raises CheckpointError if it is refused or taken for another network."""
    import_torchvision()
    from spandrel import MAIN_REGISTRY, ModelLoader

    registry = MAIN_REGISTRY.copy()
    register(registry)
    try:
        with quiet():
            descriptor = ModelLoader(device="cpu", registry=registry).load_from_file(path)
    except Exception as error:  # whatever a network's code raises on weights unlike its own
        raise CheckpointError(
            f"spandrel does not load {path.name} ({first_line(error)}); give --layout ours"
        ) from error
    if descriptor.architecture.id != architecture:
        raise CheckpointError(f"spandrel takes {path.name} for {descriptor.architecture.id}; give --layout ours")
    # The public call clips to [0, 1], and would hide differences beyond.
    return descriptor.model.float().eval()
