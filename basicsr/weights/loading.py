"""From a file of weights to a network's: where the state dict is in it, which layout it has, and whether it fits."""

from __future__ import annotations

import inspect
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.archs import build_network
from basicsr.archs.recognition import Recognised, UnsupportedWeights, described
from basicsr.files.safe_pickles import Refused
from basicsr.files.torch_files import check_not_all_zero, check_weights, opened, read_safetensors, read_torch_file
from basicsr.quantization.network import quantization_of
from basicsr.quantization.records import is_range, quantize_as_recorded
from basicsr.utils.errors import CheckpointError
from basicsr.utils.logger import WarningRemark
from basicsr.utils.registry import ARCH_REGISTRY
from basicsr.utils.reparameterization import merge, mergeable
from basicsr.weights.derived_buffers import derived_keys, is_mask
from basicsr.weights.layouts import recognise

HIDDEN_OPTIONS = ("res_scale", "img_range", "rgb_mean")
"""Options of networks that no shape of their weights shows; a class adds its own as `hidden_options`."""

_ROWS = 8
_LONGEST_OTHER = 50
_NOT_STRICT = "path: strict_load_g: false (or _t, _d; strict: false in a row of networks or a further teacher)"
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


class TwoNetworks(CheckpointError):
    """A file has two sets of weights, with different values, that a network could take."""


def hidden_options(factory: object) -> tuple[str, ...]:
    """The options of a network's class that no shape shows."""
    return (*HIDDEN_OPTIONS, *getattr(factory, "hidden_options", ()))


def load_network(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    param_key: str | None = "params",
    strict: bool = True,
    options: Mapping[str, Any] | None = None,
) -> str | None:
    """Loads weights from a file of torch.save or safetensors, in any published layout, without `module.` and the like.

    Args:
        network: receives the weights.
        path: file with a state dict, or with state dicts under keys such as `params` and `params_ema`.
        param_key: which of these to take; another usual key, or the file itself, where it is absent.
        strict: whether every weight must be there and no other. If not, those that fit are loaded.
        options: those that the network was built from, which those recorded in the file must not contradict.

    Returns:
        A remark in one line where other keys were used, weights were converted or left out; else None.

    Raises:
        CheckpointError: the file cannot be read, or does not fit: a line, and a table of keys and shapes.
    """
    file = read_weights(path, param_key)
    remarks = [file.remark] if file.remark else []
    if contradiction := _contradiction(options or {}, file.network or {}):
        theirs, ours = contradiction
        line = f"{path} was trained with {theirs}, the options say {ours}"
        if strict:
            raise CheckpointError(f"checkpoint {line}: take {theirs}, or load it all the same with {_NOT_STRICT}")
        remarks.append(WarningRemark(line))
    if quantization_of(network) is None:
        remarks += load_state(network, file.state, path, strict=strict)
        remarks += quantize_like(network, file, path)
    else:
        remarks += load_state(network, {**file.state, **file.ranges}, path, strict=strict)
    kind = WarningRemark if any(isinstance(remark, WarningRemark) for remark in remarks) else str
    return kind("; ".join(remarks)) or None


def _contradiction(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str] | None:
    """How two options of one network differ in what no shape shows: theirs, such as 'img_range 1', and ours."""
    if not theirs or ours.get("type") != theirs.get("type") or ours["type"] not in ARCH_REGISTRY:
        return None
    factory = ARCH_REGISTRY.get(ours["type"])
    parameters = inspect.signature(factory).parameters
    for key in (key for key in hidden_options(factory) if key in parameters):
        values = [options.get(key, parameters[key].default) for options in (ours, theirs)]
        given, recorded = (list(map(float, value)) if isinstance(value, (list, tuple)) else value for value in values)
        if given != recorded:
            return f"{key} {recorded}", f"{key} {given}"
    return None


def load_state(
    network: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str], *, strict: bool = True
) -> list[str]:
    """As `load_network`, from a state dict in memory; returns remarks of one line each."""
    expected = network.state_dict()
    matched, remarks = _matching(network, expected, state, path)
    check_weights(matched, path, expected)
    # The network's own masks stand in for those of another size, and for those that were left out.
    complete, derived = dict(matched), derived_keys(network)
    if any(map(is_mask, derived)) and not any(map(is_mask, matched)) and not derived.isdisjoint(matched):
        remarks.append(f"{path} has no attention masks; the network's own, of shifted windows, are taken")
    for key in derived:
        if key not in matched or (is_mask(key) and matched[key].shape != expected[key].shape):
            complete[key] = expected[key]
    mismatches = []
    for key in dict.fromkeys([*expected, *complete]):
        given, wanted = (str(tuple(side[key].shape)) if key in side else "-" for side in (complete, expected))
        if given != wanted:
            mismatches.append((key, given, wanted))
    if mismatches:
        loadable = len(expected) - sum(key in expected for key, *_ in mismatches)
        if strict or not loadable:
            found = next(filter(None, map(_recognised_or_none, [matched, *inner_states(state)])), None)
            raise CheckpointError(_refusal(network, expected, found, mismatches, path, loadable))
        remarks.append(WarningRemark(f"{path}: loaded what fits {type(network).__name__}; {_counts(mismatches)}"))
        unfit = {key for key, *_ in mismatches}
        complete = {key: value for key, value in complete.items() if key not in unfit}
    network.load_state_dict(complete, strict=False)
    return remarks


