"""Every number in options has a range: of all sections, and of the constructors in all registries."""

from __future__ import annotations

import inspect
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt
from pydantic.fields import FieldInfo

from basicsr.distill.several_teachers import FurtherTeacher
from basicsr.engine.optimizers import ARGUMENTS, OPTIMIZERS
from basicsr.engine.schedules import SCHEDULES
from basicsr.utils import options_schema
from basicsr.utils.components import call_style, type_hints, type_mismatch
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METHOD_REGISTRY,
    METRIC_REGISTRY,
)

ROOT = Path(__file__).resolve().parents[2]
REGISTRIES = (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METHOD_REGISTRY, METRIC_REGISTRY)
UNION = (typing.Union, types.UnionType)
FAR_OUT = (math.inf, -math.inf, math.nan, 10**30, -(10**30), 1e300, -1e300)


def parameters() -> dict[str, Any]:
    """The type of each key of options, by a name for it."""
    found: dict[str, Any] = {}
    members = {f"{registry.kind} {name}": member for registry in REGISTRIES for name, member in registry}
    members["teacher"] = FurtherTeacher
    members |= {f"scheduler {name}": member for name, member in SCHEDULES.items()}
    for label, member in members.items():
        assert call_style(member) == "keywords", label
        hints = type_hints(member)
        for name in inspect.signature(member).parameters:
            if name not in ("img", "img2"):
                found[f"{label}: {name}"] = hints[name]
    for label, member in OPTIMIZERS.items():
        for name in inspect.signature(member).parameters:
            if name != "params":
                found[f"optimizer {label}: {name}"] = ARGUMENTS[name]
    for section in vars(options_schema).values():
        if inspect.isclass(section) and issubclass(section, options_schema.Section):
            for name, hint in typing.get_type_hints(section, include_extras=True).items():
                if name in section.model_fields:
                    found[f"{section.__name__}: {name}"] = hint
    return found


PARAMETERS = parameters()


def bounds(metadata: Any) -> list[BaseMetadata]:
    flat = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            flat += bounds(item.metadata)
        elif isinstance(item, GroupedMetadata):
            flat += bounds(item)
        else:
            flat.append(item)
    return [item for item in flat if isinstance(item, (Ge, Gt, Le, Lt))]


def numbers(hint: Any, form: Any = lambda value: value, own: Any = ()) -> list[tuple[type, list[BaseMetadata], Any]]:
    """The numbers in a type: int or float, its bounds, and what makes a value of the whole type of such a number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float):
        return [(hint, bounds(own), form)]
    if origin is Annotated:
        return numbers(arguments[0], form, arguments[1:])
    if origin in UNION:
        return [found for part in arguments for found in numbers(part, form)]
    holder = origin if inspect.isclass(origin) and issubclass(origin, (Sequence, Mapping)) else None
    if holder is None or not arguments:
        return []
    if origin is tuple and Ellipsis not in arguments:
        return [
            found
            for index, part in enumerate(arguments)
            for found in numbers(part, lambda value, index=index: form(_others(arguments, index, value)))
        ]
    if issubclass(holder, Mapping):
        return numbers(arguments[1], lambda value: form({"a": value}))
    return numbers(arguments[0], lambda value: form((value,)))


def _others(parts: Any, index: int, value: Any) -> tuple[Any, ...]:
    """A tuple with `value` at `index` and values within their range elsewhere."""
    return tuple(value if place == index else _inside(part) for place, part in enumerate(parts))


def _inside(hint: Any) -> Any:
    ((kind, limits, _),) = numbers(hint)
    return next(kind(value) for value in (1, 0.5, 8) if all(holds(limit, value) for limit in limits))


def holds(limit: Any, value: float) -> bool:
    if isinstance(limit, (Ge, Gt)):
        return value >= limit.ge if isinstance(limit, Ge) else value > limit.gt
    return value <= limit.le if isinstance(limit, Le) else value < limit.lt


NUMERIC = {name: numbers(hint) for name, hint in PARAMETERS.items() if numbers(hint)}


def test_the_walk_finds_numbers_wherever_they_stand():
    assert len(NUMERIC) > 200
    for name in (
        "network EDSR: num_feat",
        "network SwinIR: img_size",
        "network NAFNet: enc_blk_nums",
        "loss PerceptualLoss: layer_weights",
        "distillation method DCKD: input_range",
        "optimizer Adam: betas",
        "scheduler MultiStepLR: milestones",
        "metric calculate_psnr: crop_border",
        "teacher: weight",
        "dataset PairedImageDataset: mean",
        "TrainOptions: grad_clip",
        "ReportOptions: input",
        "Options: num_gpu",
        "DistOptions: port",
    ):
        assert name in NUMERIC
    assert len(NUMERIC["network SwinIR: img_size"]) == 3


@pytest.mark.parametrize("name", NUMERIC)
def test_every_number_has_a_range_and_keeps_to_it(name):
    for kind, limits, form in NUMERIC[name]:
        lower = [limit for limit in limits if isinstance(limit, (Ge, Gt))]
        upper = [limit for limit in limits if isinstance(limit, (Le, Lt))]
        assert len(lower) == len(upper) == 1, f"{name} has no range"
        hint = PARAMETERS[name]
        for value in FAR_OUT:
            assert type_mismatch(form(value), hint) is not None, value
        for limit in limits:
            (edge,) = (getattr(limit, key) for key in ("ge", "gt", "le", "lt") if hasattr(limit, key))
            inside, outside = _around(kind, limit, edge)
            assert type_mismatch(form(inside), hint) is None, f"{inside}: {type_mismatch(form(inside), hint)}"
            assert type_mismatch(form(outside), hint) is not None, outside
        for value in (-1, 0, 10**9):
            fits = all(holds(limit, value) for limit in limits)
            assert (type_mismatch(form(kind(value)), hint) is None) is fits, value


def _around(kind: type, limit: Any, edge: float) -> tuple[float, float]:
    """The last number within a bound and the first beyond it."""
    away = -1 if isinstance(limit, (Ge, Gt)) else 1
    if kind is int:
        beyond = edge if isinstance(limit, (Gt, Lt)) else edge + away
        return beyond - away, beyond
    towards = math.inf * away
    beyond = float(edge) if isinstance(limit, (Gt, Lt)) else math.nextafter(edge, towards)
    return math.nextafter(beyond, -towards), beyond


def test_every_default_is_in_its_range():
    for registry in REGISTRIES:
        for label, member in registry:
            hints = type_hints(member)
            for name, parameter in inspect.signature(member).parameters.items():
                if (
                    parameter.default not in (inspect.Parameter.empty, None)
                    and f"{registry.kind} {label}: {name}" in NUMERIC
                ):
                    assert type_mismatch(parameter.default, hints[name]) is None, (label, name)


def test_the_schema_has_the_ranges():
    definitions = json.loads((ROOT / "options" / "schema.json").read_text())["$defs"]
    loose: list[str] = []

    def walk(node: Any, place: str) -> None:
        if isinstance(node, list):
            for index, item in enumerate(node):
                walk(item, f"{place}[{index}]")
        elif isinstance(node, dict):
            if node.get("type") in ("integer", "number") and not {"const", "enum"} & set(node):
                low, high = {"minimum", "exclusiveMinimum"} & set(node), {"maximum", "exclusiveMaximum"} & set(node)
                if not (low and high):
                    loose.append(place)
            for key, item in node.items():
                walk(item, f"{place}.{key}")

    walk(definitions, "")
    assert loose == []
    assert definitions["TrainOptions"]["properties"]["accumulate"]["maximum"] == 1024
