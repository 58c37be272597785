"""Checks options against the signature of the constructor that they are meant for."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, NoReturn

from basicsr.utils.errors import AssertedOptionsError, OptionsError
from basicsr.utils.text import key_text, nearest, shown

Key = tuple[str | int, ...]

REQUIRED = "is required"
_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_NOTHING: Any = inspect.Parameter.empty
_OTHER_BOOLEANS = ("yes", "no", "on", "off", "y", "n")
_OTHER_NULLS = ("none", "null", "nil")


@dataclass(frozen=True)
class Problem:
    """One mistake in options; `message` is its text.

    Attributes:
        key: where it is, seen from the options that were checked.
        what: what is wrong, beginning with a verb, or what the value should be.
        given: the value, where the message shows it; where names are allowed, the name that was given.
        allowed: the keys or names that there are.
        also: further keys that may have been meant.
    """

    key: Key
    what: str
    given: Any = _NOTHING
    allowed: Sequence[str] | None = None
    also: Sequence[str] = ("_base_",)

    @property
    def is_unknown_key(self) -> bool:
        """Whether `allowed` are keys, one of which was meant."""
        return self.allowed is not None and self.given is _NOTHING

    @property
    def message(self) -> str:
        """What is wrong, what was given, what is allowed, and the nearest name."""
        if self.allowed is not None:
            names = ", ".join(self.allowed) or "none"
            if self.is_unknown_key:
                return f"{self.what}{nearest(str(self.key[-1]), [*self.allowed, *self.also])}; allowed: {names}"
            return f"{self.what}{nearest(self.given, self.allowed)}; there are: {names}"
        if self.given is _NOTHING:
            return self.what
        word = self.given.lower() if isinstance(self.given, str) else ""
        remedy = "; write ~ for nothing" if word in _OTHER_NULLS else ""
        if word in _OTHER_BOOLEANS and "boolean" in self.what:
            remedy = "; write true or false"
        return f"{self.what}, got {shown(self.given)}{remedy}"


def unknown_key(key: Key, allowed: Sequence[str], also: Sequence[str] = ()) -> Problem:
    """The problem of a key that is none of `allowed`; it may be a misspelt one of `also`, or `_base_`."""
    return Problem(key, "unknown key", allowed=allowed, also=(*also, "_base_"))


def unknown_name(kind: str, name: str, names: Sequence[str]) -> Problem:
    """The problem of a `type` that names no member."""
    return Problem(("type",), f"no {kind} is called '{name}'", name, names)


Conflict = tuple[str, str]
"""A key of a component's options, and what is wrong with its value beside others."""


def call_style(factory: Callable[..., Any]) -> Literal["opt", "keywords"]:
    """How a registered class wants its options: BasicSR's datasets and models take them whole, as one dict `opt`."""
    return "opt" if list(_parameters(factory)) == ["opt"] else "keywords"


def find_problems(
    factory: Callable[..., Any],
    given: Mapping[str, Any],
    provided: Mapping[str, Any],
    hints: Mapping[str, Any] = {},
    further: Mapping[str, Any] = {},
) -> list[Problem]:
    """Compares the keys of an options block with the parameters of `factory`.

    A class may say what must hold between its arguments: by a static method `conflicts` whose parameters are some of
    the constructor's and which yields, for each mistake, a key and a message that begins with a verb, or a `Problem`.

    `provided` is what the framework passes itself; `hints` are types of parameters whose signature has no ranges;
    `further` are types of keys that the block may have beside the parameters.

    Returns:
        A problem for each unknown key (none where the factory takes **kwargs), each value of the wrong type or out of
        its range and each missing parameter; where there is none, those of `conflicts`. None where the factory takes
        its options whole.
    """
    if call_style(factory) == "opt":
        return []
    parameters = _parameters(factory)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    names = [name for name, p in parameters.items() if p.kind not in _VARIADIC]
    known = {*further, *names}
    allowed = [*further, *(name for name in names if name not in {*provided, *further})]
    problems = [unknown_key((key,), allowed) for key in given if not takes_any and key not in known]
    values = {key: value for key, value in given.items() if key in known}
    problems += _mistyped(_validator(factory, tuple({**hints, **further}.items())), values)
    problems += [
        Problem((name,), REQUIRED)
        for name in names
        if parameters[name].default is _NOTHING and name not in {*given, *provided}
    ]
    return problems or _conflicts(factory, {**provided, **given})


def _mistyped(validator: Any, given: Mapping[str, Any]) -> list[Problem]:
    from pydantic import ValidationError

    try:
        validator.validate_python(thaw(given))
    except ValidationError as error:
        return problems_of(error, given)
    return []


@functools.lru_cache(maxsize=512)
def _validator(factory: Callable[..., Any], hints: tuple[tuple[str, Any], ...]) -> Any:
    """Validates a dict of arguments strictly: whole numbers pass as floats, lists for tuples, but no text as a number.

    What pydantic has no schema for, as classes of a user's own, passes unchecked.
    """
    from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter
    from pydantic_core import SchemaValidator
    from typing_extensions import TypedDict

    def schema_of(types: Mapping[str, Any]) -> Any:
        typed_dict: Any = TypedDict
        arguments = typed_dict("Arguments", dict(types), total=False)
        arguments.__pydantic_config__ = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
        try:
            return TypeAdapter(arguments).core_schema
        except (PydanticSchemaGenerationError, PydanticUserError):
            known = {name: hint for name, hint in types.items() if len(types) > 1 and schema_of({name: hint})}
            return schema_of(known) if len(known) < len(types) else None

    return SchemaValidator(_accepting_lists(schema_of({**type_hints(factory), **dict(hints)})))


