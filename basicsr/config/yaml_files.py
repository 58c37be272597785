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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.config.yaml_entries import (
    Entry,
    KeyPath,
    LocatedProblem,
    Position,
    key_text,
    merge_entries,
    note_halves,
)
from basicsr.config.yaml_reader import BASE_KEY, Reader
from basicsr.config.yaml_scalars import MAX_DEPTH, dump_yaml
from basicsr.utils.errors import OptionsError
from basicsr.utils.text import one_line, shortened

__all__ = ["Document", "Entry", "KeyPath", "LocatedProblem", "Position", "dump_yaml", "key_text", "merge_entries"]

OVERRIDE_FILE = "--force_yml"
_CHOSEN_NAMES = (("networks",), ("val", "metrics"), ("train", "distill"))


@dataclass
class Document:
    """The content of an options file with everything it builds on, and mistakes that did not stop the reading."""

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

        Raises:
            OptionsError: the text is not of that form, or the key leads through what is not a mapping.
        """
        position = Position(OVERRIDE_FILE)
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
        value = reader.read_text(text, position, tuple(keys))
        section = self.root
        for depth, key in enumerate(keys):
            _require_key(override, keys, depth, section)
            if depth < len(keys) - 1:
                section = section.value.setdefault(key, Entry({}, position))
        note_halves(section.value, {keys[-1]: value})
        section.value[keys[-1]] = value
        self.problems += reader.problems


def load_yaml(path: str | Path, *, keep_going: bool = False) -> Document:
    """Reads an options file and the files it builds on.

    Args:
        path: the file.
        keep_going: add values that cannot be read (tags, keys that are not text) to the document's `problems` and
            skip them, so that the rest can be checked; otherwise they raise.

    Raises:
        OptionsError: a file is missing, empty, too large, not UTF-8, not YAML, no mapping, or builds on itself.
    """
    reader = Reader(keep_going)
    return Document(reader.read_file(str(path), Position(str(path)), ()), reader.problems)


def document_from_text(text: str, name: str) -> Document:
    """Reads options from YAML text that errors call `name`, within the limits of files.

    Raises:
        OptionsError: it is no mapping, or not YAML within the limits.
    """
    reader = Reader()
    root = reader.read_text(text, Position(name), ())
    if not isinstance(root.value, dict):
        raise OptionsError(f"{name}: options are a mapping of keys to values")
    return Document(root, reader.problems)


def document_from_mapping(data: Mapping[str, Any], *, keep_going: bool = False) -> Document:
    """Wraps options given as a mapping; `_base_` paths in it are relative to the working directory.

    Raises:
        OptionsError: a key is not text (unless `keep_going`), or a file it builds on cannot be read.
    """
    reader = Reader(keep_going)
    return Document(reader.read_mapping(data, Position("options")), reader.problems)


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


def _require_key(override: str, keys: Sequence[str], depth: int, section: Entry) -> None:
    """Raises where a key leads through what is no mapping, or several keys were joined as in `train.total_iter`.

    Where users choose the names, as of networks, a dot is part of them, unless what stands before it is a name that
    has such a key. So it is inside a block, where layers may be named, unless that is a key there.
    """
    content, key, above = section.value, keys[depth], list(keys[:depth])
    if not isinstance(content, dict):
        name = ":".join(above)
        hint = f"is a list, which is given whole: {name}=[...]" if isinstance(content, list) else "is not a mapping"
        raise _refusal(override, f"{name} {hint}")
    parts = [part for part in re.split(r"[./\[\]]", key) if part]
    if len(parts) < 2 or key in content or (depth > 1 and parts[0] not in content):
        return
    before = content[parts[0]].value if parts[0] in content else None
    if tuple(above) in _CHOSEN_NAMES and not (isinstance(before, dict) and parts[1] in before):
        return
    written = ":".join([*above, *parts, *keys[depth + 1 :]])
    if parts[-1].isdigit():
        raise _refusal(override, f"lists are given whole: {written.rpartition(':')[0]}=[...]")
    raise _refusal(override, f"keys are joined by colons: did you mean {written}={override.partition('=')[2]}")


def _refusal(override: str, message: str) -> OptionsError:
    return OptionsError(one_line(f"{OVERRIDE_FILE}: '{shortened(override)}': {message}"))


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
