"""Writes options/schema.json and options/compress/schema.json, from which editors complete and check options files.

    python scripts/make_schema.py            # after adding a network, loss, method, dataset, metric or key
    python scripts/make_schema.py --check    # exit code 1 if a file is out of date

The schema comes from the typed options and from the constructors in the registries. It is looser than the check at
the start of a run: nothing is required in it, because a key may come from a file named by `_base_`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 0)]

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

from compression.options import SECTION, CompressOptions
from pydantic import ConfigDict, PydanticInvalidForJsonSchema, PydanticUserError, TypeAdapter
from pydantic.json_schema import PydanticJsonSchemaWarning

from basicsr.config.component_blocks import SET_BY_THE_COMMAND
from basicsr.config.schema import Options
from basicsr.optim.optimizers import ARGUMENTS, OPTIMIZERS
from basicsr.optim.schedules import SCHEDULES
from basicsr.utils.registry import (
    ARCH_REGISTRY,
    DATASET_REGISTRY,
    DEGRADATION_REGISTRY,
    LOSS_REGISTRY,
    METHOD_REGISTRY,
    METRIC_REGISTRY,
    Registry,
    call_style,
    type_hints,
)

SCHEMA_FILE = Path(__file__).resolve().parents[1] / "options" / "schema.json"
COMPRESS_FILE = SCHEMA_FILE.parent / "compress" / "schema.json"
Schema = dict[str, Any]

_BASE = {
    "description": "file or files that this mapping starts from, relative to this file",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}
_BETTER = {"enum": ["higher", "lower"], "description": "which values are better; higher if left out"}
_CHOSEN_BY_COMPRESS = ("network_g", "networks", "report", "skip_missing")
_SCALED = ("upscale", "scale", "crop_border")
_PROVIDED = {
    "metric": ("img", "img2"),
    "optimizer": ("params",),
    "dataset": ("name", "phase", "scale"),
    "degradation": ("scale",),
}


def make_schema() -> Schema:
    """The JSON schema of options files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
        schema = Options.model_json_schema()
    definitions = schema["$defs"]
    dataset = definitions.pop("DatasetOptions")
    definitions["Options"] = {key: value for key, value in schema.items() if key != "$defs"}
    for definition in definitions.values():
        _loosen(definition)
    components = _components(dataset)
    for definition in _definitions_in(components):
        definitions.update(definition)
    definitions.update(components)
    whole = definitions["Options"]["properties"]
    for name in SET_BY_THE_COMMAND:
        del whole[name]
    one = {key: value for key, value in whole["scale"].items() if key != "description"}
    whole["scale"] = {
        "description": whole["scale"]["description"],
        "anyOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}],
    }
    whole["discriminator"] = {"description": "older name of network_d", "allOf": [{"$ref": "#/$defs/network"}]}
    whole["datasets"] = {
        "description": "train, val, val_1, ..., test, test_1, ...",
        "type": "object",
        "properties": {"_base_": _BASE},
        "patternProperties": {"^(train|(val|test)(_\\w+)?)$": {"$ref": "#/$defs/dataset"}},
        "additionalProperties": False,
    }
    train = definitions["TrainOptions"]["properties"]
    train["gan_opt"] = {"description": "BasicSR's name of adversarial_opt", "allOf": [{"$ref": "#/$defs/loss"}]}
    for name, kind, text in (
        ("resp_kd_opt", "loss", "loss between the student's and teacher's outputs"),
        ("contrastive_opt", "contrastive", "MCAD-KD's contrastive loss"),
    ):
        train[name] = {"description": text, "allOf": [{"$ref": f"#/$defs/{kind}"}]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Options of basicsr/train.py and basicsr/test.py",
        "$ref": "#/$defs/Options",
        "$defs": dict(sorted(definitions.items())),
    }


