"""Layouts of plain networks' weights: ours, ECBSR's, and those of the AIMET model zoo's QuickSRNet, ABPN and SESR."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from basicsr.archs.recognition import Recognised, State, UnsupportedWeights, numbered, shuffled_scale
from basicsr.archs.reparameterization import BRANCHES

_Read = tuple[State, dict[str, Any], tuple[str, ...]]
"""The state under our keys, options that shapes do not show, and what of them was assumed."""

_CONV = rf"(?:(?:{'|'.join(BRANCHES)})\.[0-2]\.(?:weight|bias|scale)|identity|weight|bias)"
_OURS = re.compile(rf"(?:conv_first|body\.\d+)\.(?:conv\.{_CONV}|act\.weight)|conv_last\.{_CONV}")
_EDGES = {"conv1x1_sbx": "sobel_x", "conv1x1_sby": "sobel_y", "conv1x1_lpl": "laplacian"}
# ECBSR's keys of one convolution; None: without effect, as the filters' entries add up to 0, or fixed.
_ECB: dict[str, str | None] = {
    "conv3x3.weight": "3x3.0.weight",
    "conv3x3.bias": "3x3.0.bias",
    "conv1x1_3x3.k0": "1x1-3x3.0.weight",
    "conv1x1_3x3.b0": "1x1-3x3.0.bias",
    "conv1x1_3x3.k1": "1x1-3x3.1.weight",
    "conv1x1_3x3.b1": "1x1-3x3.1.bias",
    **{f"{theirs}.k0": f"{ours}.0.weight" for theirs, ours in _EDGES.items()},
    **{f"{theirs}.scale": f"{ours}.1.scale" for theirs, ours in _EDGES.items()},
    **{f"{theirs}.bias": f"{ours}.1.bias" for theirs, ours in _EDGES.items()},
    **{f"{theirs}.{key}": None for theirs in _EDGES for key in ("b0", "mask")},
}


def plain_layout(state: Mapping[str, Tensor]) -> Recognised | None:
    """See `PlainSR.from_published`."""
    readers: dict[str, Callable[[Mapping[str, Tensor]], _Read | None]] = {
        "": _ours,
        "ECBSR's": _ecbsr,
        "AIMET's QuickSRNet or ABPN": _quicksrnet_or_abpn,
        "AIMET's SESR": _sesr,
    }
    for layout, read in readers.items():
        if (found := read(state)) is None:
            continue
        converted, hidden, assumed = found
        shown = _shown(converted)
        if shown is None:
            return None
        options = {"type": "PlainSR", **shown, **hidden}
        return Recognised("PlainSR", layout, options, shown["upscale"], converted, assumed)
    return None


def _shown(state: State) -> dict[str, Any] | None:
    """The options that keys and shapes under our names show."""
    features, colours, _, outer = _kernel_shape(state, "conv_first.conv.")
    outputs, last_inputs, _, last_side = _kernel_shape(state, "conv_last.")
    convolutions = numbered(state, "body")
    shapes = [_kernel_shape(state, f"body.{number}.conv.") for number in range(convolutions)]
    scale = shuffled_scale(outputs, colours)
    regular = all(shape[:2] == (features, features) and shape[3] == 3 for shape in shapes)
    if not (scale and shapes and regular and last_inputs == features and outer == last_side and outer in (3, 5)):
        return None
    merged = "conv_last.weight" in state
    shown: dict[str, Any] = {
        "num_in_ch": colours,
        "num_out_ch": colours,
        "num_feat": features,
        "num_conv": convolutions,
        "upscale": scale,
        "outer_kernel": outer,
        "act_type": "prelu" if "conv_first.act.weight" in state else "relu",
        "merged": merged,
    }
    if not merged:
        prefix = "body.0.conv."
        names = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
        shown["branches"] = tuple(name for name in BRANCHES if name in names)
        if hidden := shapes[0][2]:
            shown["expansion"] = hidden / features
    return shown


def _kernel_shape(state: State, prefix: str) -> tuple[int, int, int, int]:
    """Channels out and in, between the parts of a branch (0: it has one part), and the side, of one convolution."""
    if f"{prefix}weight" in state:
        outputs, inputs, side, _ = state[f"{prefix}weight"].shape
        return outputs, inputs, 0, side
    hidden, chosen = 0, None
    for name in (name for name in BRANCHES if f"{prefix}{name}.0.weight" in state):
        parts = [state[f"{prefix}{name}.{number}.weight"] for number in range(name.count("-") + 1)]
        hidden = parts[0].shape[0] if len(parts) > 1 else hidden
        chosen = parts if chosen is None or "3x3" in name else chosen
    if chosen is None:
        raise KeyError(prefix)
    return chosen[-1].shape[0], chosen[0].shape[1], hidden, max(part.shape[-1] for part in chosen)


def _ours(state: Mapping[str, Tensor]) -> _Read | None:
    if not all(map(_OURS.fullmatch, state)):
        return None
    assumed: tuple[str, ...] = ("the enlarged input added", "no other residual", "not clipped")
    if "conv_first.act.weight" not in state:
        assumed = ("act_type relu", *assumed)
    return dict(state), {"residual": True, "body_residual": False, "clip": False}, assumed


def _ecbsr(state: Mapping[str, Tensor]) -> _Read | None:
    """Branches as trained, or the convolutions `conv3x3` alone as its converter writes them."""
    convolutions, merged = numbered(state, "backbone"), "backbone.0.conv1x1_3x3.k0" not in state
    names = _names(convolutions)
    converted: State = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        number, _, part = rest.partition(".")
        if head != "backbone" or not number.isdecimal() or part not in (*_ECB, "act.weight"):
            return None
        name = names[int(number)]
        if part == "act.weight":
            converted[f"{name.removesuffix('conv.')}{part}"] = value
        elif merged:
            converted[f"{name}{part.removeprefix('conv3x3.')}"] = value
        elif (ours := _ECB[part]) is not None:
            converted[f"{name}{ours}"] = value.flatten() if part.endswith(".scale") else value
    assumed: tuple[str, ...] = () if merged else ("no identity branches",)
    if "conv_first.act.weight" not in converted:
        assumed = ("act_type relu", *assumed)
    return converted, {"residual": True, "body_residual": False, "clip": False}, assumed


def _quicksrnet_or_abpn(state: Mapping[str, Tensor]) -> _Read | None:
    """Plain convolutions `cnn.0`, `cnn.2`, ...; QuickSRNet's last one is `conv_last`, ABPN's the last of these."""
    sources = [f"cnn.{2 * number}." for number in range(numbered(state, "cnn"))]
    is_quicksrnet = "conv_last.weight" in state
    sources += ["conv_last."] if is_quicksrnet else []
    anchored = "anchor.net.weight" in state
    known = {f"{source}{kind}" for source in (*sources, *(["anchor.net."] if anchored else [])) for kind in _KINDS}
    if state.keys() != known or not (anchored or is_quicksrnet):
        return None
    converted = _renamed(state, sources)
    if anchored:
        _check_anchor(state, converted)
    hidden = {"residual": anchored, "body_residual": False, "clip": is_quicksrnet}
    if is_quicksrnet:
        return converted, {**hidden, "act_type": "clipped_relu"}, ("act_type clipped_relu", "clipped to [0, 1]")
    return converted, hidden, ("act_type relu", "not clipped")


def _sesr(state: Mapping[str, Tensor]) -> _Read | None:
    """Pairs of convolutions `conv_expand` and `conv_squeeze`, or the former alone, collapsed; taken as one each."""
    blocks = numbered(state, "residual_block")
    sources = ["conv_first.", *(f"residual_block.{number}." for number in range(blocks)), "conv_last."]
    collapsed = "conv_first.conv_squeeze.weight" not in state
    parts = ("conv_expand.weight", "conv_expand.bias" if collapsed else "conv_squeeze.weight", "conv_squeeze.bias")
    known = {f"{source}{part}" for source in sources for part in parts[: 2 if collapsed else 3]}
    if state.keys() != known | {"anchor.net.weight", "anchor.net.bias"}:
        return None
    kernels: State = {}
    for source in sources:
        weight = state[f"{source}conv_expand.weight"]
        if not collapsed:
            weight = torch.tensordot(state[f"{source}conv_squeeze.weight"][..., 0, 0], weight, ([1], [0]))
            if source.startswith("residual_block."):
                channels = torch.arange(len(weight))
                weight[channels, channels, 1, 1] += 1
        kernels[f"{source}weight"], kernels[f"{source}bias"] = weight, state[f"{source}{parts[1 if collapsed else 2]}"]
    converted = _renamed(kernels, sources)
    _check_anchor(state, converted)
    return converted, {"residual": True, "body_residual": True, "clip": False}, ("act_type relu", "not clipped")


_KINDS = ("weight", "bias")


def _names(convolutions: int) -> list[str]:
    """Our names of so many convolutions, from the first to the last."""
    return ["conv_first.conv.", *(f"body.{number}.conv." for number in range(convolutions - 2)), "conv_last."]


def _renamed(state: Mapping[str, Tensor], sources: list[str]) -> State:
    """The merged state of convolutions under these prefixes, in their order."""
    pairs = zip(sources, _names(len(sources)), strict=True)
    return {f"{ours}{kind}": state[f"{theirs}{kind}"] for theirs, ours in pairs for kind in _KINDS}


def _check_anchor(state: Mapping[str, Tensor], converted: State) -> None:
    """Raises unless the convolution beside the network repeats the input's pixels and does nothing else."""
    outputs, colours = len(converted["conv_last.weight"]), converted["conv_first.conv.weight"].shape[1]
    repeated = torch.eye(colours).repeat_interleave(outputs // colours, 0)[..., None, None]
    weight, bias = (state[f"anchor.net.{kind}"].float() for kind in _KINDS)
    if weight.shape != repeated.shape or not torch.allclose(weight, repeated, atol=1e-6) or bias.abs().max() > 1e-6:
        raise UnsupportedWeights(
            "it is a plain network of the AIMET model zoo whose convolution on the input was trained, too; ours repeats"
            " the input's pixels"
        )
