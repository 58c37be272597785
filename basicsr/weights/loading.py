"""Loading a network's weights from a checkpoint file, whichever published layout they have."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.files.weight_checks import check_weights
from basicsr.utils.errors import CheckpointError
from basicsr.utils.logger import WarningRemark
from basicsr.utils.registry import ARCH_REGISTRY
from basicsr.weights.layouts import Recognised, UnsupportedWeights, described, recognise
from basicsr.weights.state_dicts import inner_states, read_weights

HIDDEN_OPTIONS = ("res_scale", "img_range", "rgb_mean")
"""Options of networks that no shape of their weights shows."""

_ROWS = 8
_NOT_STRICT = "path: strict_load_g: false (or _t, _d; strict: false in a row of networks or a further teacher)"
# Buffers of SwinIR that follow from its options; files have them for another img_size, or not at all.
_DERIVED = (".attn_mask", ".attn.relative_position_index")


class TwoNetworks(CheckpointError):
    """A file has two sets of weights, with different values, that a network could take."""


def load_network(
    network: nn.Module,
    path: str | os.PathLike[str],
    *,
    param_key: str | None = "params",
    strict: bool = True,
    options: Mapping[str, Any] | None = None,
) -> str | None:
    """Loads weights from a file of torch.save or safetensors, with or without prefixes such as `module.`.

    Where the file has another published layout of the same network (EDSR-PyTorch's, RCAN's original), its weights are
    converted; `docs/pretrained.md` lists the layouts.

    Args:
        network: receives the weights.
        path: file with a state dict, or with state dicts under keys such as `params` and `params_ema`.
        param_key: which of these to take. Another usual key is taken where it is absent, and a file without such
            keys is read as the state dict itself.
        strict: whether every weight must be there and no other. If not, those that fit are loaded.
        options: those that the network was built from, which those recorded in the file must not contradict.

    Returns:
        A remark in one line where other keys than asked for were used, weights were converted or left out; else None.

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
    remarks += load_state(network, file.state, path, strict=strict)
    kind = WarningRemark if any(isinstance(remark, WarningRemark) for remark in remarks) else str
    return kind("; ".join(remarks)) or None


def _contradiction(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str] | None:
    """How two options of one network differ in what no shape shows: theirs, such as 'img_range 1', and ours."""
    if not theirs or ours.get("type") != theirs.get("type") or ours["type"] not in ARCH_REGISTRY:
        return None
    parameters = inspect.signature(ARCH_REGISTRY.get(ours["type"])).parameters
    for key in (key for key in HIDDEN_OPTIONS if key in parameters):
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
    found, state, remarks = _matching(network, expected, state, path)
    check_weights(state, path, expected)
    state = _with_derived(state, expected)
    mismatches = _mismatches(state, expected)
    if mismatches:
        loadable = len(expected) - sum(key in expected for key, *_ in mismatches)
        if strict or not loadable:
            raise CheckpointError(_refusal(network, expected, found, mismatches, path, loadable))
        remarks.append(WarningRemark(f"{path}: loaded what fits {type(network).__name__}; {_counts(mismatches)}"))
        unfit = {key for key, *_ in mismatches}
        state = {key: value for key, value in state.items() if key not in unfit}
    network.load_state_dict(state, strict=False)
    return remarks


def _matching(
    network: nn.Module, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> tuple[Recognised | None, dict[str, Tensor], list[str]]:
    """Finds the network's weights inside `state`, and turns them into our layout if they have another."""
    needed = {key for key in expected if not key.endswith(_DERIVED)}
    inners = list(inner_states(state))
    fitting = _of_these_shapes(state, expected, needed) or [inner for inner in inners if needed <= inner.keys()]
    for other in fitting[1:]:
        if differing := next((key for key in needed if not torch.equal(other[key], fitting[0][key])), None):
            raise TwoNetworks(
                f"checkpoint {path} holds two networks that fit {type(network).__name__}, with different values of"
                f" '{differing}'; save the one that is meant by itself"
            )
    if fitting:
        return recognised_or_none(fitting[0]), fitting[0], []
    for inner in inners:
        try:
            found = recognise(inner)
        except UnsupportedWeights as error:
            raise CheckpointError(f"checkpoint {path} does not fit {type(network).__name__}: {error}") from error
        if found is not None and found.architecture == type(network).__name__:
            same_keys = found.state.keys() == inner.keys()
            _check_range(network, found, path)
            said = [] if same_keys else [f"{path}: converted (layout: {found.layout})"]
            return found, found.state, said
    most = max(inners, key=lambda inner: len(needed & inner.keys()))
    return next(filter(None, map(recognised_or_none, inners)), None), most, []


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


def recognised_or_none(state: Mapping[str, Tensor]) -> Recognised | None:
    """As `recognise`, without saying why a known layout cannot be had."""
    try:
        return recognise(state)
    except UnsupportedWeights:
        return None


def _check_range(network: Any, found: Recognised, path: str | os.PathLike[str]) -> None:
    """A mean shift in the file decides what the network's range and mean colour must be."""
    if not found.has_range:
        return
    wanted, mean = found.options["img_range"], torch.tensor(found.options["rgb_mean"])
    given = network.mean.flatten().cpu()
    fits = given.shape == mean.shape and torch.allclose(given, mean.to(given), atol=1e-5)
    if not fits or abs(network.img_range - wanted) > 1e-5 * wanted:
        shown = ", ".join(f"{value:.4f}" for value in mean.tolist())
        raise CheckpointError(
            f"checkpoint {path} is for images in [0, {wanted:g}] with the mean colour ({shown}); set the network's"
            f" img_range to {wanted:g} and rgb_mean to [{shown}], or use type: auto"
        )


def _with_derived(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Puts the network's own masks in the place of those for another size, and of those that were left out."""
    complete = dict(state)
    stripped = not any(key.endswith(_DERIVED) for key in state)
    for key in (key for key in expected if key.endswith(_DERIVED)):
        other_size = key.endswith(".attn_mask") and key in state and state[key].shape != expected[key].shape
        if stripped or other_size:
            complete[key] = expected[key]
    return complete


_Mismatch = tuple[str, str, str]


def _mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[_Mismatch]:
    """For each key that does not fit: its shape in the file and in the network, '-' where it is missing."""
    rows = []
    for key in dict.fromkeys([*expected, *state]):
        given, wanted = (str(tuple(side[key].shape)) if key in side else "-" for side in (state, expected))
        rows += [(key, given, wanted)] if given != wanted else []
    return rows


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
    own = recognised_or_none(expected)
    advice = f"Check the network's options, or load what fits by {_NOT_STRICT}"
    if not loadable:
        advice = "None of its weights fits: give another file, or mend the network's options"
    if found is None or own is None or found.architecture != own.architecture:
        looks = f", it looks like {found}" if found is not None else ""
        summary = f"checkpoint {path} is for another network than this {name}{looks}"
    else:
        ignored = ("img_size", "res_scale", "img_range", "rgb_mean")
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
    return f"{summary}: {_counts(mismatches)}. {advice}\n{_table(mismatches)}"


def _table(mismatches: list[_Mismatch]) -> str:
    rows = [("key", "in the file", "in the network"), *mismatches[:_ROWS]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    more = [f"  and {len(mismatches) - _ROWS} more"] if len(mismatches) > _ROWS else []
    return "\n".join([line.rstrip() for line in lines] + more)