def _matching(
    network: Any, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Finds the network's weights inside `state`, and turns them into our layout if they have another."""
    needed = expected.keys() - derived_keys(network)
    inners = list(inner_states(state))
    fitting = _of_these_shapes(state, expected, needed) or [inner for inner in inners if needed <= inner.keys()]
    for other in fitting[1:]:
        if differing := next((key for key in needed if not torch.equal(other[key], fitting[0][key])), None):
            raise TwoNetworks(
                f"checkpoint {path} holds two networks that fit {type(network).__name__}, with different values of"
                f" '{differing}'; save the one that is meant by itself"
            )
    if fitting and fitting[0].keys() <= expected.keys():
        return fitting[0], []
    for inner in inners:
        try:
            found = recognise(inner)
        except UnsupportedWeights as error:
            if fitting:
                break
            raise CheckpointError(f"checkpoint {path} does not fit {type(network).__name__}: {error}") from error
        if found is not None and found.architecture == type(network).__name__:
            if found.has_range:  # a mean shift in the file decides what the network's range and mean colour must be
                wanted, mean = found.options["img_range"], torch.tensor(found.options["rgb_mean"])
                given = network.mean.flatten().cpu()
                fits = given.shape == mean.shape and torch.allclose(given, mean.to(given), atol=1e-5)
                if not fits or abs(network.img_range - wanted) > 1e-5 * wanted:
                    shown = ", ".join(f"{value:.4f}" for value in mean.tolist())
                    raise CheckpointError(
                        f"checkpoint {path} is for images in [0, {wanted:g}] with the mean colour ({shown}); set the"
                        f" network's img_range to {wanted:g} and rgb_mean to [{shown}], or use type: auto"
                    )
            if found.options.get("merged") is False and not mergeable(network):
                branched = build_network(found.options)
                branched.load_state_dict(found.state)
                return dict(merge(branched).state_dict()), [f"{path}: its branches were merged"]
            same_keys = found.state.keys() == inner.keys()
            return found.state, [] if same_keys else [f"{path}: converted (layout: {found.layout})"]
    if fitting:
        return fitting[0], []
    return max(inners, key=lambda inner: len(needed & inner.keys())), []


def _of_these_shapes(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], needed: set[str]
) -> list[dict[str, Tensor]]:
    """What lies under each prefix, such as `model.` and `model_ema.`, that has all that the network needs."""
    some = max(needed, key=len, default="")
    prefixes = [key.removesuffix(some) for key in state if f".{key}".endswith(f".{some}")] if some else []
    inners = ({key[len(at) :]: state[key] for key in state if key.startswith(at)} for at in prefixes)
    return [
        inner for inner in inners if all(key in inner and inner[key].shape == expected[key].shape for key in needed)
    ]


def _recognised_or_none(state: Mapping[str, Tensor]) -> Recognised | None:
    with suppress(UnsupportedWeights):
        return recognise(state)
    return None


_Mismatch = tuple[str, str, str]
"""A key, its shape in the file and in the network, '-' where it is missing."""


def _counts(mismatches: list[_Mismatch]) -> str:
    missing = sum(given == "-" for _, given, _ in mismatches)
    unexpected = sum(wanted == "-" for _, _, wanted in mismatches)
    kinds = (
        (missing, "is missing", "are missing"),
        (unexpected, "is not the network's", "are not the network's"),
        (len(mismatches) - missing - unexpected, "has another shape", "have another shape"),
    )
    return ", ".join(
        f"1 weight {one}" if count == 1 else f"{count} weights {more}" for count, one, more in kinds if count
    )