def compress_schema() -> Schema:
    """That of scripts/compress.py's files: a training's keys, but for those that it sets itself, and its section."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
        schema = CompressOptions.model_json_schema()
    definitions = schema.pop("$defs")
    definitions["CompressOptions"] = schema
    for definition in definitions.values():
        _loosen(definition)
    shared = "../schema.json#/$defs"
    text = json.dumps(definitions).replace('"#/$defs/network"', f'"{shared}/network"')
    theirs = [key for key in Options.model_fields if key not in (*SET_BY_THE_COMMAND, *_CHOSEN_BY_COMPRESS)]
    keys: Schema = {key: {"$ref": f"{shared}/Options/properties/{key}"} for key in (*theirs, "_base_")}
    section = {"description": "what scripts/compress.py does", "allOf": [{"$ref": "#/$defs/CompressOptions"}]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Options of scripts/compress.py",
        "type": "object",
        "properties": {**keys, SECTION: section},
        "additionalProperties": False,
        "$defs": dict(sorted(json.loads(text).items())),
    }


def _definitions_in(node: Any) -> Iterator[dict[str, Schema]]:
    """Takes out the definitions of sections that are arguments of components."""
    if isinstance(node, (dict, list)):
        for inner in list(node.values() if isinstance(node, dict) else node):
            yield from _definitions_in(inner)
    if isinstance(node, dict) and "$defs" in node:
        found = node.pop("$defs")
        for definition in found.values():
            _loosen(definition)
        yield found


def _loosen(definition: Schema) -> None:
    """Requires nothing, allows `_base_`, and points component blocks to their definitions."""
    definition.pop("required", None)
    definition.pop("title", None)
    properties = definition["properties"]
    for name, entry in properties.items():
        properties[name] = _linked(entry)
    properties["_base_"] = _BASE


def _linked(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_linked(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    kept = {key: _linked(value) for key, value in entry.items() if key != "title"}
    kinds = [part["x-component"] for part in [entry, *entry.get("anyOf", [])] if "x-component" in part]
    if kinds:
        return {"description": entry.get("description", ""), "allOf": [{"$ref": f"#/$defs/{kinds[0]}"}]}
    if entry.get("type") == "object" and "properties" not in entry:
        kept["properties"] = {"_base_": _BASE}
    return kept


def _components(dataset: Schema) -> dict[str, Schema]:
    """A definition for each kind of component block."""
    loader_keys = {
        name: _linked(entry)
        for name, entry in dataset["properties"].items()
        if name not in ("type", "phase", "scale", "arguments")
    }
    contrastive = _block("contrastive", [("HybridContrastive", METHOD_REGISTRY.get("HybridContrastive"))])
    arguments = contrastive["allOf"][0]["then"]["properties"]
    arguments["type"] = arguments.pop("mode")
    return {
        "network": _block("network", [*_members(ARCH_REGISTRY), ("auto", _auto)]),
        "loss": _block("loss", _members(LOSS_REGISTRY)),
        "method": _block("method", _members(METHOD_REGISTRY)),
        "metric": _block("metric", _members(METRIC_REGISTRY), {"better": _BETTER}),
        "dataset": _block("dataset", _members(DATASET_REGISTRY), loader_keys),
        "degradation": _block("degradation", _members(DEGRADATION_REGISTRY)),
        "optimizer": _block("optimizer", OPTIMIZERS.items()),
        "scheduler": _block("scheduler", SCHEDULES.items()),
        "contrastive": {
            "type": ["object", "null"],
            "description": contrastive["allOf"][0]["then"]["description"],
            "properties": {**arguments, "_base_": _BASE},
            "additionalProperties": False,
        },
    }


def _auto() -> None:
    """The network that the file of its weights holds, recognised from keys and shapes; not for network_d."""


def _members(registry: Registry) -> list[tuple[str, Callable[..., Any]]]:
    """Members by the name that options use: BasicSR registers some under a suffix that may be left out."""
    return [(name.removesuffix("_basicsr"), registry.get(name)) for name in registry.names()]


def _block(
    kind: str, members: Iterable[tuple[str, Callable[..., Any]]], extra: Mapping[str, Schema] | None = None
) -> Schema:
    """A mapping whose `type` is one of the members, and whose other keys are then that member's arguments."""
    cases = []
    names = []
    for name, factory in members:
        names.append(name)
        arguments = _arguments(factory, _PROVIDED.get(kind, ()))
        then: Schema = {
            "description": _first_line(factory),
            "properties": {"type": True, "_base_": _BASE, **(extra or {}), **arguments},
        }
        if call_style(factory) == "keywords":
            then["additionalProperties"] = False
        cases.append({"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": then})
    return {
        "type": ["object", "null"],
        "properties": {"type": {"enum": names, "description": f"which {kind}"}, "_base_": _BASE},
        "allOf": cases,
    }


def _arguments(factory: Callable[..., Any], provided: Sequence[str]) -> dict[str, Schema]:
    if call_style(factory) == "opt":
        return {}
    hints = ARGUMENTS if factory in OPTIMIZERS.values() else type_hints(factory)
    texts = _argument_texts(factory)
    arguments = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in provided or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        entry = _type_schema(hints.get(name, Any))
        if name in texts:
            entry["description"] = texts[name]
        if isinstance(parameter.default, (bool, int, float, str)):
            entry["default"] = parameter.default
        arguments[name] = {"anyOf": [entry, {"const": "{scale}"}]} if name in _SCALED else entry
    return arguments


def _type_schema(hint: Any) -> Schema:
    """The JSON schema of a type; of a union, the parts that have one; anything at all where there is none."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_type_schema(part) for part in typing.get_args(hint)]
        known = [part for part in parts if part]
        return {"anyOf": known} if len(known) > 1 else known[0] if known else {}
    try:
        schema = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError):
        return {"type": "array"} if typing.get_origin(hint) is tuple else {}
    if schema.get("x-component") == "loss":
        return {"$ref": "#/$defs/loss"}
    if schema.get("x-component") == "degradation":
        one = {"$ref": "#/$defs/degradation"}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    return {key: value for key, value in schema.items() if key not in ("title", "x-component")}


def _first_line(factory: Callable[..., Any]) -> str:
    return (inspect.getdoc(factory) or "").split("\n\n")[0].replace("\n", " ")


def _argument_texts(factory: Callable[..., Any]) -> dict[str, str]:
    """The entries of the docstring's `Args:` section, by name; a class inherits its bases'."""
    inherited = (*getattr(factory, "__bases__", ()), *filter(None, [getattr(factory, "options_of", None)]))
    texts = {name: text for base in inherited if base is not object for name, text in _argument_texts(base).items()}
    doc = inspect.getdoc(factory) or ""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    name = None
    for line in section.group(1).splitlines() if section else ():
        entry = re.match(r" {4}(\w+)(?: \([^)]*\))?: (.*)", line)
        if entry:
            name = entry.group(1)
            texts[name] = entry.group(2)
        elif name and line.startswith(" " * 8):
            texts[name] += " " + line.strip()
    return texts


def schema_text(schema: Schema | None = None) -> str:
    """The content of options/schema.json, or of another schema."""
    return json.dumps(make_schema() if schema is None else schema, indent=1, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the files are up to date")
    arguments = parser.parse_args(argv)
    old = 0
    for file, text in ((SCHEMA_FILE, schema_text()), (COMPRESS_FILE, schema_text(compress_schema()))):
        if not arguments.check:
            file.write_text(text, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != text:
            print(f"{file} is out of date: run python scripts/make_schema.py", file=sys.stderr)
            old = 1
    return old


if __name__ == "__main__":
    sys.exit(run_command(main))
