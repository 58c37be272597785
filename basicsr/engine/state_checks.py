"""What a training state must hold, looked at before any of it is used.

A state's SHA-256 says only that it is as it was written. Whoever wrote it may have been another program, another
version, or a run of other sizes; PyTorch takes much of that without a word.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.files.weight_checks import check_weights
from basicsr.utils.errors import CheckpointError
from basicsr.utils.text import printable

_MOST = 1 << 53  # iterations, images and ranks beyond it are no numbers that anything was counted to
_NEVER_NEGATIVE = ("_sq", "square_avg", "exp_inf", "step_size")
_SCALER = {
    "scale": lambda value: 0 < value < 2.0**127,
    "growth_factor": lambda value: 1 < value < 2.0**127,
    "backoff_factor": lambda value: 0 < value < 1,
    "growth_interval": lambda value: 0 < value < _MOST,
    "_growth_tracker": lambda value: 0 <= value < _MOST,
}


class Misfit(ValueError):
    """What in a state does not fit, in words that complete 'N.state does not fit: '."""


def check_records(state: Mapping[str, Any], iteration: int) -> None:
    """Looks at the plain values of a state; those that older versions did not save may be missing.

    Args:
        state: content of N.state.
        iteration: N.

    Raises:
        Misfit: a value is of another type or beyond what it can be.
    """
    wanted: dict[str, tuple[Callable[[Any], bool], str]] = {
        "validation_due": (lambda value: type(value) is bool, "true or false"),
        "options": (lambda value: type(value) is str, "text"),
        "world_size": (lambda value: _is_count(value) and value > 0, "a number of ranks"),
        "images": (_is_fingerprint, "a number of images and their digests"),
        "files": (lambda value: _is_mapping(value, str), "digests of files"),
        "skipped": (_is_skipped, "the images that are left out"),
        "best": (lambda value: _is_best(value, iteration), f"figures of iterations up to {iteration}"),
    }
    for name, (fits, what) in wanted.items():
        if name in state and not fits(state[name]):
            raise Misfit(f"its '{name}' is {_shown(state[name])}, not {what}")


def iteration_of(state: Any, saved_as: int) -> int:
    """The iteration after which a state was saved.

    Args:
        state: content of a state file.
        saved_as: the iteration that its file is named after.

    Raises:
        Misfit: they are of different iterations, or the state is of none.
    """
    if not isinstance(state, Mapping) or not all(type(key) is str for key in state):
        raise Misfit(f"it holds {_shown(state)}, not a training state")
    iteration = state.get("iteration")
    if not _is_count(iteration) or iteration != saved_as:
        raise Misfit(f"its 'iteration' is {_shown(iteration)}, not {_shown(saved_as)}")
    return int(iteration)


def check_tensors(name: str, given: Any, module: nn.Module) -> None:
    """Holds saved weights against the module that they are for.

    Args:
        name: of the weights, for messages.
        given: what the checkpoint holds in their place.
        module: which they are for.

    Raises:
        Misfit: names, shapes, types differ, or values are not finite.
    """
    expected = module.state_dict()
    if not _is_mapping(given, Tensor):
        raise Misfit(f"its {name} are {_shown(given)}, not tensors by name")
    for key in (*expected, *given):
        if key not in given or key not in expected:
            raise Misfit(f"its {name} {'have no' if key not in given else 'have'} {_shown(key)}")
        if given[key].shape != expected[key].shape:
            raise Misfit(f"its {name} have '{key}' of shape {_shape(given[key])}, not {_shape(expected[key])}")
    try:
        check_weights(given, name, expected)
    except CheckpointError as error:
        raise Misfit(f"its {name}: {str(error).partition(': its ')[2]}") from error
    for key, wanted in expected.items():
        if given[key].dtype != wanted.dtype:
            raise Misfit(f"its {name} have '{key}' of type {_kind(given[key])}, not {_kind(wanted)}")


def check_optimizer(name: str, given: Any, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Holds a saved optimizer against the one that goes on: groups, and every moment of every parameter.

    Args:
        name: of the optimizer, for messages.
        given: what the checkpoint holds in its place.
        optimizer: that goes on.
        iteration: after which the state was saved; no optimizer has made more steps.

    Raises:
        Misfit: it is of another kind, of other parameters, or its values cannot have come about.
    """
    _compare_groups(name, check_groups(name, given)["param_groups"], optimizer)
    numbers = [number for group in given["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(given["state"], Mapping):
        raise Misfit(f"its {name} has moments that are {_shown(given['state'])}")
    if strangers := [number for number in given["state"] if number not in numbers or type(number) is not int]:
        raise Misfit(f"its {name} has moments of a parameter {_shown(strangers[0])} that it does not list")
    templates: dict[int, Mapping[str, Any]] = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in given["state"]:
            group = next(
                at for at, entry in enumerate(optimizer.param_groups) if any(parameter is p for p in entry["params"])
            )
            if group not in templates:
                templates[group] = _template(optimizer, group)
            _check_moments(
                f"{name}: parameter {number}", given["state"][number], parameter, templates[group], iteration
            )


def check_scaler(name: str, given: Any, scaler: torch.amp.GradScaler) -> None:
    """Holds a saved loss scaler against the one that goes on; one that is off takes anything.

    Raises:
        Misfit: it has no scale, or one that cannot have come about.
    """
    if not isinstance(given, Mapping):
        raise Misfit(f"its {name} is {_shown(given)}, not a scaler's state")
    for key in scaler.state_dict():
        value = given.get(key)
        if type(value) not in (int, float) or not _SCALER.get(key, math.isfinite)(value):
            raise Misfit(f"its {name} has {key} {_shown(value)}")


def check_groups(name: str, given: Any) -> dict[str, Any]:
    """An optimizer's state as it was saved, if it has groups of parameters, each parameter once.

    Raises:
        Misfit: it has none.
    """
    if not isinstance(given, dict) or not {"state", "param_groups"} <= given.keys():
        raise Misfit(f"its {name} is {_shown(given)}, not an optimizer's state")
    groups = given["param_groups"]
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, dict) for group in groups):
        raise Misfit(f"its {name} has parameter groups that are {_shown(groups)}")
    seen: list[int] = []
    for group in groups:
        numbers = group.get("params")
        if not isinstance(numbers, (list, tuple)) or not all(map(_is_count, numbers)):
            raise Misfit(f"its {name} has a group whose parameters are {_shown(numbers)}")
        seen += numbers
    if len(set(seen)) < len(seen):
        raise Misfit(f"its {name} lists a parameter twice")
    return given


