"""Options files with one mistake each, written so that the line of every key is known; and what the schema allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.config.load import load_options, load_test_options
from basicsr.config.schema import Options, thaw
from basicsr.config.yaml_files import Document, load_yaml
from basicsr.config.yaml_reader import Entry, KeyPath, Position, merge_entries

OPTIONS = Path(__file__).resolve().parents[2] / "options"
SCHEMA = json.loads((OPTIONS / "schema.json").read_text("utf-8"))
NAMED_BY_THE_USER = (("networks",), ("val", "metrics"), ("train", "distill"))


def shipped_files() -> list[Path]:
    """Every options file that a command takes, and the pieces of the comparisons."""
    return sorted([*OPTIONS.glob("t*/*.yml"), *OPTIONS.glob("compare/**/*.yml")])


def is_for_training(file: Path) -> bool:
    return "test" not in file.parts[len(OPTIONS.parts) :]


def load(file: Path, training: bool) -> Options:
    return load_options(file, training=True, paths=False) if training else load_test_options(file, paths=False)[0]


def resolved(file: Path) -> dict[str, Any]:
    """All that a run by this file sees, defaults included; bases of comparisons are given a name and a method."""
    if "compare" not in file.parts[len(OPTIONS.parts) :]:
        return thaw(load(file, is_for_training(file)))
    root = load_yaml(file).root
    bases = {"small": "small_edsr_x2.yml", "quickstart": "quickstart_x2.yml"}
    if (folder := next((name for name in bases if name in file.parts), None)) is not None:
        root = merge_entries(load_yaml(OPTIONS / "compare" / bases[folder]).root, root)
    elif "pixel_opt" not in root.value["train"].value:
        root = merge_entries(root, load_yaml(OPTIONS / "methods/kd.yml").root)
    root.value.setdefault("name", Entry(file.stem, Position(str(file))))
    return thaw(load_options(Document(root).data(), training=True, paths=False))


@dataclass
class Node:
    """A key with its value: the nodes of a mapping, or a scalar or list. `line` is where `write` puts it."""

    key: str
    value: Any
    line: int = 0
    path: KeyPath = field(default=())


def nodes_of(data: dict[str, Any], path: KeyPath = ()) -> list[Node]:
    made = []
    for key, value in data.items():
        inner = nodes_of(value, (*path, key)) if isinstance(value, dict) else value
        made.append(Node(key, _Nodes(inner) if isinstance(value, dict) else value, path=(*path, key)))
    return made


class _Nodes(list[Node]):
    """What a mapping holds, as against a list among the values."""


def walk(nodes: list[Node]) -> Iterator[tuple[list[Node], Node]]:
    """Every node, with the list that holds it."""
    for node in list(nodes):
        yield nodes, node
        if isinstance(node.value, _Nodes):
            yield from walk(node.value)


def write(nodes: list[Node]) -> str:
    """The nodes as YAML, a key to a line; each node's `line` is set."""
    lines: list[str] = []
    _write(nodes, 0, lines)
    return "\n".join(lines) + "\n"


def _write(nodes: list[Node], depth: int, lines: list[str]) -> None:
    for node in nodes:
        is_block = isinstance(node.value, _Nodes) and bool(node.value)
        text = "" if is_block else " {}" if isinstance(node.value, _Nodes) else f" {scalar_text(node.value)}"
        lines.append(f"{'  ' * depth}{node.key}:{text}")
        node.line = len(lines)
        if is_block:
            _write(node.value, depth + 1, lines)


def scalar_text(value: Any) -> str:
    """A value on one line, as YAML's flow style has it."""
    if value is None:
        return "~"
    if isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return f"[{', '.join(map(scalar_text, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {scalar_text(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def misspellings(key: str) -> list[str]:
    """The key with one of its inner letters dropped, or two neighbours swapped."""
    dropped = [key[:i] + key[i + 1 :] for i in range(1, len(key))] if len(key) > 2 else [key + key[-1]]
    swapped = [key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in range(len(key) - 1) if key[i] != key[i + 1]]
    usable = [word for word in (*dropped, *swapped) if word != key and re.fullmatch(r"[A-Za-z]\w*", word)]
    return list(dict.fromkeys(usable))


def edit_distance(a: str, b: str) -> int:
    """How many letters must be dropped, added, replaced or swapped with their neighbour to make `b` of `a`."""
    rows = [list(range(len(b) + 1))]
    for i, sign in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (sign != other))
            if i > 1 and j > 1 and sign == b[j - 2] and a[i - 2] == other:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def schema_of(path: KeyPath, data: dict[str, Any]) -> Any:
    """What options/schema.json says of the value at `path` in `data`; None where it says nothing."""
    here: Any = SCHEMA["$defs"]["Options"]
    block: Any = data
    for part in path:
        here = _property(here, str(part), block)
        block = block[part]
        if here is None:
            return None
    return here


def _property(schema: Any, name: str, block: Any) -> Any:
    """The schema of one key of a mapping, `block`, that `schema` describes."""
    schema = _resolved(schema)
    for case in schema.get("allOf", ()):
        if "if" not in case:
            found = _property(case, name, block)
        elif block.get("type") == case["if"]["properties"]["type"]["const"]:
            found = case["then"]["properties"].get(name)
        else:
            continue
        if found is not None and found is not True:
            return found
    for option in schema.get("anyOf", ()):
        if (found := _property(option, name, block)) is not None:
            return found
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    for pattern, entry in schema.get("patternProperties", {}).items():
        if re.search(pattern, name):
            return entry
    more = schema.get("additionalProperties")
    return more if isinstance(more, dict) else None


def property_names(path: KeyPath, data: dict[str, Any]) -> set[str]:
    """The keys that the schema names for the mapping at `path`."""
    block: Any = data
    for part in path:
        block = block[part]
    return set(_names(schema_of(path, data), block))


def _names(schema: Any, block: Any) -> Iterator[str]:
    if schema in (None, True):
        return
    schema = _resolved(schema)
    yield from schema.get("properties", ())
    for part in (*schema.get("allOf", ()), *schema.get("anyOf", ())):
        if "if" not in part:
            yield from _names(part, block)
        elif block.get("type") == part["if"]["properties"]["type"]["const"]:
            yield from part["then"]["properties"]


def _resolved(schema: Any) -> Any:
    return _resolved(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]) if "$ref" in schema else schema


_TYPES = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


def allows(schema: Any, value: Any) -> bool:
    """Whether a schema allows the type, number and choice of a value; 2.0 is no whole number here."""
    if schema is True or schema is None:
        return True
    schema = _resolved(schema)
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    if types and not any(_is_of_type(value, name) for name in types):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and not any(value == entry and type(value) is type(entry) for entry in schema["enum"]):
        return False
    if "anyOf" in schema and not any(allows(option, value) for option in schema["anyOf"]):
        return False
    if not all(allows(part, value) for part in schema.get("allOf", ()) if "if" not in part):
        return False
    return not isinstance(value, list) or _allows_items(schema, value)


def _is_of_type(value: Any, name: str) -> bool:
    if name in ("integer", "number"):
        return type(value) is int or (name == "number" and type(value) is float)
    return type(value) is _TYPES[name]


def _allows_items(schema: Any, value: list[Any]) -> bool:
    first = schema.get("prefixItems", [])
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    rest = schema.get("items", True)
    return all(allows(first[i] if i < len(first) else rest, item) for i, item in enumerate(value))
