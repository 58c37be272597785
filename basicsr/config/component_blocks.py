"""Holds every block that names a component by `type` against that component's constructor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from basicsr.config.schema import DatasetOptions, contrastive_block
from basicsr.config.yaml_files import KeyPath
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    LOSS_REGISTRY,
    METHOD_REGISTRY,
    METRIC_REGISTRY,
    Registry,
)
from basicsr.utils.signatures import Problem, call_style, find_problems, unknown_key_message
from basicsr.utils.text import nearest, shown

Finding = tuple[KeyPath, str]

_LOSSES = ("pixel_opt", "perceptual_opt", "resp_kd_opt", "adversarial_opt")
_STORAGE: dict[Any, tuple[str, ...]] = {"disk": (), "lmdb": ("readahead",)}
_LOADER_KEYS = [name for name in DatasetOptions.model_fields if name not in ("type", "arguments", "phase", "scale")]


def find_component_problems(data: Mapping[str, Any]) -> list[Finding]:
    """Checks all component blocks of the options' data, whatever else is wrong with the data.

    Returns:
        The key of each mistake and what is wrong there.
    """
    findings: list[Finding] = []
    for key, block, check in _blocks(data):
        findings += [((*key, *name), message) for name, message in check(block)]
    return findings


def takes_crop_border(block: Mapping[str, Any]) -> bool:
    """Whether the metric that a block names has a parameter `crop_border`."""
    function = constructor_of(METRIC_REGISTRY, block)
    return function is not None and "crop_border" in _parameter_names(function)


def is_auto(block: Mapping[str, Any] | None) -> bool:
    """Whether a network's block says that the network is to be recognised from its weights."""
    return block is not None and block.get("type") == "auto"


