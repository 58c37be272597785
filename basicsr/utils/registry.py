"""Registries: from a name in the options file to a class or function, and the check of options against its signature.

A registry knows the folder its members live in. Asking for a name imports the one file that defines it, so that a
broken or heavy file costs only those who use it. Files written for BasicSR work unchanged:

    from basicsr.utils.registry import ARCH_REGISTRY

    @ARCH_REGISTRY.register()
    class MyArch(nn.Module): ...

saved as `basicsr/archs/my_arch.py`, is `network_g: {type: MyArch}` in the options.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
    """One mistake in options; `message` is its text."""

    key: Key  # seen from the options that were checked
    what: str  # begins with a verb
    given: Any = _NOTHING  # the value that the message shows, or the name that is none of `allowed`
    allowed: Sequence[str] | None = None  # the keys or names that there are
    also: Sequence[str] = ("_base_",)  # further keys that may have been meant
    at_any_key: bool = False  # whether the same message at other keys has the same cause

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
    """Compares the keys of an options block with the parameters of `factory`; none if it takes its options whole.

    A class may say what must hold between its arguments: by a static method `conflicts` whose parameters are some of
    the constructor's and which yields, for each mistake, a key and a message that begins with a verb, or a `Problem`.
    It is asked if keys, types and ranges are right. `without_effect` names arguments that nothing reads, as pairs:
    values of others beside which it is so, and the names.

    `provided` is what the framework passes itself; `hints` are types of parameters whose signature has no ranges;
    `further` are types of keys that the block may have beside the parameters.
    """
    from pydantic import ValidationError

    if call_style(factory) == "opt":
        return []
    parameters = _parameters(factory)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    names = [name for name, p in parameters.items() if p.kind not in _VARIADIC]
    known = {*further, *names}
    allowed = [*further, *(name for name in names if name not in {*provided, *further})]
    problems = [unknown_key((key,), allowed) for key in given if not takes_any and key not in known]
    values = {key: value for key, value in given.items() if key in known}
    try:
        _validator(factory, tuple({**hints, **further}.items())).validate_python(thaw(values))
    except ValidationError as error:
        problems += problems_of(error, values)
    problems += [
        Problem((name,), REQUIRED)
        for name in names
        if parameters[name].default is _NOTHING and name not in {*given, *provided}
    ]
    if problems:
        return problems
    found = _asked(factory, "conflicts", {**provided, **given})
    problems = [entry if isinstance(entry, Problem) else Problem((entry[0],), entry[1]) for entry in found]
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    values = {**defaults, **given}
    for causes, idle in getattr(factory, "without_effect", ()):
        beside = " and ".join(f"{cause}: {str(value).lower()}" for cause, value in causes.items())
        if all(cause in values and values[cause] == value for cause, value in causes.items()):
            problems += [
                Problem((name,), f"is {values[name]}, without effect beside {beside}; leave {name} out")
                for name in idle
                if values.get(name) != defaults.get(name)
            ]
    return problems


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


class Misfit(NamedTuple):
    """What does not fit the run that a component is part of: a mistake, or else only a warning."""

    key: str
    message: str  # begins with a verb
    is_mistake: bool = False


def find_misfits(factory: Callable[..., Any], given: Mapping[str, Any], run: Mapping[str, Any]) -> list[Misfit]:
    """What a class's static method `misfits` says; its parameters are some of the constructor's and keys of `run`.

    `run` has `scale`, `total_iter`, `lr`, `ranks`, and the smallest `gt_size` and `batch_size` of all stages.
    """
    return list(_asked(factory, "misfits", given, run))


def _asked(
    factory: Any, method: str, arguments: Mapping[str, Any], further: Mapping[str, Any] = {}
) -> Iterator[Any] | Sequence[Any]:
    check = getattr(factory, method, None)
    values = {name: arguments.get(name, parameter.default) for name, parameter in _parameters(factory).items()}
    values.update(further)
    if check is None or not set(names := _parameters(check)) <= set(values):  # inherited by another constructor
        return ()
    found: Iterator[Any] = check(**{name: values[name] for name in names})
    return found


def declared(component: Any, name: str, options: Mapping[str, Any], default: Any) -> Any:
    """What a class says of itself by the attribute `name`: a value, or a static method that derives it from options."""
    said = getattr(component, name, default)
    return said(options) if callable(said) else said


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


class Registry:
    """Maps names to the classes or functions registered under them.

    Args:
        kind: what the members are, in the words of error messages ('network', 'loss').
        package: dotted name of the package whose files register members.
        suffix: only files whose stem ends so are searched ('_arch' finds `edsr_arch.py`); '' searches all.
    """

    def __init__(self, kind: str, package: str, suffix: str = "") -> None:
        self.kind = kind
        self._package = package
        self._suffix = suffix
        self._members: dict[str, Callable[..., Any]] = {}

    def register(self, obj: Callable[..., Any] | None = None, suffix: str | None = None) -> Callable[..., Any]:
        """Registers `obj` (or decorates) under its name plus `_suffix`; raises ValueError if that is taken."""
        if obj is None:
            return lambda decorated: self.register(decorated, suffix)
        name = obj.__name__ if suffix is None else f"{obj.__name__}_{suffix}"
        if name in self._members:
            taken = self._members[name].__module__
            raise ValueError(f"{self.kind} '{name}' of {obj.__module__} is already registered by {taken}; rename one")
        self._members[name] = obj
        return obj

    def get(self, name: str, suffix: str = "basicsr") -> Callable[..., Any]:
        """The member called `name` (or `name_suffix`), imported if needed; OptionsError lists those there are."""
        for defining in (name, None):  # the one file that defines it, else all
            if name not in self._members:
                self._import_files(defining)
            for known in (name, f"{name}_{suffix}"):
                if known in self._members:
                    return self._members[known]
        raise OptionsError(unknown_name(self.kind, name, self.names()).message)

    def names(self) -> list[str]:
        """All names, sorted; imports every file of the registry's folder."""
        self._import_files()
        return sorted(self._members)

    def build(self, options: Mapping[str, Any], **provided: Any) -> Any:
        """Builds the member that `options['type']` names from the remaining keys.

        `provided` are the framework's own values (scale, phase), passed where the constructor has such a parameter and
        `options` does not set it. Raises OptionsError where `type` is unknown or a key does not fit.
        """
        if "type" not in options:
            raise OptionsError(f"a {self.kind} needs a 'type'; there are: {', '.join(self.names())}")
        factory = self.get(options["type"])
        if call_style(factory) == "opt":
            return factory({**thaw(options), **provided})
        given = {key: value for key, value in options.items() if key != "type"}
        return factory(**bind_arguments(factory, given, provided, f"{self.kind} {options['type']}"))

    def with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a member with the defaults of those left out, as plain values, such as JSON has."""
        name = options.get("type")
        known = isinstance(name, str) and name in self
        parameters = inspect.signature(self.get(str(name))).parameters.values() if known else ()
        defaults = {entry.name: entry.default for entry in parameters if entry.default is not inspect.Parameter.empty}
        plain: dict[str, Any] = json.loads(json.dumps({"type": name, **defaults, **thaw(options)}, default=str))
        return plain

    def __contains__(self, name: str) -> bool:
        try:
            self.get(name)
        except OptionsError:
            return False
        return True

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        return iter([(name, self._members[name]) for name in self.names()])

    def keys(self) -> list[str]:
        """As `names`; BasicSR's name for it."""
        return self.names()

    def _import_files(self, defining: str | None = None) -> None:
        """Imports the registry's files: all of them, or those whose text defines the class or function `defining`."""
        spec = importlib.util.find_spec(self._package)
        if spec is None or not spec.submodule_search_locations:
            return
        definition = re.compile(rf"^\s*(class|def)\s+{re.escape(defining)}\b", re.MULTILINE) if defining else None
        for folder in spec.submodule_search_locations:
            for file in sorted(Path(folder).glob(f"*{self._suffix}.py")):
                if file.stem.startswith("_") or (definition and not definition.search(file.read_text("utf-8"))):
                    continue
                try:
                    _import_with_neighbours(f"{self._package}.{file.stem}", Path(folder))
                except Exception as error:  # whatever a file of the user's own raises
                    raise OptionsError(f"{file} does not import: {type(error).__name__}: {error}") from error


