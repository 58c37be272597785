"""What a training state must hold, checked before any of it is used.

A state's SHA-256 says only that it is as it was written. Whoever wrote it may have been another program, another
version, or a run of other sizes; PyTorch takes much of that without an error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from basicsr.files.torch_files import check_weights
from basicsr.utils.errors import CheckpointError
from basicsr.utils.text import printable

_MOST = 1 << 53  # larger than any count of iterations, images or ranks
_NEVER_NEGATIVE = ("_sq", "square_avg", "exp_inf", "step_size")
_SCALER: dict[str, Callable[[float], bool]] = {
    "scale": lambda value: 0 < value < 2.0**127,
    "growth_factor": lambda value: 1 < value < 2.0**127,
    "backoff_factor": lambda value: 0 < value < 1,
    "growth_interval": lambda value: 0 < value < _MOST,
    "_growth_tracker": lambda value: 0 <= value < _MOST,
}


class StateMismatch(ValueError):
    """What in a state does not fit, in words that complete 'N.state does not fit: '."""


def iteration_of(state: Any, saved_as: int) -> int:
    """The iteration of a state; raises StateMismatch where it is not `saved_as`, after which its file is named."""
    if not isinstance(state, Mapping) or not all(type(key) is str for key in state):
        raise StateMismatch(f"it holds {_shown(state)}, not a training state")
    iteration = state.get("iteration")
    if not _is_count(iteration) or iteration != saved_as:
        raise StateMismatch(f"its 'iteration' is {_shown(iteration)}, not {_shown(saved_as)}")
    return saved_as


def check_records(state: Mapping[str, Any], iteration: int) -> None:
    """Raises StateMismatch where a plain value of a state is wrong; those that older versions lack may be missing."""
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
            raise StateMismatch(f"its '{name}' is {_shown(state[name])}, not {what}")


def part_of(content: Any, *names: str) -> Any:
    """A nested entry of a checkpoint; raises StateMismatch where it is missing."""
    for depth, name in enumerate(names, start=1):
        if not isinstance(content, Mapping) or name not in content:
            raise StateMismatch(f"it has no {': '.join(names[:depth])}")
        content = content[name]
    return content


def check_tensors(name: str, given: Any, module: nn.Module) -> None:
    """Raises StateMismatch where saved weights differ from a module's in names, shapes or types, or are not finite."""
    expected = module.state_dict()
    if not _is_mapping(given, Tensor):
        raise StateMismatch(f"its {name} are {_shown(given)}, not tensors by name")
    for key in (*expected, *given):
        if key not in given or key not in expected:
            raise StateMismatch(f"its {name} {'have no' if key not in given else 'have'} {_shown(key)}")
        _same(f"{name} have '{key}' of shape", given[key], expected[key], _shape)
    try:
        check_weights(given, name, expected)
    except CheckpointError as error:
        raise StateMismatch(f"its {name}: {str(error).partition(': its ')[2]}") from error
    for key, wanted in expected.items():
        _same(f"{name} have '{key}' of type", given[key], wanted, _type)


def check_groups(name: str, given: Any) -> dict[str, Any]:
    """A saved optimizer's state; raises StateMismatch unless it has groups of parameters, each parameter once."""
    if not isinstance(given, dict) or not {"state", "param_groups"} <= given.keys():
        raise StateMismatch(f"its {name} is {_shown(given)}, not an optimizer's state")
    groups = given["param_groups"]
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, dict) for group in groups):
        raise StateMismatch(f"its {name} has parameter groups that are {_shown(groups)}")
    for group in groups:
        numbers = group.get("params")
        if not isinstance(numbers, (list, tuple)) or not all(map(_is_count, numbers)):
            raise StateMismatch(f"its {name} has a group whose parameters are {_shown(numbers)}")
    numbers = [number for group in groups for number in group["params"]]
    if len(set(numbers)) < len(numbers):
        raise StateMismatch(f"its {name} lists a parameter twice")
    return given


