"""Weights as spandrel expects them: under the keys it knows, and with what it takes for granted made so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.export.tracing import first_line, quiet
from basicsr.utils.errors import CheckpointError
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise, to_edsr_pytorch, to_original_rcan
from basicsr.weights.mean_shift import UnsupportedWeights

State = dict[str, Tensor]


@dataclass(frozen=True)
class Converted:
    """Weights for spandrel.

    Attributes:
        state: the weights.
        changed: options of the network that these weights have instead of its own.
        remark: what the user is to know, or None.
    """

    state: State
    changed: Mapping[str, Any]
    remark: str | None = None


def for_spandrel(network: nn.Module, architecture: str) -> Converted:
    """Converts a network's weights to what spandrel 0.4.2 loads with the same outputs.

    RCAN gets its authors' keys, and SwinIR keeps its own. EDSR gets EDSR-PyTorch's: spandrel has no EDSR, but
    `spandrel_edsr.register` adds it. Factors that spandrel cannot know are multiplied into weights.

    Args:
        network: one of ours.
        architecture: its name in our registry.

    Raises:
        CheckpointError: the network has no layout that spandrel knows.
    """
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    makers: dict[str, Callable[[Any, State], Converted]] = {"EDSR": _edsr, "RCAN": _rcan, "SwinIR": _swinir}
    if architecture == "NAFNet":
        raise CheckpointError("--layout spandrel: spandrel loads NAFNet as --layout ours writes it; give that")
    if architecture not in makers:
        raise CheckpointError(
            f"--layout spandrel: {architecture} has no layout that spandrel loads; give --layout ours, or one of"
            f" {', '.join(makers)}"
        )
    try:
        return makers[architecture](network, state)
    except UnsupportedWeights as error:
        raise CheckpointError(f"--layout spandrel: {error}; give --layout ours") from error


def spandrel_runner(path: Path, architecture: str) -> Callable[[Tensor], Tensor]:
    """Loads a file into spandrel itself, for EDSR with our addition.

    Returns:
        A function from (B, C, H, W) to (B, C, sH, sW), not clipped.

    Raises:
        CheckpointError: spandrel does not load it, or takes it for another architecture.
    """
    import_torchvision()
    from spandrel import MAIN_REGISTRY, ModelLoader

    from basicsr.export.spandrel_edsr import register

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


def _edsr(network: Any, state: State) -> Converted:
    found = recognise(state)
    assumed = found.options["res_scale"] if found is not None else 1.0
    _scale(state, r"body\.\d+\.conv2\.(weight|bias)", _res_scale(network) / assumed)
    converted = to_edsr_pytorch(state, img_range=network.img_range, rgb_mean=network.mean.flatten().tolist())
    remark = (
        "spandrel 0.4.2 has no EDSR: this file is in EDSR-PyTorch's layout, which spandrel loads after"
        " basicsr.export.spandrel_edsr.register(); elsewhere (chaiNNer) use the ONNX file"
    )
    return Converted(converted, {"res_scale": assumed, **_range_of(converted)}, remark)


def _rcan(network: Any, state: State) -> Converted:
    # The attention sees the branch before the factor, so it must see the factor's inverse.
    factor = _res_scale(network)
    if not factor:
        raise UnsupportedWeights("a network with res_scale 0 has no residual branches")
    _scale(state, r"body\.\d+\.residual_group\.\d+\.rcab\.2\.(weight|bias)", factor)
    _scale(state, r"body\.\d+\.residual_group\.\d+\.rcab\.3\.attention\.1\.weight", 1 / factor)
    converted = to_original_rcan(state, img_range=network.img_range, rgb_mean=network.mean.flatten().tolist())
    return Converted(converted, {"res_scale": 1.0, **_range_of(converted)})


def _swinir(network: Any, state: State) -> Converted:
    assumed = 255.0 if network.window_size == 7 else 1.0  # spandrel's: the published JPEG networks have 7
    last = "upsample.0" if network.upsampler == "pixelshuffledirect" else "conv_last"
    _scale(state, r"conv_first\.weight", network.img_range / assumed)
    _scale(state, rf"{re.escape(last)}\.(weight|bias)", assumed / network.img_range)
    return Converted(state, {"img_range": assumed})


def _range_of(converted: State) -> dict[str, Any]:
    """The range and mean colour that are read back from these weights; equal in effect to the network's own."""
    found = recognise(converted)
    return {key: found.options[key] for key in ("img_range", "rgb_mean")} if found is not None else {}


def _res_scale(network: nn.Module) -> float:
    """The factor on all residual branches: the blocks have it, the network does not."""
    found = (getattr(module, "res_scale", None) for module in network.modules())
    return next((float(value) for value in found if isinstance(value, (int, float))), 1.0)


def _scale(state: State, pattern: str, factor: float) -> None:
    if factor == 1:
        return
    for key in state:
        if re.fullmatch(pattern, key):
            state[key] = (state[key].double() * factor).to(torch.float32)
