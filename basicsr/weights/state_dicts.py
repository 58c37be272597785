"""Files of weights as they are found in the world: which kinds are read, and where in them the state dict is."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from basicsr.files.safe_pickles import Refused
from basicsr.files.safetensors_files import read_safetensors
from basicsr.files.torch_files import opened, read_torch_file
from basicsr.files.weight_checks import check_not_all_zero, check_weights
from basicsr.utils.errors import CheckpointError

# Where state dicts are kept, in the order of preference: BasicSR's names, then others'.
_STATE_KEYS = (
    *("params_ema", "params", "state_dict", "model_state_dict", "params-ema"),
    *("model", "net", "netG", "net_g", "network_g", "generator", "G", "network"),
)
# The longest name of a weight, and the most that is shown of other names in a file.
_SHOWN = 1000
# How many prefixes that all names share are taken off, one after the other.
_MAX_OWNERS = 8
# Names under which training scripts hold the network that others want to have.
_OWNERS = ("netG", "net_g", "generator", "G", "model", "network", "net", "student")


@dataclass(frozen=True)
class WeightFile:
    """What a file holds beside its name.

    Attributes:
        state: the weights by key, without DataParallel's and torch.compile's prefixes.
        key: the name under which the weights lie in the file; None at its top.
        network: the options of the network, if the file says so; data of unknown origin.
        metadata: `training` as our training writes it, and what a safetensors header says.
        remark: which weights were taken, where others than asked for; else None.
    """

    state: dict[str, Tensor]
    key: str | None = None
    network: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    remark: str | None = None


def read_weights(path: str | os.PathLike[str], param_key: str | None = None, *, only_this: bool = False) -> WeightFile:
    """Reads a file written by torch.save or by safetensors; runs no code from it.

    Args:
        path: the file.
        param_key: which of several state dicts to take. Another is taken where it is absent, and a file without any is
            read as the state dict itself. None prefers `params_ema`, then `params`.
        only_this: refuse a file without `param_key`.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds no weights (`weight_checks`).
    """
    content, header = _content_of(Path(path))
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, expected a state dict")
    held = [str(key) for key, value in content.items() if _holds_tensors(value)]
    if only_this and param_key is not None and not _holds_tensors(content.get(param_key)):
        there = (
            f"it has {', '.join(held)[:_SHOWN]}; give one of these"
            if held
            else "it has one set without a name; ask for none"
        )
        raise CheckpointError(f"checkpoint {path} has no weights '{param_key}', {there}")
    key, tensors, remark = _select(content, param_key, path)
    named = [(_name(key, path), value) for key, value in tensors.items() if isinstance(value, Tensor)]
    state = _by_bare_name(named, path)
    if not state:
        asked = f" under '{param_key}', a usual key" if param_key else " under a usual key"
        raise CheckpointError(
            f"checkpoint {path} holds no tensors{asked} ({', '.join(_STATE_KEYS[:3])}) or at its top"
            f"{_elsewhere(content, held)}"
        )
    check_weights(state, path)
    check_not_all_zero(state, path)
    metadata = {**header, **({"training": content["training"]} if isinstance(content.get("training"), Mapping) else {})}
    network = metadata.pop("network", None) if header else content.get("network")
    is_block = isinstance(network, Mapping) and isinstance(network.get("type"), str)
    return WeightFile(state, key, network if is_block else None, metadata, remark)


def _content_of(path: Path) -> tuple[Any, dict[str, Any]]:
    """What a file holds, and what a safetensors header says beside it."""
    with opened(path) as (file, size):
        if path.suffix == ".state":
            raise Refused("it is what else a training needs to go on; give the weights, models/net_g_*.pth")
        if path.suffix.lower() == ".onnx":
            raise Refused("it is an ONNX graph; give the PyTorch weights that it was made from")
        head = file.read(9)
        announced = int.from_bytes(head[:8], "little")
        if path.suffix != ".safetensors" and not (head[8:] == b"{" and announced <= size - 8):
            return read_torch_file(file, size), {}
        tensors, metadata = read_safetensors(file, size)
        return tensors, {key: _meaning(value) for key, value in metadata.items()}


def inner_states(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state itself, then what is left without prefixes: one that all keys share, or a usual one such as netG."""
    yield dict(state)
    yield from _unwrapped(state)
    for owner in _OWNERS:
        inner = _under(state, owner)
        if inner and len(inner) < len(state):
            yield inner
            yield from _unwrapped(inner)


def _unwrapped(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for _ in range(_MAX_OWNERS):
        first = {key.split(".", 1)[0] for key in state}
        state = _under(state, first.pop()) if len(first) == 1 else {}
        if not state:
            return
        yield dict(state)


def _under(state: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    prefix = f"{owner}."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _name(key: object, path: str | os.PathLike[str]) -> str:
    """The name of a weight, if messages and tables can show it: no longer than any network's, and printable."""
    name = str(key)
    if len(name) > _SHOWN or not name.isprintable():
        raise CheckpointError(f"checkpoint {path} was not loaded: {name[:50]!r} is no name of a weight")
    return name


def _by_bare_name(named: list[tuple[str, Tensor]], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Weights without the prefixes of wrappers; two of one name are refused unless they are equal."""
    found: dict[str, tuple[str, Tensor]] = {}
    for name, value in named:
        key = name.replace("_orig_mod.", "")
        while key.startswith("module."):
            key = key.removeprefix("module.")
        if key not in found:
            found[key] = name, value
            continue
        first, other = found[key]
        if other.dtype != value.dtype or other.shape != value.shape or not torch.equal(other, value):
            raise CheckpointError(
                f"checkpoint {path} was not loaded: it has the weight '{key}' twice, with different values, as"
                f" '{first}' and '{name}'; remove one of them"
            )
    return {key: value for key, (_, value) in found.items()}


def _select(
    content: Mapping[Any, Any], param_key: str | None, path: str | os.PathLike[str]
) -> tuple[str | None, Mapping[Any, Any], str | None]:
    """Where the weights lie, the weights, and a remark: what lies under a usual key, perhaps one level deeper."""
    for key in (param_key, *_STATE_KEYS) if param_key else _STATE_KEYS:
        if _holds_tensors(content.get(key)):
            other = param_key is not None and key != param_key
            return key, content[key], f"{path} has no '{param_key}': loaded '{key}'" if other else None
    inside = [key for key, value in content.items() if _holds_tensors(value)]
    if len(inside) == 1 and not _holds_tensors(content):
        return inside[0], content[inside[0]], f"{path} has its weights under '{_name(inside[0], path)}'"
    for outer, key in itertools.product(_STATE_KEYS, _STATE_KEYS) if not inside else ():
        if isinstance(content.get(outer), Mapping) and _holds_tensors(content[outer].get(key)):
            return f"{outer}.{key}", content[outer][key], f"{path} has its weights under '{outer}', '{key}'"
    return None, content, None


def _elsewhere(content: Mapping[Any, Any], held: list[str]) -> str:
    """Where else in a file there are tensors, and what to do; empty where there are none."""
    if held:
        return f", but under {', '.join(map(repr, held))[:_SHOWN]}: give one of these as param_key"
    for outer, entry in content.items():
        for key, value in entry.items() if isinstance(entry, Mapping) else ():
            if _holds_tensors(value):
                return f", but under {f'{str(outer)!r}, {str(key)!r}'[:_SHOWN]}: save these by themselves"
    return ""


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _meaning(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