def check_optimizer(name: str, given: Any, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Compares a saved optimizer with the one that goes on: groups, and every moment of every parameter.

    Args:
        name: of the optimizer, for messages.
        given: what the checkpoint holds in its place.
        optimizer: that goes on.
        iteration: after which the state was saved; no optimizer has made more steps.

    Raises:
        StateMismatch: it is of another kind, of other parameters, or its values are impossible.
    """
    saved = check_groups(name, given)["param_groups"]
    _compare_groups(name, saved, optimizer)
    numbers = {number for group in saved for number in group["params"]}
    if not isinstance(given["state"], Mapping):
        raise StateMismatch(f"its {name} has moments that are {_shown(given['state'])}")
    if strangers := [number for number in given["state"] if number not in numbers or type(number) is not int]:
        raise StateMismatch(f"its {name} has moments of a parameter {_shown(strangers[0])} that it does not list")
    for theirs, own in zip(saved, optimizer.param_groups, strict=True):
        pairs = zip(theirs["params"], own["params"], strict=True)
        held = [(number, parameter) for number, parameter in pairs if number in given["state"]]
        template = _template(optimizer, own) if held else {}
        for number, parameter in held:
            where = f"{name}: parameter {number}"
            _check_moments(where, given["state"][number], parameter, template, iteration)


def check_scaler(name: str, given: Any, scaler: torch.amp.GradScaler) -> None:
    """Raises StateMismatch where a saved loss scaler lacks what `scaler` needs; one that is off needs nothing."""
    if not isinstance(given, Mapping):
        raise StateMismatch(f"its {name} is {_shown(given)}, not a scaler's state")
    for key in scaler.state_dict():
        value: Any = given.get(key)
        if type(value) not in (int, float) or not _SCALER.get(key, math.isfinite)(value):
            raise StateMismatch(f"its {name} has {key} {_shown(value)}")


def _compare_groups(name: str, given: Sequence[Mapping[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    ours = optimizer.param_groups
    if len(given) != len(ours):
        raise StateMismatch(f"its {name} has {len(given)} parameter groups, not {len(ours)}")
    for theirs, own in zip(given, ours, strict=True):
        count, wanted = len(theirs["params"]), len(own["params"])
        if count != wanted:
            raise StateMismatch(f"its {name} has {count} parameters in '{own['name']}', not {wanted}")
        if theirs.get("name", own["name"]) != own["name"]:
            raise StateMismatch(f"its {name} has the group {_shown(theirs['name'])} in the place of '{own['name']}'")


def _template(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """The moments that an optimizer of this kind keeps of a parameter of shape (2, 3) after a step."""
    probe = nn.Parameter(torch.zeros(2, 3))
    probe.grad = torch.zeros_like(probe)
    settings = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
    settings |= {key: False for key in ("fused", "foreach", "capturable") if key in settings}  # it is on the CPU
    twin = type(optimizer)([{**settings, "params": [probe]}], lr=1e-3)  # type: ignore[call-arg]
    twin.step()
    return dict(twin.state[probe])


def _check_moments(where: str, given: Any, parameter: Tensor, template: Mapping[str, Any], iteration: int) -> None:
    if not isinstance(given, Mapping) or given.keys() != template.keys():
        held = ", ".join(map(str, given)) if isinstance(given, Mapping) else _shown(given)
        raise StateMismatch(f"its {where} has the moments {printable(held[:200]) or 'none'}, not {', '.join(template)}")
    for key, example in template.items():
        value = given[key]
        if example is None and value is None:
            continue
        if isinstance(example, Tensor) and example.dim() == 2:
            _same(f"{where} has {key} of shape", value, parameter, _shape)
            _same(f"{where} has {key} of type", value, parameter, _type)
        elif isinstance(value, Tensor) and (value.dim() or value.dtype != torch.float32):
            found = f"shape {_shape(value)} and type {_type(value)}"
            raise StateMismatch(f"its {where} has {key} of {found}, not one float32")
        elif not isinstance(value, Tensor) and type(value) not in (int, float):
            raise StateMismatch(f"its {where} has {key} {_shown(value)}")
        _check_values(f"its {where} has {key}", key, torch.as_tensor(value), iteration)


def _check_values(what: str, key: str, value: Tensor, iteration: int) -> None:
    if not torch.isfinite(value).all():
        raise StateMismatch(f"{what} with values that are NaN or infinite")
    if key.endswith(_NEVER_NEGATIVE) and bool((value < 0).any()):
        raise StateMismatch(f"{what} with values below 0")
    if key == "step" and not (1 <= float(value) <= iteration and float(value).is_integer()):
        raise StateMismatch(f"{what} {float(value):g}, allowed are whole numbers from 1 to {iteration}")


def _same(what: str, given: Any, wanted: Tensor, trait: Callable[[Any], str]) -> None:
    if trait(given) != trait(wanted):
        raise StateMismatch(f"its {what} {trait(given)}, not {trait(wanted)}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_mapping(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(type(key) is str and isinstance(value[key], kind) for key in value)


def _is_fingerprint(value: Any) -> bool:
    if not _is_mapping(value, object):
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


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shown(value: Any) -> str:
    """A value of unknown kind, on part of a line."""
    if isinstance(value, str):
        return printable(repr(value)[:60])
    if isinstance(value, int) and abs(value) > _MOST:
        return "a number beyond 2^53"
    return str(value) if isinstance(value, (int, float, type(None))) else f"a {type(value).__name__}"
