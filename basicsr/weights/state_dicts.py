"""Files of weights as they are found in the world: which kinds are read, and where in them the state dict is."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from basicsr.files.safetensors_files import load_safetensors
from basicsr.files.stored_zip import Refused, StoredZip
from basicsr.files.torch_files import load_tensors, opened, other_kind
from basicsr.files.weight_checks import check_not_all_zero, check_weights, without_doubles
from basicsr.utils.errors import CheckpointError

# Where state dicts are kept, in the order of preference: BasicSR's names, then others'.
_STATE_KEYS = (
    *("params_ema", "params", "state_dict", "model_state_dict", "params-ema"),
    *("model", "net", "netG", "net_g", "network_g", "generator", "G", "network"),
)
# How files of images begin.
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")
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
        CheckpointError: the file is missing, damaged, of another kind, or holds no weights or what are none
            (`weight_checks`).
    """
    content: Any
    header: dict[str, Any] = {}
    if _kind_of(Path(path)) == "safetensors":
        content, metadata = load_safetensors(Path(path))
        header = {key: _meaning(value) for key, value in metadata.items()}
    else:
        content = load_tensors(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, expected a state dict")
    if only_this and param_key is not None and not _holds_tensors(content.get(param_key)):
        held = ", ".join(str(key) for key, value in content.items() if _holds_tensors(value))[:_SHOWN]
        there = f"it has {held}; give one of these" if held else "it has one set without a name; ask for none"
        raise CheckpointError(f"checkpoint {path} has no weights '{param_key}', {there}")
    key, tensors, remark = _select(content, param_key, path)
    names = [(_name(key, path), value) for key, value in tensors.items() if isinstance(value, Tensor)]
    state = without_doubles([(_bare(name), name, value) for name, value in names], path)
    check_weights(state, path)
    check_not_all_zero(state, path)
    if not state:
        asked = f" under '{param_key}', a usual key" if param_key else " under a usual key"
        usual = ", ".join(_STATE_KEYS[:3])
        raise CheckpointError(f"checkpoint {path} holds no tensors{asked} ({usual}) or at its top{_elsewhere(content)}")
    recorded: Any = header.get("network") if header else content.get("network")
    metadata = dict(header)
    if isinstance(content.get("training"), Mapping):
        metadata["training"] = content["training"]
    metadata.pop("network", None)
    return WeightFile(state, key, recorded if _is_options(recorded) else None, metadata, remark)


def inner_states(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state itself, then what is left of it without prefixes: shared by all keys, or a usual owner's such as netG.

    Args:
        state: weights by key.
    """
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
    """The name of a weight, which messages and tables show.

    Raises:
        CheckpointError: it is longer than any network's, or has what a terminal would carry out.
    """
    name = str(key)
    if len(name) > _SHOWN or not name.isprintable():
        raise CheckpointError(f"checkpoint {path} was not loaded: {name[:50]!r} is no name of a weight")
    return name


def _bare(key: str) -> str:
    key = key.replace("_orig_mod.", "")
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key


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


def _elsewhere(content: Mapping[Any, Any]) -> str:
    """Where else in a file there are tensors, and what to do; empty where there are none."""
    inside = [repr(str(key)) for key, value in content.items() if _holds_tensors(value)]
    if inside:
        return f", but under {', '.join(inside)[:_SHOWN]}: give one of these as param_key"
    deeper = next(
        (
            f"{str(outer)!r}, {str(key)!r}"
            for outer, entry in content.items()
            if isinstance(entry, Mapping)
            for key, value in entry.items()
            if _holds_tensors(value)
        ),
        None,
    )
    return f", but under {deeper[:_SHOWN]}: save these by themselves" if deeper else ""


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _is_options(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("type"), str)


def _meaning(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _kind_of(path: Path) -> str:
    """'safetensors' or 'torch'; other kinds of file that pass for checkpoints are refused by name.

    Raises:
        CheckpointError: the file is missing, or is no file of weights.
    """
    with opened(path) as (file, size):
        head = file.read(512)
        reason = _no_weights(path, head) or (_no_weights_inside(file, size) if head.startswith(b"PK") else None)
    if reason:
        raise CheckpointError(f"checkpoint {path} was not loaded: {reason}")
    announced = int.from_bytes(head[:8], "little")
    is_safetensors = path.suffix == ".safetensors" or (head[8:9] == b"{" and announced <= size - 8)
    return "safetensors" if is_safetensors else "torch"


def _no_weights(path: Path, head: bytes) -> str | None:
    text = head.lstrip().lower()
    if not head:
        return "it is empty; fetch or copy it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page, not the file behind it; open the link in a browser and save the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head.startswith(_IMAGES):
        return "it is an image; give a file of weights, .pth or .safetensors"
    if path.suffix == ".state":
        return "it is what else a training needs to go on; give the weights, models/net_g_*.pth"
    if path.suffix.lower() == ".onnx":
        return "it is an ONNX graph; give the PyTorch weights that it was made from"
    return other_kind(head)


def _no_weights_inside(file: BinaryIO, size: int) -> str | None:
    try:
        names = list(StoredZip(file, size).members)
    except Exception as error:  # a damaged archive makes a reader fail in many ways
        return str(error) if isinstance(error, Refused) else "it is damaged; fetch or copy it again"
    if any("/code/" in name for name in names):
        return "it is a TorchScript program, which would have to be run; give its weights, saved by torch.save"
    if any(name.endswith("archive_format") for name in names):
        return "it is a program of torch.export, which would have to be run; give its weights, saved by torch.save"
    if names and not any(name.endswith("data.pkl") for name in names):
        shown = ", ".join(map(repr, names[:3]))[:200]
        return f"it is a ZIP archive of other files ({shown}); unpack it, or give another file"
    return None