def _import_with_neighbours(module: str, folder: Path) -> None:
    """Imports a module; what lies beside it is found as authors name it: `import block`, `from model import common`."""
    while True:
        try:
            importlib.import_module(module)
            return
        except ModuleNotFoundError as error:
            first = (error.name or "").partition(".")[0]
            beside = (folder / f"{first}.py").is_file() or (folder / first).is_dir()
            if not first or not beside or str(folder) in sys.path:
                raise
            sys.path.append(str(folder))
        except RuntimeError as error:
            if "torchvision::" not in str(error) or "torchvision" in sys.modules:
                raise
            from basicsr.utils.torchvision_import import import_torchvision

            import_torchvision()


ARCH_REGISTRY = Registry("network", "basicsr.archs", "_arch")
DATASET_REGISTRY = Registry("dataset", "basicsr.data", "_dataset")
DEGRADATION_REGISTRY = Registry("degradation", "basicsr.data.degradations")
LOSS_REGISTRY = Registry("loss", "basicsr.losses", "_loss")
METRIC_REGISTRY = Registry("metric", "basicsr.metrics")
EXPORT_REGISTRY = Registry("export format", "basicsr.export", "_format")
RUNTIME_REGISTRY = Registry("runtime", "basicsr.runtimes", "_runtime")
STORAGE_REGISTRY = Registry("storage", "basicsr.data", "storage")
METHOD_REGISTRY = Registry("distillation method", "basicsr.distill")