def constructor_of(registry: Registry, block: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The class or function that a block names, or None where it names none."""
    name = block.get("type")
    return registry.get(name) if isinstance(name, str) and name in registry else None


def _blocks(
    data: Mapping[str, Any],
) -> Iterator[tuple[KeyPath, Mapping[str, Any], Callable[..., list[Finding]]]]:
    train, val = _mapping(data, "train"), _mapping(data, "val")
    candidates: list[tuple[KeyPath, Any, Callable[..., list[Finding]]]] = []
    for key in ("network_g", "network_t"):
        candidates.append(((key,), data.get(key), _network))
    candidates.append((("network_d",), data.get("network_d"), _discriminator))
    for row, entry in _mapping(data, "networks").items():
        if isinstance(entry, Mapping):
            candidates.append((("networks", row, "network"), entry.get("network"), _network))
    for key in _LOSSES:
        candidates.append((("train", key), train.get(key), _loss))
    for name, block in _mapping(train, "distill").items():
        candidates.append((("train", "distill", name), block, _method))
    candidates.append((("train", "contrastive_opt"), train.get("contrastive_opt"), _contrastive))
    for key in ("optim_g", "optim_d"):
        candidates.append((("train", key), train.get(key), _optimizer))
    candidates.append((("train", "scheduler"), train.get("scheduler"), _scheduler))
    for name, block in _mapping(val, "metrics").items():
        candidates.append((("val", "metrics", name), block, _metric))
    for name, block in _mapping(data, "datasets").items():
        candidates.append((("datasets", name), block, _dataset))
    for location, block, check in candidates:
        if isinstance(block, Mapping):
            yield location, block, check


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _network(block: Mapping[str, Any]) -> list[Finding]:
    if is_auto(block):
        message = "means nothing beside type: auto, which reads the network from the file of its weights; remove it"
        return [((key,), message) for key in block if key != "type"]
    return _registered(ARCH_REGISTRY, block, {})


def _discriminator(block: Mapping[str, Any]) -> list[Finding]:
    if is_auto(block):
        return [(("type",), "auto recognises networks that make images; name the discriminator's type")]
    return _registered(ARCH_REGISTRY, block, {})


def _loss(block: Mapping[str, Any]) -> list[Finding]:
    return _registered(LOSS_REGISTRY, block, {})


def _method(block: Mapping[str, Any]) -> list[Finding]:
    findings = _registered(METHOD_REGISTRY, block, {})
    criterion = block.get("criterion")
    if isinstance(criterion, Mapping):
        findings += [(("criterion", *key), message) for key, message in _loss(criterion)]
    for number, teacher in further_teachers(block):
        findings += [(("teachers", number, *key), message) for key, message in _further_teacher(teacher)]
    return findings


def _further_teacher(block: Mapping[str, Any]) -> list[Finding]:
    from basicsr.distill.several_teachers import FurtherTeacher

    findings = _findings(FurtherTeacher, block, {})
    if isinstance(network := block.get("network"), Mapping):
        findings += [(("network", *key), message) for key, message in _network(network)]
    return findings


def further_teachers(block: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The teachers that a method's block lists beside `network_t`, those that are mappings, by their number."""
    teachers = block.get("teachers")
    listed = teachers if isinstance(teachers, (list, tuple)) else ()
    return [(number, teacher) for number, teacher in enumerate(listed) if isinstance(teacher, Mapping)]


def _metric(block: Mapping[str, Any]) -> list[Finding]:
    given = {key: value for key, value in block.items() if key != "better"}
    findings = _registered(METRIC_REGISTRY, given, {"img": None, "img2": None}, further=("better",))
    if block.get("better", "higher") not in ("higher", "lower"):
        findings.append((("better",), f"must be higher or lower, got {shown(block['better'])}"))
    return findings


def _contrastive(block: Mapping[str, Any]) -> list[Finding]:
    if "mode" in block:
        return [(("mode",), "unknown key; write it as type: image, patch or hybrid")]
    findings = _registered(METHOD_REGISTRY, contrastive_block(block), {}, renamed={"mode": "type"})
    return [(("type",) if key == ("mode",) else key, message) for key, message in findings]


def _dataset(block: Mapping[str, Any]) -> list[Finding]:
    provided = {key: block.get(key) for key in (*_LOADER_KEYS, "phase", "scale")}
    arguments = {key: value for key, value in block.items() if key != "type" and key not in provided}
    named = {"type": block["type"]} if "type" in block else {}
    findings = _registered(DATASET_REGISTRY, {**named, **arguments}, provided)
    factory = constructor_of(DATASET_REGISTRY, block)
    if factory is None or call_style(factory) == "opt":
        return findings
    allowed = _LOADER_KEYS + [name for name in _parameter_names(factory) if name not in provided]
    findings = [
        (
            key,
            unknown_key_message(str(key[-1]), allowed)
            if message.startswith("unknown key") and len(key) == 1
            else message,
        )
        for key, message in findings
    ]
    storage = block.get("io_backend")
    return findings + (_storage(storage) if isinstance(storage, Mapping) else [])


def _storage(block: Mapping[str, Any]) -> list[Finding]:
    kind = block.get("type")
    if not isinstance(kind, str) or kind not in _STORAGE:
        findings = [_no_type("storage", block, list(_STORAGE))]
    else:
        known = ["type", *_STORAGE[kind]]
        findings = [((key,), unknown_key_message(key, known)) for key in block if key not in known]
    return [(("io_backend", *key), message) for key, message in findings]


def _optimizer(block: Mapping[str, Any]) -> list[Finding]:
    import torch

    from basicsr.optim.optimizers import ARGUMENTS, OPTIMIZERS

    parameter = torch.nn.Parameter(torch.zeros(1))
    return _tried("optimizer", OPTIMIZERS, block, {"params": [parameter]}, ARGUMENTS)


def _scheduler(block: Mapping[str, Any]) -> list[Finding]:
    from basicsr.optim.schedules import SCHEDULES

    return _tried("scheduler", SCHEDULES, block, {})


def _registered(
    registry: Registry,
    block: Mapping[str, Any],
    provided: Mapping[str, Any],
    *,
    further: Sequence[str] = (),
    renamed: Mapping[str, str] = {},
) -> list[Finding]:
    """Holds a block against the member that it names.

    Args:
        registry: of the members.
        block: `type` and the member's arguments.
        provided: what the framework passes itself.
        further: keys that the block may hold beside the member's arguments.
        renamed: how options call some of the arguments.
    """
    name = block.get("type")
    if not isinstance(name, str):
        return [_no_type(registry.kind, block, registry.names())]
    try:
        factory = registry.get(name)
    except OptionsError as error:
        return [(("type",), str(error))]
    names = [renamed.get(name, name) for name in _parameter_names(factory)] + list(further)
    return [
        (key, _with_names(str(key[-1]), message, names) if further or renamed else message)
        for key, message in _findings(factory, block, provided)
    ]


def _with_names(key: str, message: str, names: Sequence[str]) -> str:
    shown_names = [name for name in names if name not in ("img", "img2")]
    return unknown_key_message(key, shown_names) if message.startswith("unknown key") else message


def _tried(
    kind: str,
    members: Mapping[str, Callable[..., Any]],
    block: Mapping[str, Any],
    provided: Mapping[str, Any],
    hints: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """As `_registered`, for members cheap enough to build, which finds values out of range too."""
    name = block.get("type")
    if not isinstance(name, str):
        return [_no_type(kind, block, list(members))]
    if name not in members:
        near = nearest(name, list(members))
        return [(("type",), f"no {kind} is called '{name}'{near}; there are: {', '.join(members)}")]
    findings = _findings(members[name], block, provided, hints)
    if findings:
        return findings
    try:
        members[name](**provided, **{key: value for key, value in block.items() if key != "type"})
    except Exception as error:  # whatever torch makes of values that it was not written for
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return [((), f"{name}: {first}")]
    return []


def _findings(
    factory: Callable[..., Any],
    block: Mapping[str, Any],
    provided: Mapping[str, Any],
    hints: Mapping[str, Any] | None = None,
) -> list[Finding]:
    given = {key: value for key, value in block.items() if key != "type"}
    problems = [_without_framework_names(p, provided) for p in find_problems(factory, given, provided, hints)]
    findings: list[Finding] = [((p.key, *p.inside), p.message) for p in problems]
    if {"layer_weights", "vgg_weights"} <= set(_parameter_names(factory)):
        findings += _vgg_layers(block)
    if "params" in given and "params" in provided:
        findings.append((("params",), "unknown key; the parameters are the network's"))
    return findings


def _vgg_layers(block: Mapping[str, Any]) -> list[Finding]:
    """The VGG and its layers, which are texts and keys of the block's and not of the constructor's."""
    from basicsr.archs.vgg_arch import VGG_TYPES, layer_names

    vgg, weights = block.get("vgg_type", "vgg19"), block.get("layer_weights")
    if not isinstance(vgg, str) or not isinstance(weights, Mapping):
        return []
    if vgg not in VGG_TYPES:
        return [
            (
                ("vgg_type",),
                f"no VGG is called '{vgg}'{nearest(vgg, list(VGG_TYPES))}; there are: {', '.join(VGG_TYPES)}",
            )
        ]
    names = layer_names(vgg)
    return [(("layer_weights", key), unknown_key_message(key, names)) for key in weights if key not in names]


def _without_framework_names(problem: Problem, provided: Mapping[str, Any]) -> Problem:
    """Leaves what the framework itself passes (img, params) out of the list of what is allowed."""
    before, marker, allowed = problem.message.partition("; allowed: ")
    if not marker:
        return problem
    names = [name for name in allowed.split(", ") if name not in ("img", "img2", "params") or name not in provided]
    return Problem(problem.key, before + marker + ", ".join(names), problem.inside)


def _no_type(kind: str, block: Mapping[str, Any], names: list[str]) -> Finding:
    there_are = f"; there are: {', '.join(names) or 'none'}"
    article = "an" if kind[0] in "aeiou" else "a"
    if block.get("type") is not None:
        return ("type",), f"must be the name of {article} {kind}, got {shown(block['type'])}{there_are}"
    others = [] if "type" in block else block
    misspelt = next((key for key in others if abs(len(key) - len("type")) < 2 and nearest(key, ["type"])), None)
    if misspelt is not None:
        return (misspelt,), f"unknown key{nearest(misspelt, ['type'])}; {article} {kind} needs a type{there_are}"
    return ("type",), f"is required, as {article} {kind} needs a type{there_are}"


def _parameter_names(factory: Callable[..., Any]) -> list[str]:
    import inspect

    return list(inspect.signature(factory).parameters)
