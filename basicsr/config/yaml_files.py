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

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from basicsr.config.yaml_reader import (
    BASE_KEY,
    MAX_DEPTH,
    TAG,
    Entry,
    KeyPath,
    Loader,
    LocatedProblem,
    Position,
    Reader,
    ReadError,
    note_halves,
    read_error,
)
from basicsr.utils.text import key_text, one_line, shortened

OVERRIDE_FILE = "--force_yml"
_ON_COMMAND_LINE = Position(OVERRIDE_FILE)
_CHOSEN_NAMES = (("networks",), ("val", "metrics"), ("train", "distill"))
_UNUSUAL_LINE_ENDS = re.compile("[\r\x85\u2028\u2029]")
_FEWEST_GROUPED = 3
_MOST_PLACES = 5


@dataclass
class Document:
    """An options file with everything it builds on, and mistakes that did not stop the reading."""

    root: Entry
    problems: list[LocatedProblem] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """The content as plain dicts, lists and scalars."""
        return dict(_plain(self.root))

    def position(self, key: Sequence[str | int]) -> Position:
        """Where `key` was written; for a key that is missing, where the mapping around it begins."""
        entry: Entry = self.root
        for part in key:
            inside: Any = range(len(entry.value)) if isinstance(entry.value, list) else entry.value
            if not isinstance(entry.value, (dict, list)) or part not in inside:
                break
            entry = entry.value[part]  # type: ignore[index]
        return entry.position

    def positions(self) -> dict[KeyPath, Position]:
        """Every key of every mapping, in the file's order, with its position."""
        return dict(_positions(self.root, ()))

    def set(self, override: str) -> None:
        """Sets one key from `a:b:c=value`, the value read as YAML; mappings on the way are made if missing.

        What begins with `{}` or `{scale}` is text, such as `{}x2`, quotes or not; `{}` alone is so for `filename_tmpl`.
        Raises `ReadError` if the text is not of that form, or the key leads through what is not a mapping.
        """
        key_part, equals, text = override.partition("=")
        keys = [key.strip() for key in key_part.split(":")]
        if not equals or not all(keys) or not text.strip() or text[0] == "=" or key_part[0] in "'\"":
            raise _refusal(override, f"is not of the form train:total_iter=1000 (~ for nothing){_meant(override)}")
        if BASE_KEY in keys:
            raise _refusal(override, f"{BASE_KEY} is for options files only")
        if len(keys) > MAX_DEPTH:
            raise _refusal(override, f"is nested deeper than {MAX_DEPTH} levels")
        if text.startswith(("{}", "{scale}")) and (text.strip() != "{}" or keys[-1] == "filename_tmpl"):
            text = "'" + text.strip().replace("'", "''") + "'"
        reader = Reader()
        value = reader.read_text(text, _ON_COMMAND_LINE, tuple(keys))
        section = self.root
        for depth, key in enumerate(keys):
            if message := _key_problem(keys, depth, section, text):
                raise _refusal(override, message)
            if depth < len(keys) - 1:
                section = section.value.setdefault(key, Entry({}, _ON_COMMAND_LINE))
        note_halves(section.value, {keys[-1]: value})
        section.value[keys[-1]] = value
        self.problems += reader.problems


def load_yaml(path: str | Path, *, keep_going: bool = False) -> Document:
    """Reads an options file and the files it builds on; raises `ReadError`.

    With `keep_going` values that cannot be read (tags, keys that are not text) are added to the document's `problems`
    and skipped, so that the rest can be checked.
    """
    reader = Reader(keep_going)
    return Document(reader.read_file(str(path), Position(""), ()), reader.problems)


def document_from_text(text: str, name: str) -> Document:
    """As `load_yaml` for YAML text that errors call `name`."""
    reader = Reader()
    root = reader.read_text(text, Position(name))
    if not isinstance(root.value, dict):
        raise read_error(Position(name), "options are a mapping of keys to values")
    return Document(root, reader.problems)


