"""Loading a network's weights from a checkpoint file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from basicsr.utils.errors import CheckpointError
from basicsr.utils.safe_files import load_tensors

_ALTERNATIVES = ("params_ema", "params", "state_dict")


def load_network(
    network: nn.Module, path: str | os.PathLike[str], *, param_key: str | None = "params", strict: bool = True
) -> str | None:
    """Loads weights saved by BasicSR or by us, with or without the `module.` prefix of DataParallel.

    Args:
        network: receives the weights.
        path: file with a state dict, or with state dicts under keys such as `params` and `params_ema`.
        param_key: which of these to take. Another usual key is taken where it is absent, and a file without such
            keys is read as the state dict itself.
        strict: whether every weight must be there and no other. If not, those that fit are loaded.

    Returns:
        A remark in one line where other keys than asked for were used or weights were left out; else None.

    Raises:
        CheckpointError: the file cannot be read, or does not fit: names keys and shapes.
    """
    loaded = load_tensors(path)
    state, remark = _select(loaded, param_key, path)
    expected = network.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    shapes = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing or unexpected or shapes:
        label = type(network).__name__
        details = "; ".join(
            filter(
                None,
                (
                    _listing("missing", missing),
                    _listing("unexpected", unexpected),
                    _listing("of another shape", [_shapes(key, state[key], expected[key]) for key in shapes]),
                ),
            )
        )
        if strict or len(missing) + len(shapes) == len(expected):
            raise CheckpointError(
                f"checkpoint {path} is for another network than this {label}: {details}."
                " Check the network's options, or set strict_load to false to load what fits"
            )
        remark = f"{path}: loaded what fits {label}: {details}"
        state = {key: value for key, value in state.items() if key in expected and key not in shapes}
    network.load_state_dict(state, strict=False)
    return remark


def _select(
    loaded: object, param_key: str | None, path: str | os.PathLike[str]
) -> tuple[dict[str, torch.Tensor], str | None]:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(loaded).__name__}, expected a state dict")
    remark = None
    tensors: Mapping[Any, Any] = loaded
    candidates = [param_key, *(key for key in _ALTERNATIVES if key != param_key)] if param_key else list(_ALTERNATIVES)
    for key in candidates:
        if isinstance(loaded.get(key), Mapping):
            if param_key and key != param_key:
                remark = f"{path} has no '{param_key}': loaded '{key}'"
            tensors = loaded[key]
            break
    state = {
        str(key).removeprefix("module."): value for key, value in tensors.items() if isinstance(value, torch.Tensor)
    }
    if not state:
        raise CheckpointError(f"checkpoint {path} holds no tensors under {', '.join(candidates)} or at its top")
    return state, remark


def _shapes(key: str, given: torch.Tensor, wanted: torch.Tensor) -> str:
    return f"{key} {tuple(given.shape)} instead of {tuple(wanted.shape)}"


def _listing(what: str, entries: Sequence[str]) -> str:
    more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
    return f"{len(entries)} {what} ({', '.join(entries[:3])}{more})" if entries else ""
