"""Checks options against the constructor they are meant for."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from basicsr.utils.errors import AssertedOptionsError, OptionsError
from basicsr.utils.text import nearest, shown

Conflict = tuple[str, str]
"""A key of a component's options, and what is wrong with its value beside others."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a component's options.

    Attributes:
        key: at which key.
        message: what is wrong with it.
        inside: the keys that lead to the mistake inside a mapping that `key` holds.
    """

    key: str
    message: str
    inside: tuple[str, ...] = ()


def call_style(factory: Callable[..., Any]) -> Literal["opt", "keywords"]:
    """How a registered class wants its options: BasicSR's datasets and models take them whole, as one dict `opt`."""
    names = list(_parameters(factory))
    return "opt" if names == ["opt"] else "keywords"


def find_problems(
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    provided: Mapping[str, Any],
    hints: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Compares the keys of an options block with the parameters of `factory`.

    A class may say what must hold between its arguments: by a static method `conflicts` whose parameters are some of
    the constructor's and which yields, for each mistake, a key and a message that begins with a verb.

    Args:
        factory: a registered class or function.
        given: the block without its `type`.
        provided: what the framework passes itself; may be overridden by `given`.
        hints: types of the parameters with their ranges; those of the factory's signature where None.

    Returns:
        A problem for each unknown key, each value of the wrong type or out of its range and each required parameter
        left out; where there is none, the class's own `conflicts`. None where the factory takes its options whole, and
        none for unknown keys where it takes **kwargs.
    """
    if call_style(factory) == "opt":
        return []
    parameters = _parameters(factory)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    names = [name for name, p in parameters.items() if p.kind not in _VARIADIC]
    hints = type_hints(factory) if hints is None else hints
    problems = []
    for key, value in given.items():
        if key not in names:
            if not takes_any:
                problems.append(Problem(key, unknown_key_message(key, names)))
        else:
            found = type_mismatches(value, hints.get(key, Any))
            problems += [Problem(key, message, inside) for inside, message in found]
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in given and name not in provided:
            problems.append(Problem(name, "is required"))
    return problems or _conflicts(factory, {**provided, **given})


def _conflicts(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Problem]:
    """What a class says itself of its arguments together; see `find_problems`."""
    check = getattr(factory, "conflicts", None)
    values = {name: arguments.get(name, parameter.default) for name, parameter in _parameters(factory).items()}
    if check is None or not set(names := _parameters(check)) <= set(values):  # inherited by another constructor
        return []
    return [Problem(key, message) for key, message in check(**{name: values[name] for name in names})]


class Misfit(NamedTuple):
    """What does not fit the run that a component is part of.

    Attributes:
        key: of the component's options.
        message: what is wrong, beginning with a verb.
        is_mistake: whether the run is surely not what is meant; otherwise it is only warned of.
    """

    key: str
    message: str
    is_mistake: bool = False


def find_misfits(factory: Callable[..., Any], given: Mapping[str, Any], run: Mapping[str, Any]) -> list[Misfit]:
    """Asks a class that has a static method `misfits` whether its options fit the run.

    Args:
        factory: a class; `misfits` has parameters of its constructor and keys of `run`.
        given: its options, which are right by themselves.
        run: `scale`, `total_iter` and `lr`.
    """
    check = getattr(factory, "misfits", None)
    values = {name: given.get(name, parameter.default) for name, parameter in _parameters(factory).items()}
    values = {**values, **run}
    if check is None or not set(names := _parameters(check)) <= set(values):
        return []
    return list(check(**{name: values[name] for name in names}))


def check_arguments(component: type, values: Mapping[str, Any], label: str | None = None) -> None:
    """For constructors: refuses what the check of options refuses, where an object is made without options.

    Args:
        component: the class.
        values: its arguments by name, such as `locals()` at the constructor's beginning; others are not looked at.
        label: begins the message; the component's name where None.

    Raises:
        OptionsError: an argument is of the wrong type or out of its range, or two contradict each other.
    """
    given = {name: values[name] for name in _parameters(component) if name in values}
    for problem in find_problems(component, given, {}):
        raise AssertedOptionsError(f"{label or component.__name__}: {problem.key}: {problem.message}")


def bind_arguments(
    factory: Callable[..., Any], given: Mapping[str, Any], provided: Mapping[str, Any], label: str
) -> dict[str, Any]:
    """Returns the keyword arguments to call `factory` with: `given`, and those of `provided` that it takes.

    Raises:
        OptionsError: `given` does not fit; the message begins with `label` and names every problem.
    """
    problems = find_problems(factory, given, provided)
    if problems:
        raise OptionsError(f"{label}: " + "; ".join(f"{p.key}: {p.message}" for p in problems))
    parameters = _parameters(factory)
    return {**{key: value for key, value in provided.items() if key in parameters}, **given}


def type_mismatch(value: Any, hint: Any) -> str | None:
    """Says how `value` fails the type `hint`, or returns None if it fits.

    Whole numbers pass as floats, lists and tuples for each other; text never passes as a number, nor do NaN and
    infinity.
    """
    found = type_mismatches(value, hint)
    return found[0][1] if found else None


def type_mismatches(value: Any, hint: Any) -> list[tuple[tuple[str, ...], str]]:
    """As `type_mismatch`, for each key of mappings in `value`: the keys that lead there, and what is wrong."""
    if hint is Any or hint is inspect.Parameter.empty:
        return []
    from pydantic import ValidationError

    adapter = _adapter(hint) if isinstance(hint, Hashable) else _adapter.__wrapped__(hint)
    if adapter is None:
        return []
    first: list[Any] = []
    for form in (value, _with_sequences(value, tuple), _with_sequences(value, list)):
        try:
            adapter.validate_python(form)
            return []
        except ValidationError as error:
            first = first or error.errors(include_url=False)
    messages: dict[tuple[str, ...], dict[str, None]] = {}
    for item in first:
        messages.setdefault(_keys_inside(value, item["loc"]), {})[_uncapitalised(item["msg"])] = None
    deepest = [keys for keys in messages if keys] or [()]
    return [(keys, describe(" or ".join(messages[keys]), _inside(value, keys))) for keys in deepest]


def _keys_inside(value: Any, location: Sequence[Any]) -> tuple[str, ...]:
    """Those of a validator's location that are keys of mappings in `value`; others name the parts of a type."""
    keys: list[str] = []
    for part in location:
        if isinstance(value, Mapping) and part in value:
            keys.append(part)
            value = value[part]
    return tuple(keys)


def _inside(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        value = value[key]
    return value


@functools.lru_cache(maxsize=1024)
def _adapter(hint: Any) -> Any:
    """What validates values of a type, or None for types that cannot be validated; kept, as it is slow to make."""
    from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

    try:
        return TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None


def unknown_key_message(key: str, allowed: Sequence[str]) -> str:
    """What to say of a key that is not one of `allowed`; it may also be a misspelt `_base_`."""
    return f"unknown key{nearest(key, [*allowed, '_base_'])}; allowed: {', '.join(allowed) or 'none'}"


def describe(expected: str, value: Any) -> str:
    """Turns a validator's sentence into ours: what is allowed, then what was given."""
    return f"{_uncapitalised(expected).replace('valid tuple', 'list')}, got {shown(value)}"


def _uncapitalised(sentence: str) -> str:
    return f"{sentence[:1].lower()}{sentence[1:]}"


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(factory).parameters)


def type_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of a factory's parameters, with their ranges; empty where they cannot be told."""
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    except (NameError, TypeError):
        return {}


def _with_sequences(value: Any, kind: type) -> Any:
    if isinstance(value, (list, tuple)):
        return kind(_with_sequences(entry, kind) for entry in value)
    if isinstance(value, Mapping):
        return {key: _with_sequences(entry, kind) for key, entry in value.items()}
    return value
