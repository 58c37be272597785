"""What a training state must hold, checked before any of it is used.

A state's SHA-256 says only that it is as it was written. Whoever wrote it may have been another program, another
version, or a run of other sizes; PyTorch takes much of that without an error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
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
_Count = Annotated[int, Field(ge=0, lt=_MOST)]


class StateMismatch(ValueError):
    """What in a state does not fit, in words that complete 'N.state does not fit: '."""


def _is_number(value: Any) -> Any:
    if type(value) not in (int, float):  # pydantic takes tensors of one number, too
        raise ValueError
    return value


def _counts_images(fingerprint: dict[str, Any]) -> dict[str, Any]:
    if any((type(value) is int) != (name.rpartition(": ")[2] == "images") for name, value in fingerprint.items()):
        raise ValueError
    return fingerprint


class _Best(BaseModel):
    model_config = ConfigDict(strict=True)

    value: Annotated[float, BeforeValidator(_is_number)]
    iteration: _Count


class _Progress(_Best):
    waited: _Count


class _Records(BaseModel):
    """Plain values of a state; those that older versions lack may be missing."""

    model_config = ConfigDict(strict=True)

    iteration: _Count = Field(description="a number of iterations")
    validation_due: bool = Field(False, description="true or false")
    options: str = Field("", description="text")
    world_size: Annotated[int, Field(gt=0, lt=_MOST)] = Field(1, description="a number of ranks")
    images: Annotated[dict[str, _Count | str | None], AfterValidator(_counts_images)] = Field(
        {}, description="a number of images and their digests"
    )
    files: dict[str, str] = Field({}, description="digests of files")
    skipped: dict[_Count, list[str] | tuple[str, ...]] = Field({}, description="the images that are left out")
    progress: _Progress | Annotated[dict[str, float], Field(max_length=0)] = Field(
        {}, description="a best figure, its iteration and a count of validations since"
    )
    best: dict[str, dict[str, _Best]] = Field({}, description="the best figures, of iterations up to the state's")


def check_records(state: Any, iteration: int) -> None:
    """Raises StateMismatch where a plain value of a state is wrong; its file is named after `iteration`."""
    if not isinstance(state, dict) or not all(type(key) is str for key in state):
        raise StateMismatch(f"it holds {_shown(state)}, not a training state")
    found = state.get("iteration")
    if type(found) is not int or found != iteration:
        raise StateMismatch(f"its 'iteration' is {_shown(found)}, not {_shown(iteration)}")
    try:
        best = _Records.model_validate(state).best
        fault = "best" if any(one.iteration > iteration for of_set in best.values() for one in of_set.values()) else ""
    except ValidationError as error:
        fault = str(error.errors(include_url=False)[0]["loc"][0])
    if fault:
        raise StateMismatch(f"its '{fault}' is {_shown(state[fault])}, not {_Records.model_fields[fault].description}")


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
    if not isinstance(given, Mapping) or not all(type(key) is str and isinstance(given[key], Tensor) for key in given):
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
    listed: list[int] = []
    for group in groups:
        numbers = group.get("params")
        if not isinstance(numbers, (list, tuple)) or not all(type(number) is int for number in numbers):
            raise StateMismatch(f"its {name} has a group whose parameters are {_shown(numbers)}")
        listed += numbers
        names = group.get("names", [])
        if not isinstance(names, (list, tuple)) or not all(type(name) is str for name in names):
            raise StateMismatch(f"its {name} has a group whose parameters' names are {_shown(names)}")
    if len(set(listed)) < len(listed):
        raise StateMismatch(f"its {name} lists a parameter twice")
    return given


def check_optimizer(name: str, given: Any, optimizer: torch.optim.Optimizer, iteration: int) -> None:
    """Compares a saved optimizer with the one that goes on: groups, and every moment of every parameter.

    Raises StateMismatch where it is of another kind, of other parameters, or its values are impossible after
    `iteration` iterations.
    """
    saved, groups = check_groups(name, given)["param_groups"], optimizer.param_groups
    if len(saved) != len(groups):
        raise StateMismatch(f"its {name} has {len(saved)} parameter groups, not {len(groups)}")
    for theirs, own in zip(saved, groups, strict=True):
        count, wanted = len(theirs["params"]), len(own["params"])
        if count != wanted:
            raise StateMismatch(f"its {name} has {count} parameters in '{own['name']}', not {wanted}")
        if theirs.get("name", own["name"]) != own["name"]:
            raise StateMismatch(f"its {name} has the group {_shown(theirs['name'])} in the place of '{own['name']}'")
    moments = given["state"]
    if not isinstance(moments, Mapping):
        raise StateMismatch(f"its {name} has moments that are {_shown(moments)}")
    numbers = {number for group in saved for number in group["params"]}
    if strangers := [number for number in moments if number not in numbers or type(number) is not int]:
        raise StateMismatch(f"its {name} has moments of a parameter {_shown(strangers[0])} that it does not list")
    for theirs, own in zip(saved, groups, strict=True):
        pairs = zip(theirs["params"], own["params"], strict=True)
        held = [(number, parameter) for number, parameter in pairs if number in moments]
        template = _template(optimizer, own) if held else {}
        for number, parameter in held:
            _check_moments(f"{name}: parameter {number}", moments[number], parameter, template, iteration)


def check_scaler(name: str, given: Any, scaler: torch.amp.GradScaler) -> None:
    """Raises StateMismatch where a saved loss scaler lacks what `scaler` needs; one that is off needs nothing."""
    if not isinstance(given, Mapping):
        raise StateMismatch(f"its {name} is {_shown(given)}, not a scaler's state")
    for key in scaler.state_dict():
        value: Any = given.get(key)
        if type(value) not in (int, float) or not _SCALER.get(key, math.isfinite)(value):
            raise StateMismatch(f"its {name} has {key} {_shown(value)}")


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
        value, what = given[key], f"{where} has {key}"
        if example is None and value is None:
            continue
        if isinstance(example, Tensor) and example.dim() == 2:
            _same(f"{what} of shape", value, parameter, _shape)
            _same(f"{what} of type", value, parameter, _type)
        elif isinstance(value, Tensor) and (value.dim() or value.dtype != torch.float32):
            raise StateMismatch(f"its {what} of shape {_shape(value)} and type {_type(value)}, not one float32")
        elif not isinstance(value, Tensor) and type(value) not in (int, float):
            raise StateMismatch(f"its {what} {_shown(value)}")
        values = torch.as_tensor(value)
        if not torch.isfinite(values).all():
            raise StateMismatch(f"its {what} with values that are NaN or infinite")
        if key.endswith(_NEVER_NEGATIVE) and bool((values < 0).any()):
            raise StateMismatch(f"its {what} with values below 0")
        if key == "step" and not (1 <= float(values) <= iteration and float(values).is_integer()):
            raise StateMismatch(f"its {what} {float(values):g}, allowed are whole numbers from 1 to {iteration}")


def _same(what: str, given: Any, wanted: Tensor, trait: Callable[[Any], str]) -> None:
    if trait(given) != trait(wanted):
        raise StateMismatch(f"its {what} {trait(given)}, not {trait(wanted)}")


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
