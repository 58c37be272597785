"""What the models of options are made of: sections of fixed keys, and blocks that name a component by `type`.

A block is checked against the constructor of its component.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Gt, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
    with_config,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import core_schema
from typing_extensions import Required, TypedDict

from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DEGRADATION_REGISTRY,
    LOSS_REGISTRY,
    METHOD_REGISTRY,
    METRIC_REGISTRY,
    REQUIRED,
    STORAGE_REGISTRY,
    Key,
    Problem,
    Registry,
    find_problems,
    problems_of,
    raise_problems,
    thaw,
    unknown_key,
    unknown_name,
)
from basicsr.utils.text import nearest, shown

UNCHECKED = "blocks of components are not checked"
"""Context of a validation that takes any block as it is, because its mistakes are known by then."""


SET_BY_THE_COMMAND = ("root", "skipped", "sources")


class Section(BaseModel):
    """Base of all sections: strict, frozen, no unknown keys; lists become tuples before they come here."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )
    older_names: ClassVar[tuple[str, ...]] = ()  # keys that stand for others, replaced before the options come here

    @model_validator(mode="wrap")
    @classmethod
    def _with_problems(cls, data: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """Raises what is wrong as `Problem`s, which know the keys that this section allows."""
        try:
            return handler(cls.gathered(dict(data)) if isinstance(data, Mapping) else data)
        except ValidationError as error:
            return raise_problems(problems_of(error, data, cls.unknown_key))

    @classmethod
    def gathered(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The data with the keys that the fields have."""
        return data

    @classmethod
    def unknown_key(cls, key: Key) -> Problem:
        """What to say of a key that the section does not have."""
        allowed = [name for name in cls.model_fields if name not in SET_BY_THE_COMMAND]
        return unknown_key(key, allowed, cls.older_names)

    def to_data(self) -> dict[str, Any]:
        """Plain dicts and lists from which an equal section can be made, without what is null by default."""
        data = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if not field.exclude and not (value is None and field.default is None):
                data[name] = thaw(value)
        return data


class FrozenMapping(Mapping[str, Any]):
    """A mapping that cannot be changed, nor can what it holds: mappings are frozen, lists become tuples."""

    __slots__ = ("_content",)

    def __init__(self, content: Mapping[str, Any] = {}) -> None:
        self._content = {key: freeze(value) for key, value in content.items()}

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __hash__(self) -> int:
        return hash(frozenset(self._content.items()))

    def __repr__(self) -> str:
        return repr(self._content)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenMapping, (self._content,)


def freeze(value: Any) -> Any:
    """Mappings as `FrozenMapping`, lists as tuples, all the way down."""
    if isinstance(value, Mapping):
        return value if isinstance(value, FrozenMapping) else FrozenMapping(value)
    return tuple(map(freeze, value)) if isinstance(value, (list, tuple)) else value


_Model = TypeVar("_Model", bound=Section)


def validated(
    model: type[_Model], data: dict[str, Any], stand_in: Callable[[Key], Any]
) -> tuple[list[Problem], Collection[Key], _Model | None]:
    """The problems, the keys that are left out or replaced so that the rest can be checked, and this rest.

    `stand_in` gives the value that stands for a missing one, or None; then the section around it is left out.
    """
    try:
        return [], [], model.model_validate(freeze(data))
    except ValidationError as error:
        problems = problems_of(error, data)
    changes: dict[Key, Any] = {}  # None leaves the key out
    while () not in changes:
        rest = deepcopy(data)
        for key, value in changes.items():
            section = section_of(rest, key[:-1])
            section.pop(key[-1], None)
            if value is not None:
                section[key[-1]] = value
        try:
            return problems, changes, model.model_validate(freeze(rest), context=UNCHECKED)
        except ValidationError as error:
            found = problems_of(error, data)
        before = dict(changes)
        for problem in found:
            is_missing = problem.what == REQUIRED
            if is_missing and (value := stand_in(problem.key)) is not None:
                changes[problem.key] = value
            else:
                around = problem.key[:-1] if is_missing else problem.key
                named = itertools.takewhile(lambda part: isinstance(part, str), around)  # no parts of lists
                changes.setdefault(tuple(named), None)
        assert changes != before, f"still wrong with {changes}: {found}"
    return problems, changes, None


def section_of(data: Any, key: Key) -> dict[Any, Any]:
    """The mapping at `key`; an empty one where there is none."""
    for part in key:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _table(module: str, name: str) -> Callable[[], Mapping[str, Any]]:
    """Gives a table of components when it is needed, as its module may import torch."""
    return lambda: vars(importlib.import_module(module))[name]


class Component:
    """Annotates the type of a block that names one of its members by `type` and holds the member's arguments.

    `further` are types of keys that the block may have beside them; `provided` are arguments that the framework passes
    itself; `hints` are types of arguments whose signatures have no ranges.
    """

    def __init__(
        self,
        kind: str,
        members: Registry | Callable[[], Mapping[str, Any]],
        further: Mapping[str, Any] = {},
        provided: Sequence[str] = (),
        hints: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self.kind, self._members, self.further, self.provided, self._hints = kind, members, further, provided, hints

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self._validated)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"additionalProperties": True, "type": "object", "x-component": self.kind}

    def _validated(self, value: Any, info: ValidationInfo) -> FrozenMapping:
        if not isinstance(value, Mapping):
            raise_problems([Problem((), "must be a mapping such as {type: ...}", value)])
        if info.context != UNCHECKED and (problems := self.problems(value)):
            raise_problems(problems)
        return self.kept(value)

    def kept(self, block: Mapping[str, Any]) -> FrozenMapping:
        """What the options hold of a block."""
        return FrozenMapping(block)

    def problems(self, block: Mapping[str, Any]) -> list[Problem]:
        """Compares a block with the constructor of the member that it names."""
        members = self._members if isinstance(self._members, Registry) else self._members()
        name = block.get("type")
        if not isinstance(name, str):
            return [self._without_type(block, list(members.keys()))]
        try:
            member = members.get(name)
        except OptionsError as error:
            return [Problem(("type",), str(error))]
        if member is None:
            return [unknown_name(self.kind, name, list(members.keys()))]
        return self.problems_with(member, {key: value for key, value in block.items() if key != "type"})

    def problems_with(self, member: Any, given: Mapping[str, Any]) -> list[Problem]:
        """Compares arguments with the member's parameters."""
        free = {key: value for key, value in given.items() if key not in self.provided}
        problems = find_problems(member, free, dict.fromkeys(self.provided), self._hints(), self.further)
        return problems + [unknown_key((key,), list(self.further)) for key in given if key in self.provided]

    def _without_type(self, block: Mapping[str, Any], names: list[str]) -> Problem:
        member = f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"
        if block.get("type") is not None:
            return Problem(("type",), f"must be the name of {member}, got {shown(block['type'])}", "", names)
        for key in block if "type" not in block else ():
            if abs(len(key) - len("type")) < 2 and (hint := nearest(key, ["type"])):
                return Problem((key,), f"unknown key{hint}; {member} needs a type", "", names)
        return Problem(("type",), f"{REQUIRED}, as {member} needs a type", "", names)


class _Network(Component):
    """`{type: auto}` stands for the network that is recognised from the file of its weights."""

    def problems(self, block: Mapping[str, Any]) -> list[Problem]:
        """See `Component`."""
        if not is_auto(block):
            return super().problems(block)
        what = "means nothing beside type: auto, which reads the network from the file of its weights; remove it"
        return [Problem((key,), what) for key in block if key != "type"]


class _Steps(Component):
    """One block, or a list of them."""

    def _validated(self, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, (list, tuple)):
            return super()._validated(value, info)
        problems: list[Problem] = []
        for number, block in enumerate(value):
            found = self.problems(block) if isinstance(block, Mapping) else [Problem((), "must be a mapping", block)]
            problems += [replace(problem, key=(number, *problem.key)) for problem in found]
        if problems and info.context != UNCHECKED:
            raise_problems(problems)
        return freeze(value)


class _Built(Component):
    """Members so cheap to build that they are, for what they check themselves."""

    def problems_with(self, member: Any, given: Mapping[str, Any]) -> list[Problem]:
        """See `Component`."""
        import torch

        if problems := super().problems_with(member, given):
            return problems
        try:
            member(**{name: [torch.nn.Parameter(torch.zeros(1))] for name in self.provided}, **given)
        except Exception as error:  # whatever torch makes of values that it was not written for
            return [Problem((), f"{member.__name__}: {(str(error).splitlines() or [type(error).__name__])[0]}")]
        return []


_Value = TypeVar("_Value")
Named = Annotated[Mapping[str, _Value], AfterValidator(FrozenMapping)]
"""A section whose keys are names of the user's choice."""
EMPTY = FrozenMapping()

_BETTER = {"better": Literal["higher", "lower"]}

NetworkBlock = Annotated[Mapping[str, Any], _Network("network", ARCH_REGISTRY)]
DiscriminatorBlock = Annotated[Mapping[str, Any], Component("network", ARCH_REGISTRY)]
LossBlock = Annotated[Mapping[str, Any], Component("loss", LOSS_REGISTRY)]
MethodBlock = Annotated[Mapping[str, Any], Component("method", METHOD_REGISTRY)]
MetricBlock = Annotated[Mapping[str, Any], Component("metric", METRIC_REGISTRY, _BETTER, ("img", "img2"))]
OptimizerBlock = Annotated[
    Mapping[str, Any],
    _Built(
        "optimizer",
        _table("basicsr.optim.optimizers", "OPTIMIZERS"),
        provided=("params",),
        hints=_table("basicsr.optim.optimizers", "ARGUMENTS"),
    ),
]
SchedulerBlock = Annotated[Mapping[str, Any], _Built("scheduler", _table("basicsr.optim.schedules", "SCHEDULES"))]
StorageBlock = Annotated[Mapping[str, Any], Component("storage", STORAGE_REGISTRY, provided=("path", "role"))]
DegradationBlocks = Annotated[
    Mapping[str, Any] | Sequence[Mapping[str, Any]], _Steps("degradation", DEGRADATION_REGISTRY, provided=("scale",))
]
ON_DISK: StorageBlock = FrozenMapping({"type": "disk"})


LARGEST_WEIGHT = 1000


@with_config(ConfigDict(extra="forbid"))
class WeightedFolder(TypedDict, total=False):
    """A folder, a pattern or a database, and how often its images are taken in a pass of training."""

    path: Required[str]
    weight: Annotated[float, Gt(0), Le(LARGEST_WEIGHT)]


def _folders(value: Any) -> Any:
    """Refuses what names no folders."""
    is_list = isinstance(value, (list, tuple))
    problems = [Problem((), "names no folder; give at least one")] if is_list and not value else []
    for number, entry in enumerate(value if is_list else [value]):
        key = (number,) if is_list else ()
        if isinstance(entry, Mapping):
            allowed = list(WeightedFolder.__annotations__)
            problems += [unknown_key((*key, name), allowed) for name in entry if name not in allowed]
            weight = entry.get("weight", 1)
            if type(weight) not in (int, float) or not 0 < weight <= LARGEST_WEIGHT:
                what = f"must be a number above 0, at most {LARGEST_WEIGHT}, got {shown(weight)}"
                problems.append(Problem((*key, "weight"), f"{what}; leave out a folder that is not to be used"))
        elif not isinstance(entry, str) or not entry:
            what = "must be a folder, a pattern such as photos/**/*.jpg, {path: ..., weight: ...}, or a list of these"
            problems.append(Problem(key, what, entry))
    return raise_problems(problems) if problems else value


ImageFolders = Annotated[str | WeightedFolder | Sequence[str | WeightedFolder], BeforeValidator(_folders)]
"""A folder or pattern, or several: which images a dataset has."""
ImageLists = str | Sequence[str | None]
"""A file that lists images, or one for each folder, None for all images of that one."""


def is_auto(block: Mapping[str, Any] | None) -> bool:
    """Whether a network's block says that the network is to be recognised from its weights."""
    return block is not None and block.get("type") == "auto"


def constructor_of(registry: Registry, block: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The class or function that a block names, or None where it names none."""
    name = block.get("type")
    return registry.get(name) if isinstance(name, str) and name in registry else None