def _refusal(
    network: nn.Module,
    expected: Mapping[str, Tensor],
    found: Recognised | None,
    mismatches: list[_Mismatch],
    path: str | os.PathLike[str],
    loadable: int,
) -> str:
    name = type(network).__name__
    own = _recognised_or_none(expected)
    advice = f"Check the network's options, or load what fits by {_NOT_STRICT}"
    if not loadable:
        advice = "None of its weights fits: give another file, or mend the network's options"
    if found is None or own is None or found.architecture != own.architecture:
        looks = f", it looks like {found}" if found is not None else ""
        summary = f"checkpoint {path} is for another network than this {name}{looks}"
    else:
        ignored = ("img_size", "noise_level", *hidden_options(type(network)))
        keys = [key for key in found.options if key not in ignored and found.options[key] != own.options.get(key)]
        theirs, ours = (
            ", ".join(described({key: side.options[key]}) or f"{key} {side.options[key]}" for key in keys)
            for side in (found, own)
        )
        summary = f"checkpoint {path} is for another {name}: it has {theirs}, the options say {ours}"
        if not keys:
            summary = f"checkpoint {path} holds this {name}, but not exactly its weights"
        if found.scale != own.scale:
            summary = f"checkpoint {path} has the wrong scale: it is for x{found.scale}, the options say x{own.scale}"
            summary += f" ({theirs} instead of {ours})" if len(keys) > 1 else ""
            advice = f"Give the file for x{own.scale}, or change the options"
    rows = [("key", "in the file", "in the network"), *mismatches[:_ROWS]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if len(mismatches) > _ROWS:
        table.append(f"  and {len(mismatches) - _ROWS} more")
    return "\n".join([f"{summary}: {_counts(mismatches)}. {advice}", *(line.rstrip() for line in table)])


def quantize_like(network: nn.Module, file: WeightFile, path: str | os.PathLike[str]) -> list[str]:
    """Gives a float network, with the weights of `file`, the quantisers of it; remarks; CheckpointError if unfit."""
    if file.quantization is None:
        return []
    try:
        quantization = quantize_as_recorded(network, file.quantization, file.ranges)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path} is of a quantised network, but {error}") from error
    return [f"{path}: {quantization}"]


@dataclass(frozen=True)
class WeightFile:
    """What a file of weights holds.

    Attributes:
        state: the weights by key, without DataParallel's and torch.compile's prefixes; not the `ranges`.
        key: the name under which the weights lie in the file; None at its top.
        network: the options of the network, if the file says so; data of unknown origin.
        metadata: `training` as our training writes it, and what a safetensors header says.
        remark: which weights were taken, where others than asked for; else None.
        others: other names under which the file has tensors.
        quantization: how the network is quantised, as the file says; data of unknown origin.
        ranges: of a quantised network, the numbers of its quantisers by key.
    """

    state: dict[str, Tensor]
    key: str | None = None
    network: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    remark: str | None = None
    others: tuple[str, ...] = ()
    quantization: Mapping[str, Any] | None = None
    ranges: Mapping[str, Tensor] = field(default_factory=dict)


def read_weights(path: str | os.PathLike[str], param_key: str | None = None, *, only_this: bool = False) -> WeightFile:
    """Reads a file of torch.save or safetensors without running code; raises CheckpointError if it holds no weights.

    `param_key` is as for `load_network`, None prefers `params_ema`, then `params`; `only_this` refuses others.
    """
    content, header = _content_of(Path(path))
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, expected a state dict")
    held = [str(key) for key, value in content.items() if _holds_tensors(value)]
    if only_this and param_key is not None and not _holds_tensors(content.get(param_key)):
        there = "it has one set without a name; ask for none"
        if held:
            there = f"it has {', '.join(held)[:_SHOWN]}; give one of these"
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
    network, quantization = (
        metadata.pop(name, None) if header else content.get(name) for name in ("network", "quantization")
    )
    quantization = quantization if isinstance(quantization, Mapping) else None
    ranges = {name: value for name, value in state.items() if is_range(name)}
    if ranges and quantization is None:
        raise CheckpointError(
            f"checkpoint {path} has ranges of a quantised network ('{next(iter(ranges))}'), but no block 'quantization'"
            " that says how it is quantised; give the file as it was written"
        )
    state = {name: value for name, value in state.items() if name not in ranges}
    is_block = isinstance(network, Mapping) and isinstance(network.get("type"), str)
    others = tuple(name[:_LONGEST_OTHER] for name in held if name != key and name.isprintable())
    return WeightFile(state, key, network if is_block else None, metadata, remark, others[:_ROWS], quantization, ranges)


def _content_of(path: Path) -> tuple[Any, dict[str, Any]]:
    """What a file holds, and what a safetensors header says beside it."""
    with opened(path) as (file, size):
        if path.suffix == ".state":
            raise Refused("it is what else a training needs to go on; give the weights, models/net_g_*.pth")
        head = file.read(9)
        announced = int.from_bytes(head[:8], "little")
        if path.suffix != ".safetensors" and not (head[8:] == b"{" and announced <= size - 8):
            return read_torch_file(file, size), {}
        tensors, texts = read_safetensors(file, size)
        metadata: dict[str, Any] = dict(texts)
        for key, text in texts.items():
            with suppress(ValueError, RecursionError):
                metadata[key] = json.loads(text)
        return tensors, metadata


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
