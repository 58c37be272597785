"""Reads YAML options files safely, remembers where every key stands, and merges files that build on others.

Differences from PyYAML's safe loader, each of which has cost somebody a training run:

* `1e-4` and `5e3` are numbers; of whole value and with an exponent they are ints (`total_iter: 2.5e5`).
* Only `true` and `false` are booleans. `yes`, `on`, `1:30` and dates stay text. `010`, octal in PyYAML, is refused.
* A key given twice in one mapping is refused, as are tags other than YAML's own, deep nesting, alias bombs, and
  the bare words `None` and `.nan`.
* A mapping may say `_base_: other.yml` (or a list of files, relative to the file it stands in): it starts from
  that file's content, and its own keys are merged over it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from basicsr.utils.errors import OptionsError

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_NODES = 100_000
MAX_FILES = 100
BASE_KEY = "_base_"
OVERRIDE_FILE = "--force_yml"

KeyPath = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_CORE_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z")
_NAN = re.compile(r"\.(nan|NaN|NAN)\Z")


@dataclass(frozen=True)
class Position:
    """Where a key was written: a file and a line counted from 1, or the command line (no line)."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class LocatedProblem:
    """A mistake at a key of the options, and where that key was written."""

    position: Position
    key: KeyPath
    message: str

    def __str__(self) -> str:
        key = key_text(self.key)
        return f"{self.position}: {key}: {self.message}" if key else f"{self.position}: {self.message}"


@dataclass
class Entry:
    """A value with its position; a mapping holds entries by key, a list holds entries in order."""

    value: Any
    position: Position


@dataclass
class Document:
    """The content of an options file with everything it builds on.

    Attributes:
        root: the top-level mapping.
        problems: mistakes that did not stop the reading (a key given twice, a number with a leading zero).
    """

    root: Entry
    problems: list[LocatedProblem] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """The content as plain dicts, lists and scalars."""
        content = _plain(self.root)
        assert isinstance(content, dict)
        return content

    def position(self, key: Sequence[str | int]) -> Position:
        """Where `key` was written; for a key that is not there, where the mapping around it begins."""
        entry: Entry = self.root
        for part in key:
            inside: Any = range(len(entry.value)) if isinstance(entry.value, list) else entry.value
            if not isinstance(entry.value, (dict, list)) or part not in inside:
                break
            entry = entry.value[part]  # type: ignore[index]
        return entry.position

    def positions(self) -> dict[KeyPath, Position]:
        """Every key of every mapping, in the file's order, with its position."""
        return dict(_walk(self.root, ()))

    def set(self, override: str) -> None:
        """Sets one key from `a:b:c=value`, the value read as YAML; mappings on the way are made if missing.

        Raises:
            OptionsError: the text is not of that form, or the key leads through what is not a mapping.
        """
        position = Position(OVERRIDE_FILE)
        key_part, equals, text = override.partition("=")
        keys = [key.strip() for key in key_part.split(":")]
        if not equals or not all(keys) or not text.strip():
            raise OptionsError(
                f"{OVERRIDE_FILE}: '{override}' is not of the form train:total_iter=1000 (~ for nothing)"
            )
        if BASE_KEY in keys:
            raise OptionsError(f"{OVERRIDE_FILE}: '{override}': {BASE_KEY} is for options files only")
        entry = self.root
        for depth, key in enumerate(keys):
            if not isinstance(entry.value, dict):
                raise OptionsError(f"{OVERRIDE_FILE}: '{override}': {':'.join(keys[:depth])} is not a mapping")
            if depth == len(keys) - 1:
                reader = _Reader(self.problems)
                entry.value[key] = reader.read_text(text, OVERRIDE_FILE, tuple(keys), position)
            else:
                entry = entry.value.setdefault(key, Entry({}, position))


