"""Every number in options has a range: of all sections, and of the constructors in all registries."""

from __future__ import annotations

import copy
import inspect
import json
import math
import random
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt
from pydantic.fields import FieldInfo
from support.typed import type_mismatch

from basicsr.config import schema as options_schema
from basicsr.config.load import load_options, no_warning
from basicsr.config.schema import thaw
from basicsr.optim.optimizers import ARGUMENTS, OPTIMIZERS
from basicsr.optim.schedules import SCHEDULES
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METHOD_REGISTRY,
    METRIC_REGISTRY,
    call_style,
    type_hints,
)

ROOT = Path(__file__).resolve().parents[2]
REGISTRIES = (ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METHOD_REGISTRY, METRIC_REGISTRY)
UNION = (typing.Union, types.UnionType)
FAR_OUT = (math.inf, -math.inf, math.nan, 10**30, -(10**30), 1e300, -1e300)


def parameters() -> dict[str, Any]:
    """The type of each key of options, by a name for it."""
    found: dict[str, Any] = {}
    members = {f"{registry.kind} {name}": member for registry in REGISTRIES for name, member in registry}
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
        if type(section) is type(options_schema.Section) and issubclass(section, options_schema.Section):
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
        "FurtherTeacher: weight",
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


def leaves(value: Any, key: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield (*key, name)
        yield from leaves(inner, (*key, name))


WRONG = (
    -1,
    0,
    10**9,
    1e30,
    math.inf,
    math.nan,
    "x",
    True,
    None,
    [],
    {},
    [-1],
    [[1]],
    {"type": 3},
    {"a": {"b": 1}},
    0.5,
)


@pytest.mark.parametrize(
    ("file", "count"),
    [
        ("mcadkd_edsr_x2", 60),
        *(pytest.param(file, 400, marks=pytest.mark.long) for file in ("dckd_dukd_swinir_x4", "dckd_restormer_gopro")),
    ],
)
def test_any_value_at_any_key_is_taken_or_refused_in_lines(file, count):
    whole = thaw(load_options(ROOT / f"options/train/{file}.yml", training=True, paths=False))
    cases = [(key, value) for key in leaves(whole) for value in WRONG]
    for key, value in random.Random(0).sample(cases, count):
        changed = copy.deepcopy(whole)
        holder = changed
        for part in key[:-1]:
            holder = holder[part]
        holder[key[-1]] = copy.deepcopy(value)
        try:
            load_options(changed, training=True, paths=False, warn=no_warning)
        except OptionsError as error:
            assert all(line.startswith("options: ") for line in str(error).splitlines()[1:])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("network_g:num_block=1e9", "network_g.num_block: input should be less than or equal to 1000, got 1000000000"),
        ("network_g:num_feat=0", "network_g.num_feat: input should be greater than or equal to 1, got 0"),
        ("network_g:rgb_mean=[0.5]", "network_g.rgb_mean: has 1 entries for num_in_ch 3 and num_out_ch 3"),
        ("network_t:rgb_mean=[114, 111, 103]", "network_t.rgb_mean[0]: input should be less than or equal to 1"),
        ("train:pixel_opt:loss_weight=-1", "train.pixel_opt.loss_weight: input should be greater than or equal to 0"),
        ("train:scheduler:gamma=-1", "train.scheduler.gamma: input should be greater than 0, got -1"),
        ("train:scheduler:gamma=.inf", "train.scheduler.gamma: input should be a finite number, got inf"),
        ("train:scheduler:milestones=[200, 100]", "train.scheduler.milestones: must ascend, but 100 comes after 200"),
        ("train:optim_g:lr=.inf", "train.optim_g.lr: input should be a finite number, got inf"),
        ("train:optim_g:betas=[0.9, 1]", "train.optim_g.betas[1]: input should be less than 1"),
        ("train:optim_d:maximize=true", "train.optim_d.maximize: input should be False, got True"),
        ("train:optim_g:capturable=true", "train.optim_g.capturable: input should be False, got True"),
        ("train:accumulate=1e9", "train.accumulate: input should be less than or equal to 1024, got 1000000000"),
        ("datasets:train:num_worker_per_gpu=3000", "num_worker_per_gpu: input should be less than or equal to 1024"),
        ("train:contrastive_opt:embed_dim=250", "train.contrastive_opt.embed_dim: is 250, allowed: multiples of 4"),
        ("train:adversarial_opt:fake_label_val=1.0", "real_label_val: is 1.0, as is fake_label_val"),
        ("network_g={type: SwinIR, upscale: 2, num_heads: [6, 6, 6]}", "network_g.depths: has 4 entries and num_h"),
        ("network_g={type: SwinIR, upscale: 2, embed_dim: 95}", "network_g.embed_dim: 95 is not a multiple"),
        ("network_g={type: NAFNet, enc_blk_nums: [1]}", "network_g.enc_blk_nums: has 1 entries and dec_blk_nums 0"),
        ("network_g={type: Restormer, heads: [1, 2, 4, 7]}", "network_g.heads: [1, 2, 4, 7]: 7 do not divide the 384"),
        ("network_g={type: RCAN, num_in_ch: 3, num_out_ch: 3, upscale: 2, num_group: 900, num_block: 900}",
         "network_g.num_group: makes 810000 blocks in all, allowed: 2000"),
        ("train:net_d_iters=1e9", "train.net_d_iters: is 1000000000, but total_iter is 250000: the network"),
        ("train:net_d_init_iters=250000", "train.net_d_init_iters: is 250000, but total_iter is 250000: the network"),
        ("network_d={type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 64, input_size: 128}",
         "network_d.input_size: is 128, but datasets.train.gt_size is 96; make them equal"),
    ],
)  # fmt: skip
def test_what_is_out_of_range_or_contradicts_itself_is_told_with_its_key_before_anything_is_built(override, told):
    with pytest.raises(OptionsError) as caught:
        load_options(ROOT / "options/train/mcadkd_edsr_x2.yml", overrides=[override], training=True, paths=False)
    lines = str(caught.value).splitlines()[1:]
    assert any(told in line for line in lines), lines