def _accepting_lists(schema: Any) -> Any:
    """The schema with lists and tuples accepted for each other."""
    if isinstance(schema, list):
        return [_accepting_lists(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _accepting_lists(entry) for key, entry in schema.items()}
    return {**inner, "strict": False} if schema.get("type") in ("list", "tuple") else inner


def problems_of(
    error: Any, data: Any, unknown: Callable[[Key], Problem] = lambda key: unknown_key(key, ())
) -> list[Problem]:
    """What a ValidationError found in `data`, one problem for each key; `unknown` makes those of unknown keys."""
    found: dict[Key, list[Problem]] = {}
    for item in error.errors(include_url=False):
        key, value = _located(item["loc"], data)
        match item["type"]:
            case "problem":
                problem: Problem = item["ctx"]["problem"]
                problem = replace(problem, key=(*key, *problem.key))
            case "missing":
                problem = Problem((*key, item["loc"][-1]), REQUIRED)
            case "extra_forbidden":
                problem = unknown(key)
            case "value_error":
                problem = Problem(key, str(item["ctx"]["error"]))
            case "model_type" | "mapping_type" | "dict_type":
                problem = Problem(key, "input should be a mapping", value)
            case _:
                expected = item["msg"].replace("valid tuple", "list")
                problem = Problem(key, f"{expected[:1].lower()}{expected[1:]}", value)
        found.setdefault(problem.key, []).append(problem)
    # Of a union's alternatives the one that fits best says where inside the value the mistake is.
    deepest = [key for key in found if not any(len(other) > len(key) and other[: len(key)] == key for other in found)]
    return [replace(found[key][0], what=" or ".join(dict.fromkeys(p.what for p in found[key]))) for key in deepest]


def raise_problems(problems: Sequence[Problem]) -> NoReturn:
    """For validators within pydantic's: raises a ValidationError from which `problems_of` gets them back."""
    from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

    details = [
        InitErrorDetails(type=PydanticCustomError("problem", "mistake", {"problem": problem}), loc=(), input=None)
        for problem in problems
    ]
    raise ValidationError.from_exception_data("options", details)


def _located(location: Sequence[Any], data: Any) -> tuple[Key, Any]:
    """The key of `data` that a validator's location names, without the parts that name a type, and its value."""
    key: list[str | int] = []
    for part in location:
        is_index = isinstance(data, (list, tuple)) and isinstance(part, int) and part < len(data)
        if is_index or (isinstance(data, Mapping) and part in data):
            key.append(part)
            data = data[part]
    return tuple(key), data


def _conflicts(factory: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Problem]:
    """What a class says itself of its arguments together; see `find_problems`."""
    found = _asked(factory, "conflicts", arguments)
    return [entry if isinstance(entry, Problem) else Problem((entry[0],), entry[1]) for entry in found]


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
    """What a class's static method `misfits` says; its parameters are some of the constructor's and keys of `run`.

    `run` has `scale`, `total_iter`, `lr`, `ranks`, and `gt_size` and `batch_size`, the smallest there will be.
    """
    return list(_asked(factory, "misfits", given, run))


def _asked(
    factory: Any, method: str, arguments: Mapping[str, Any], further: Mapping[str, Any] = {}
) -> Iterator[Any] | Sequence[Any]:
    check = getattr(factory, method, None)
    values = {name: arguments.get(name, parameter.default) for name, parameter in _parameters(factory).items()}
    values = {**values, **further}
    if check is None or not set(names := _parameters(check)) <= set(values):  # inherited by another constructor
        return ()
    found: Iterator[Any] = check(**{name: values[name] for name in names})
    return found


def check_arguments(component: type, values: Mapping[str, Any], label: str | None = None) -> None:
    """For constructors: raises OptionsError for what the check of options refuses in `values`, such as `locals()`."""
    given = {name: values[name] for name in _parameters(component) if name in values}
    for problem in find_problems(component, given, {}):
        raise AssertedOptionsError(f"{label or component.__name__}: {_text(problem)}")


def bind_arguments(
    factory: Callable[..., Any], given: Mapping[str, Any], provided: Mapping[str, Any], label: str
) -> dict[str, Any]:
    """The arguments to call `factory` with: `given`, and those of `provided` that it takes; raises all problems."""
    if problems := find_problems(factory, given, provided):
        raise OptionsError(f"{label}: " + "; ".join(map(_text, problems)))
    parameters = _parameters(factory)
    return {**{key: value for key, value in provided.items() if key in parameters}, **given}


def _text(problem: Problem) -> str:
    return f"{key_text(problem.key)}: {problem.message}"


def thaw(value: Any) -> Any:
    """A mutable copy of options: dicts and lists all the way down; sections without what was left out."""
    if isinstance(value, Mapping):
        return {key: thaw(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(entry) for entry in value]
    return value.to_data() if hasattr(value, "to_data") else value


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(factory).parameters)


def type_hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The types of a factory's parameters, with their ranges; empty where they cannot be told."""
    try:
        hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    except (NameError, TypeError):
        return {}
    return {name: hint for name, hint in hints.items() if name != "return"}