def document_from_mapping(data: Mapping[str, Any], *, keep_going: bool = False) -> Document:
    """As `load_yaml` for a mapping; `_base_` paths in it are relative to the working directory."""
    reader = Reader(keep_going)
    return Document(reader.read_mapping(data, Position("options")), reader.problems)


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Sets the keys of `--force_yml`, in order; what cannot be set is added to the document's problems.

    `train:total_iter 5`, `train:total_iter = 5` and `milestones=[5, 6]` reach the program as several arguments, which
    are put together here, for the message.
    """
    groups: list[list[str]] = []
    for text in overrides:
        value = " ".join(groups[-1]).partition("=")[2] if groups else ""
        is_open = not value.strip() or any(value.count(left) > value.count(right) for left, right in ("[]", "{}"))
        if groups and is_open and not re.match(r"[\w.:]+=[^=]", text):
            groups[-1].append(text)
        else:
            groups.append([text])
    for group in groups:
        override = " ".join(group)
        try:
            if len(group) > 1:
                key, equals, value = override.partition("=")
                if not equals:
                    key, value = group[0], "".join(group[1:])
                meant = f"{key.strip(' :')}={value.replace(' ', '')}"
                message = f"holds blanks, which take it apart; write {meant}, or put it in quotes"
                raise read_error(_ON_COMMAND_LINE, f"'{override}': {message}")
            document.set(override)
        except ReadError as error:
            document.problems.append(replace(error.problem, is_of_value=False))


def _meant(override: str) -> str:
    """What was probably meant by an override that is not of its form, as a hint; empty if unknown."""
    bare = override.strip().strip("'\"")
    if bare != override.strip():
        return f"; take the quotes off: {bare}"
    key, equals, text = bare.partition("=")
    if equals and text.startswith("=") and text.strip("= "):
        return f"; did you mean {key}={text.lstrip('= ')}"
    key, colon, text = bare.rpartition(":")
    return f"; did you mean {key}={text.strip()}" if colon and key and text.strip() and not equals else ""


def _key_problem(keys: Sequence[str], depth: int, section: Entry, text: str) -> str | None:
    """What is wrong where a key leads through what is no mapping, or where keys were joined as in `train.total_iter`.

    Where users choose the names, as of networks, a dot is part of them, unless what stands before it is a name that
    has such a key. So it is inside a block, where layers may be named, unless that is a key there.
    """
    content, key, above = section.value, keys[depth], list(keys[:depth])
    if not isinstance(content, dict):
        name = ":".join(above)
        return (
            f"{name} is a list, which is given whole: {name}=[...]"
            if isinstance(content, list)
            else f"{name} is not a mapping"
        )
    parts = [part for part in re.split(r"[./\[\]]", key) if part]
    if len(parts) < 2 or key in content or (depth > 1 and parts[0] not in content):
        return None
    before = content[parts[0]].value if parts[0] in content else None
    if tuple(above) in _CHOSEN_NAMES and not (isinstance(before, dict) and parts[1] in before):
        return None
    written = ":".join([*above, *parts, *keys[depth + 1 :]])
    if parts[-1].isdigit():
        return f"lists are given whole: {written.rpartition(':')[0]}=[...]"
    return f"keys are joined by colons: did you mean {written}={text}"


def _refusal(override: str, message: str) -> ReadError:
    return read_error(_ON_COMMAND_LINE, f"'{shortened(override)}': {message}")


def _plain(entry: Entry) -> Any:
    if isinstance(entry.value, dict):
        return {key: _plain(value) for key, value in entry.value.items()}
    if isinstance(entry.value, list):
        return [_plain(value) for value in entry.value]
    return entry.value


def _positions(entry: Entry, key: KeyPath) -> Iterator[tuple[KeyPath, Position]]:
    if isinstance(entry.value, dict):
        for name, value in entry.value.items():
            yield (*key, name), value.position
            yield from _positions(value, (*key, name))
    elif isinstance(entry.value, list):
        for index, value in enumerate(entry.value):
            yield from _positions(value, (*key, index))


def lines_of(problems: Iterable[LocatedProblem]) -> list[str]:
    """The problems as lines in the order of the files; three or more of one cause share a line with their places."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: (problem.position.file, problem.position.line or 0))
    groups: dict[tuple[str, str], list[LocatedProblem]] = {}
    for problem in ordered:
        groups.setdefault(_cause(problem), []).append(problem)
    lines: dict[str, None] = {}
    for problem in ordered:
        group = groups[_cause(problem)]
        if len(group) < _FEWEST_GROUPED:
            lines[str(problem)] = None
        elif problem is group[0]:
            lines[one_line(f"{problem}; likewise {_places(group)}")] = None
    return list(lines)


def _cause(problem: LocatedProblem) -> tuple[str, str]:
    names = [part for part in problem.key if isinstance(part, str)]
    return problem.message, "" if problem.at_any_key or not names else names[-1]


def _places(group: Sequence[LocatedProblem]) -> str:
    """Where else a problem is, as `7 more: val.metrics.a (base.yml:7), ...`."""
    first, *others = group
    shown = []
    for other in others[:_MOST_PLACES]:
        where = str(other.position) if other.position.file != first.position.file else f"line {other.position.line}"
        shown.append(key_text(other.key) + ("" if other.position == first.position else f" ({where})"))
    return f"{len(others)} more: {', '.join(shown)}{', ...' if len(others) > _MOST_PLACES else ''}"


class _Dumper(yaml.SafeDumper):
    """Quotes all text that PyYAML or `Loader` would read as something else."""

    yaml_implicit_resolvers = {
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers]
        for first, resolvers in {**yaml.SafeDumper.yaml_implicit_resolvers, **Loader.yaml_implicit_resolvers}.items()
    }


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """PyYAML would read line ends other than LF, written as they are, as LF or as a space."""
    return dumper.represent_scalar(TAG + "str", text, style='"' if _UNUSUAL_LINE_ENDS.search(text) else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(TAG + "null", re.compile("^None$"), ["N"])


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain dicts, lists and scalars as YAML that `load_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