def load_yaml(path: str | Path) -> Document:
    """Reads an options file and the files it builds on.

    Raises:
        OptionsError: a file is missing, empty, too large, not UTF-8, not YAML, no mapping, or builds on itself.
    """
    problems: list[LocatedProblem] = []
    return Document(_Reader(problems).read_file(str(path), Position(str(path)), ()), problems)


def document_from_mapping(data: Mapping[str, Any], name: str = "options") -> Document:
    """Wraps options given as a mapping; `_base_` paths in it are relative to the working directory.

    Raises:
        OptionsError: a key is not text, or a file it builds on cannot be read.
    """
    problems: list[LocatedProblem] = []
    return Document(_Reader(problems).read_mapping(data, Position(name), ()), problems)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain dicts, lists and scalars as YAML that `load_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def key_text(key: Sequence[str | int]) -> str:
    """`('datasets', 'train', 'mean', 0)` as `datasets.train.mean[0]`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def merge_entries(base: Entry, own: Entry) -> Entry:
    """Merges `own` over `base`: mappings key by key; anything else, or a block of another `type`, replaces."""
    if not (isinstance(base.value, dict) and isinstance(own.value, dict)):
        return own
    types = [entry.value["type"].value for entry in (base, own) if "type" in entry.value]
    if len(types) == 2 and types[0] != types[1]:
        return own
    content = dict(base.value)
    for key, entry in own.value.items():
        content[key] = merge_entries(content[key], entry) if key in content else entry
    return Entry(content, own.position)


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner, parser and composer with YAML 1.2's plain scalars and a limit on nesting."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"is nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _add_resolvers() -> None:
    digits = "-+0123456789."
    for tag, pattern, first in (
        ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
        ("int", rf"^({_INT.pattern}|{_LEADING_ZERO.pattern})", list(digits)),
        ("float", rf"^({_FLOAT.pattern}|{_INFINITE.pattern}|{_NAN.pattern})", list(digits)),
        ("merge", r"^<<$", ["<"]),
    ):
        _Loader.add_implicit_resolver(_TAG + tag, re.compile(pattern), first)


_add_resolvers()


class _Dumper(yaml.SafeDumper):
    """Quotes all text that PyYAML or `_Loader` would read as something else."""

    yaml_implicit_resolvers = {
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers]
        for first, resolvers in {**yaml.SafeDumper.yaml_implicit_resolvers, **_Loader.yaml_implicit_resolvers}.items()
    }


_Dumper.add_implicit_resolver(_TAG + "null", re.compile("^None$"), ["N"])


class _Reader:
    """Reads an options file with its bases; counts files and nodes so that no input grows without bound."""

    def __init__(self, problems: list[LocatedProblem]) -> None:
        self.problems = problems
        self.files: list[str] = []
        self.num_files = 0
        self.num_nodes = 0

    def read_file(self, file: str, asked_at: Position, key: KeyPath) -> Entry:
        identity = os.path.realpath(file)
        if identity in self.files:
            raise OptionsError(f"{asked_at}: {file} builds on itself through {BASE_KEY}")
        self.num_files += 1
        if self.num_files > MAX_FILES:
            raise OptionsError(f"{asked_at}: more than {MAX_FILES} files are read through {BASE_KEY}")
        self.files.append(identity)
        entry = self.read_text(_file_text(file, asked_at), file, key, None)
        self.files.pop()
        if entry.value is None:
            raise OptionsError(f"{file}: is empty; an options file is a mapping of keys to values")
        if not isinstance(entry.value, dict):
            raise OptionsError(f"{file}:{entry.position.line}: an options file is a mapping of keys to values")
        return entry

    def read_text(self, text: str, file: str, key: KeyPath, position: Position | None) -> Entry:
        """Parses YAML; with `position`, everything in it is said to stand there."""
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            raise OptionsError(_syntax_message(error, file, position)) from None
        except yaml.YAMLError as error:
            raise OptionsError(f"{position or file}: is not text in UTF-8 ({str(error).splitlines()[0]})") from None
        if node is None:
            return Entry(None, position or Position(file, 1))
        return self.entry(node, file, key, position, 0)

    def read_mapping(self, data: Mapping[str, Any], position: Position, key: KeyPath) -> Entry:
        content: dict[str, Entry] = {}
        for name, value in data.items():
            if not isinstance(name, str):
                raise OptionsError(f"{position}: {key_text(key)}: key {name!r} is not text; keys are text")
            content[name] = self.read_value(value, position, (*key, name))
        return self.with_base(Entry(content, position), "", key)

    def read_value(self, value: Any, position: Position, key: KeyPath) -> Entry:
        if len(key) > MAX_DEPTH:
            raise OptionsError(f"{position}: {key_text(key[:3])}: is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            return self.read_mapping(value, position, key)
        if isinstance(value, (list, tuple)):
            items = [self.read_value(item, position, (*key, index)) for index, item in enumerate(value)]
            return Entry(items, position)
        return Entry(str(value) if isinstance(value, os.PathLike) else value, position)

    def entry(self, node: yaml.Node, file: str, key: KeyPath, position: Position | None, depth: int) -> Entry:
        here = position or Position(file, node.start_mark.line + 1)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            raise OptionsError(f"{here}: more than {MAX_NODES} values once aliases (*name) are expanded")
        if depth > MAX_DEPTH:
            raise OptionsError(f"{here}: is nested deeper than {MAX_DEPTH} levels once aliases (*name) are expanded")
        if node.tag not in _CORE_TAGS:
            tag = node.tag.replace(_TAG, "!!")
            raise OptionsError(f"{here}: {key_text(key)}: tag {tag} is not read; write the value plainly")
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, file, key, position, depth)
        if isinstance(node, yaml.SequenceNode):
            items = enumerate(node.value)
            return Entry([self.entry(item, file, (*key, i), position, depth + 1) for i, item in items], here)
        assert isinstance(node, yaml.ScalarNode)
        value, message = _scalar(node)
        if message:
            self.problems.append(LocatedProblem(here, key, message))
        return Entry(value, here)

    def mapping(self, node: yaml.MappingNode, file: str, key: KeyPath, position: Position | None, depth: int) -> Entry:
        here = position or Position(file, node.start_mark.line + 1)
        content: dict[str, Entry] = {}
        lines: dict[str, Position] = {}
        inherited: list[Entry] = []
        for key_node, value_node in node.value:
            at = position or Position(file, key_node.start_mark.line + 1)
            name = self.key(key_node, at, key)
            if name in lines:
                message = f"is given twice, here and at {lines[name]}; keep one"
                self.problems.append(LocatedProblem(at, (*key, name), message))
                continue
            lines[name] = at
            entry = self.entry(value_node, file, (*key, name), position, depth + 1)
            if key_node.tag == _TAG + "merge":
                inherited = self.merge_sources(entry, at, key)
            else:
                content[name] = Entry(entry.value, at)
        for source in inherited:
            for name, entry in source.value.items():
                content.setdefault(name, entry)
        return self.with_base(Entry(content, here), os.path.dirname(file), key)

    def key(self, node: yaml.Node, at: Position, parent: KeyPath) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag in (_TAG + "str", _TAG + "merge"):
            return node.value
        shown = repr(node.value) if isinstance(node, yaml.ScalarNode) else "of lists or mappings"
        where = f" {key_text(parent)}:" if parent else ""
        raise OptionsError(f"{at}:{where} key {shown} is not text; keys are text, so quote it")

    def merge_sources(self, entry: Entry, at: Position, key: KeyPath) -> list[Entry]:
        sources = entry.value if isinstance(entry.value, list) else [entry]
        if not all(isinstance(source.value, dict) for source in sources):
            raise OptionsError(f"{at}: {key_text(key)}: '<<' takes a mapping or a list of mappings (<<: *name)")
        return sources

    def with_base(self, entry: Entry, folder: str, key: KeyPath) -> Entry:
        """Merges a mapping over the files that its `_base_` names; later files over earlier ones."""
        base = entry.value.pop(BASE_KEY, None)
        if base is None:
            return entry
        names = base.value if isinstance(base.value, list) else [base]
        if not names or not all(isinstance(name.value, str) and name.value for name in names):
            raise OptionsError(f"{base.position}: {key_text((*key, BASE_KEY))}: must be a path or a list of paths")
        merged: Entry | None = None
        for name in names:
            file = os.path.normpath(os.path.join(folder, os.path.expanduser(name.value)))
            content = self.read_file(file, base.position, key)
            merged = content if merged is None else merge_entries(merged, content)
        assert merged is not None
        return merge_entries(merged, entry)


def _file_text(file: str, asked_at: Position) -> str:
    prefix = "" if str(asked_at) == file else f"{asked_at}: "
    try:
        with open(file, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise OptionsError(f"{prefix}there is no options file {file}") from None
    except OSError as error:
        raise OptionsError(f"{prefix}cannot read the options file {file}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise OptionsError(f"{prefix}{file} is larger than {MAX_BYTES} bytes; is it an options file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise OptionsError(f"{file}:{line}: is not text in UTF-8; save the file as UTF-8") from None


def _syntax_message(error: yaml.MarkedYAMLError, file: str, position: Position | None) -> str:
    mark = error.problem_mark or error.context_mark
    at = position or Position(file, mark.line + 1 if mark else None)
    problem = (error.problem or "is not YAML").replace("\n", " ")
    if "'\\t'" in problem:
        problem += "; indent with spaces, not tabs"
    if "found undefined alias" in problem or "found another document" in problem or "nested deeper" in problem:
        return f"{at}: {problem}"
    context = f" ({error.context.splitlines()[0]})" if error.context else ""
    return f"{at}: not valid YAML: {problem}{context}"


def _scalar(node: yaml.ScalarNode) -> tuple[Any, str | None]:
    """The value of a scalar, and what is wrong with the way it is written."""
    text: str = node.value
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        bare_none = text == "None" and node.style is None
        return text, "None is text in YAML; write ~ for nothing, or quote it" if bare_none else None
    if kind == "null":
        return None, None
    if kind == "bool":
        return text.lower() == "true", None if text.lower() in (
            "true",
            "false",
        ) else "!!bool takes true or false"
    if _LEADING_ZERO.match(text):
        return (
            text,
            f"{text} has a leading zero: write {text.lstrip('+-0_') or 0} for the number, '{text}' for text",
        )
    return _number(text, kind)


def _number(text: str, kind: str) -> tuple[Any, str | None]:
    if _INT.match(text):
        whole = int(text.replace("_", ""))
        return (float(whole), None) if kind == "float" and not _fits(whole) else (whole, None)
    if _INFINITE.match(text):
        return (-math.inf if text.startswith("-") else math.inf), None
    if _NAN.match(text):
        return text, ".nan is not a number to compute with; write a number, or ~ for nothing"
    if not _FLOAT.match(text) or kind == "int":
        return text, f"'{text}' is not a number that !!{kind} can hold"
    number = float(text)
    if math.isinf(number):
        return text, f"{text} is too large for a number"
    return (int(number), None) if "e" in text.lower() and number.is_integer() and _fits(number) else (number, None)


def _fits(number: float) -> bool:
    return abs(number) < 2**53


def _plain(entry: Entry) -> Any:
    if isinstance(entry.value, dict):
        return {key: _plain(value) for key, value in entry.value.items()}
    if isinstance(entry.value, list):
        return [_plain(value) for value in entry.value]
    return entry.value


def _walk(entry: Entry, key: KeyPath) -> Iterator[tuple[KeyPath, Position]]:
    if isinstance(entry.value, dict):
        for name, value in entry.value.items():
            yield (*key, name), value.position
            yield from _walk(value, (*key, name))
    elif isinstance(entry.value, list):
        for index, value in enumerate(entry.value):
            yield from _walk(value, (*key, index))