def _compare_groups(name: str, given: Sequence[Mapping[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    ours = optimizer.param_groups
    if len(given) != len(ours):
        raise Misfit(f"its {name} has {len(given)} parameter groups, not {len(ours)}")
    for theirs, own in zip(given, ours, strict=True):
        if len(theirs["params"]) != len(own["params"]):
            raise Misfit(
                f"its {name} has {len(theirs['params'])} parameters in '{own['name']}', not {len(own['params'])}"
            )
        if theirs.get("name", own["name"]) != own["name"]:
            raise Misfit(f"its {name} has the group {_shown(theirs['name'])} in the place of '{own['name']}'")


def _template(optimizer: torch.optim.Optimizer, group: int) -> dict[str, Any]:
    """What an optimizer keeps of a parameter, told by one of its kind after a step with a parameter of shape (2, 3)."""
    probe = nn.Parameter(torch.zeros(2, 3))
    probe.grad = torch.zeros_like(probe)
    settings = {key: copy.deepcopy(value) for key, value in optimizer.param_groups[group].items() if key != "params"}
    settings |= {key: False for key in ("fused", "foreach", "capturable") if key in settings}  # it is on the CPU
    twin = type(optimizer)([{**settings, "params": [probe]}], lr=1e-3)  # type: ignore[call-arg]
    twin.step()
    return dict(twin.state[probe])


def _check_moments(where: str, given: Any, parameter: Tensor, template: Mapping[str, Any], iteration: int) -> None:
    if not isinstance(given, Mapping) or given.keys() != template.keys():
        held = ", ".join(map(str, given)) if isinstance(given, Mapping) else _shown(given)
        raise Misfit(f"its {where} has the moments {printable(held[:200]) or 'none'}, not {', '.join(template)}")
    for key, example in template.items():
        value = given[key]
        if example is None and value is None:
            continue
        if isinstance(example, Tensor) and example.dim() == 2:
            if not isinstance(value, Tensor) or value.shape != parameter.shape:
                raise Misfit(f"its {where} has {key} of shape {_shape(value)}, not {_shape(parameter)}")
            if value.dtype != parameter.dtype:
                raise Misfit(f"its {where} has {key} of type {_kind(value)}, not {_kind(parameter)}")
        elif isinstance(value, Tensor) and (value.dim() or value.dtype != torch.float32):
            raise Misfit(f"its {where} has {key} of shape {_shape(value)} and type {_kind(value)}, not one float32")
        elif not isinstance(value, Tensor) and type(value) not in (int, float):
            raise Misfit(f"its {where} has {key} {_shown(value)}")
        _check_values(f"{where} has {key}", key, torch.as_tensor(value), iteration)


def _check_values(what: str, key: str, value: Tensor, iteration: int) -> None:
    if not torch.isfinite(value).all():
        raise Misfit(f"its {what} with values that are NaN or infinite")
    if key.endswith(_NEVER_NEGATIVE) and bool((value < 0).any()):
        raise Misfit(f"its {what} with values below 0")
    if key == "step" and not (1 <= float(value) <= iteration and float(value).is_integer()):
        raise Misfit(f"its {what} {float(value):g}, allowed are whole numbers from 1 to {iteration}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_mapping(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(type(key) is str and isinstance(value[key], kind) for key in value)


def _is_fingerprint(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(type(key) is str for key in value):
        return False
    digests = [value[key] for key in value if key != "images"]
    return _is_count(value.get("images", 0)) and all(digest is None or type(digest) is str for digest in digests)


def _is_skipped(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_count(index) and isinstance(notes, (list, tuple)) and all(type(note) is str for note in notes)
        for index, notes in value.items()
    )


def _is_best(value: Any, iteration: int) -> bool:
    return _is_mapping(value, Mapping) and all(
        isinstance(record, Mapping)
        and type(record.get("value")) in (int, float)
        and _is_count(record.get("iteration"))
        and record["iteration"] <= iteration
        and type(metric) is str
        for records in value.values()
        for metric, record in records.items()
    )


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else _shown(value)


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shown(value: Any) -> str:
    """A value of unknown kind, on part of a line."""
    if isinstance(value, (bool, int, float, str, type(None))) and not (isinstance(value, int) and abs(value) > _MOST):
        return printable(repr(value)[:60]) if isinstance(value, str) else str(value)
    if isinstance(value, int):
        return "a number beyond 2^53"
    return f"a {type(value).__name__}"
