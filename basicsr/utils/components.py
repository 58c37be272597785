"""Checks options against the constructor they are meant for."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import nearest


@dataclass(frozen=True)
class Problem:
    """One mistake in a component's options: at which key, and what is wrong with it."""

    key: str
    message: str


def call_style(factory: Callable[..., Any]) -> Literal["opt", "keywords"]:
    """How a registered class wants its options: BasicSR's datasets and models take them whole, as one dict `opt`."""
    names = list(_parameters(factory))
    return "opt" if names == ["opt"] else "keywords"


def find_problems(factory: Callable[..., Any], given: Mapping[str, Any], provided: Mapping[str, Any]) -> list[Problem]:
    """Compares the keys of an options block with the parameters of `factory`.

    Args:
        factory: a registered class or function.
        given: the block without its `type`.
        provided: what the framework passes itself; may be overridden by `given`.

    Returns:
        A problem for each unknown key, each value of the wrong type and each required parameter left out; none where
        the factory takes its options whole or by **kwargs.
    """
    if call_style(factory) == "opt":
        return []
    parameters = _parameters(factory)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    names = [name for name, p in parameters.items() if p.kind not in _VARIADIC]
    hints = _type_hints(factory)
    problems = []
    for key, value in given.items():
        if key not in names:
            if not takes_any:
                allowed = ", ".join(names) or "none"
                problems.append(Problem(key, f"unknown key{nearest(key, names)}; allowed: {allowed}"))
        elif message := type_mismatch(value, hints.get(key, Any)):
            problems.append(Problem(key, message))
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in given and name not in provided:
            problems.append(Problem(name, "is required"))
    return problems


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

    Whole numbers pass as floats, lists and tuples for each other; text never passes as a number.
    """
    if hint is Any or hint is inspect.Parameter.empty:
        return None
    from pydantic import (
        ConfigDict,
        PydanticSchemaGenerationError,
        PydanticUserError,
        TypeAdapter,
        ValidationError,
    )

    try:
        adapter = TypeAdapter(hint, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None
    message = None
    for form in (value, _with_sequences(value, tuple), _with_sequences(value, list)):
        try:
            adapter.validate_python(form)
            return None
        except ValidationError as error:
            message = message or describe(error.errors()[0]["msg"], value)
    return message


def describe(expected: str, value: Any) -> str:
    """Turns a validator's sentence into ours: what is allowed, then what was given."""
    shown = repr(value)
    return f"{expected[0].lower()}{expected[1:]}, got {shown if len(shown) <= 80 else shown[:77] + '...'}"


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(factory).parameters)


def _type_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except (NameError, TypeError):
        return {}


def _with_sequences(value: Any, kind: type) -> Any:
    if isinstance(value, (list, tuple)):
        return kind(_with_sequences(entry, kind) for entry in value)
    if isinstance(value, Mapping):
        return {key: _with_sequences(entry, kind) for key, entry in value.items()}
    return value
