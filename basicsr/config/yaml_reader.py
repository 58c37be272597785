"""Reads an options file, or options given as a mapping, with all they build on; no input grows without bound."""

from __future__ import annotations

import io
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from basicsr.config.yaml_entries import (
    Entry,
    KeyPath,
    LocatedProblem,
    Position,
    key_text,
    merge_entries,
    note_halves,
)
from basicsr.config.yaml_scalars import CORE_TAGS, MAX_DEPTH, TAG, Lines, Loader, fits_64_bits, line_of, scalar_value
from basicsr.files.regular_files import open_regular
from basicsr.utils.errors import OptionsError
from basicsr.utils.text import one_line, shortened

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_FILES = 100
MAX_FILES_DEEP = 20
BASE_KEY = "_base_"

_KINDS = {"map": yaml.MappingNode, "seq": yaml.SequenceNode}


@dataclass(frozen=True)
class _Text:
    """Where the nodes of a parsed text stand: in the lines of a file, or all at one position."""

    file: str
    lines: Lines
    position: Position | None = None

    def at(self, node: yaml.Node) -> Position:
        return self.position or Position(self.file, self.lines.of(node.start_mark))


class Reader:
    """Reads files with their bases; counts files, bytes and values over all of them.

    Attributes:
        problems: mistakes that did not stop the reading.
        refused: mistakes that leave a key without a value, or a value without a key.
    """

    def __init__(self) -> None:
        self.problems: list[LocatedProblem] = []
        self.refused: list[LocatedProblem] = []
        self._open: list[str] = []
        self._parsed: dict[str, tuple[yaml.Node | None, Lines]] = {}
        self._num_files = 0
        self._num_bytes = 0
        self._num_nodes = 0
        self._num_written = 0

    def read_file(self, file: str, asked_at: Position, key: KeyPath) -> Entry:
        """Reads one file with its bases.

        Args:
            file: the path.
            asked_at: where it is named; the file itself for the first one.
            key: of the mapping that the file's content becomes.

        Raises:
            OptionsError: the file cannot be read, is no mapping, is too large, or builds on itself.
        """
        identity = _identity(file, asked_at)
        if identity in self._open:
            raise _error(f"{asked_at}: {file} builds on itself through {BASE_KEY}")
        self._num_files += 1
        if self._num_files > MAX_FILES:
            raise _error(f"{asked_at}: more than {MAX_FILES} files are read through {BASE_KEY}")
        if len(self._open) >= MAX_FILES_DEEP:
            raise _error(f"{asked_at}: {BASE_KEY} leads through more than {MAX_FILES_DEEP} files, one in the other")
        if identity not in self._parsed:
            self._parsed[identity] = self._parse(self._file_text(file, asked_at), file, None)
        node, lines = self._parsed[identity]
        if node is None:
            raise _error(f"{file}: is empty; an options file is a mapping of keys to values")
        self._open.append(identity)
        entry = self._entry(node, _Text(file, lines), key)
        self._open.pop()
        if entry.value is None:
            raise _error(f"{file}: is empty; an options file is a mapping of keys to values")
        if not isinstance(entry.value, dict):
            raise _error(f"{file}:{entry.position.line}: an options file is a mapping of keys to values")
        return entry

    def read_text(self, text: str, key: KeyPath, position: Position) -> Entry:
        """Reads the value at `key` from YAML; everything in it is said to stand at `position`.

        Raises:
            OptionsError: it is not YAML, or too much.
        """
        node, lines = self._parse(text, position.file, position)
        return Entry(None, position) if node is None else self._entry(node, _Text("", lines, position), key)

    def read_mapping(self, data: Mapping[Any, Any], position: Position, key: KeyPath) -> Entry:
        """Reads options that are given as a mapping, which may build on files.

        Raises:
            OptionsError: it is nested too deeply, holds too much, or a file cannot be read.
        """
        self._count(position, key)
        content: dict[str, Entry] = {}
        for name, value in data.items():
            if isinstance(name, str):
                content[str(name)] = self._value(value, position, (*key, str(name)))
            else:
                message = f"key {_shown(name)} is not text; keys are text"
                self.refused.append(LocatedProblem(position, key, message, is_of_value=False))
        return self._with_base(Entry(content, position), "", key)

    def _value(self, value: Any, position: Position, key: KeyPath) -> Entry:
        if isinstance(value, Mapping):
            return self.read_mapping(value, position, key)
        self._count(position, key)
        if isinstance(value, (list, tuple)):
            return Entry([self._value(item, position, (*key, i)) for i, item in enumerate(value)], position)
        plain, message = _plain_value(value)
        if message:
            self.problems.append(LocatedProblem(position, key, message))
        return Entry(plain, position)

    def _count(self, here: Position, key: KeyPath) -> None:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise _error(f"{here}: more than {MAX_NODES} values once aliases (*name) are expanded")
        if len(key) > MAX_DEPTH:
            at = key_text(key[:3])
            raise _error(f"{here}: {at}: is nested deeper than {MAX_DEPTH} levels once aliases (*name) are expanded")

    def _file_text(self, file: str, asked_at: Position) -> str:
        prefix = "" if str(asked_at) == file else f"{asked_at}: "
        content = _content(file, prefix)
        self._num_bytes += len(content)
        if len(content) > MAX_BYTES:
            raise _error(f"{prefix}{file} is larger than {MAX_BYTES} bytes; is it an options file?")
        if self._num_bytes > MAX_BYTES:
            raise _error(f"{prefix}{file}: it and the files before it are larger than {MAX_BYTES} bytes together")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = line_of(content[: error.start].decode("utf-8", "replace"), error.start)
            raise _error(f"{file}:{line}: is not text in UTF-8; save the file as UTF-8") from None

    def _parse(self, text: str, file: str, position: Position | None) -> tuple[yaml.Node | None, Lines]:
        try:
            loader = Loader(text, self._num_written)
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            raise _error(_syntax_message(error, Lines(text), file, position)) from None
        except yaml.reader.ReaderError as error:
            at = position or f"{file}:{line_of(text, error.position)}"
            sign = f"U+{ord(text[error.position]):04X}"
            raise _error(f"{at}: is not text in UTF-8: holds the control character {sign}; remove it") from None
        self._num_written = loader.written
        return node, Lines(text)

    def _entry(self, node: yaml.Node, text: _Text, key: KeyPath) -> Entry:
        here = text.at(node)
        self._count(here, key)
        kind = _KINDS.get(node.tag.removeprefix(TAG), yaml.ScalarNode)
        if node.tag not in CORE_TAGS or (not isinstance(node, kind) and not isinstance(node, yaml.ScalarNode)):
            tag = shortened(node.tag.replace(TAG, "!!"))
            self.refused.append(LocatedProblem(here, key, f"tag {tag} is not read; write the value plainly"))
            return Entry(None, here)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, text, key)
        if isinstance(node, yaml.SequenceNode):
            return Entry([self._entry(item, text, (*key, i)) for i, item in enumerate(node.value)], here)
        assert isinstance(node, yaml.ScalarNode)
        value, message = scalar_value(node)
        if message:
            self.problems.append(LocatedProblem(here, key, message))
        return Entry(value, here)

    def _mapping(self, node: yaml.MappingNode, text: _Text, key: KeyPath) -> Entry:
        content: dict[str, Entry] = {}
        lines: dict[str, Position] = {}
        inherited: list[Entry] = []
        for key_node, value_node in node.value:
            at = text.at(key_node)
            name = self._key(key_node, at, key)
            if name is None:
                continue
            if name in lines:
                message = f"is given twice, here and at {lines[name]}; keep one"
                self.problems.append(LocatedProblem(at, (*key, name), message, is_of_value=False))
                continue
            lines[name] = at
            entry = self._entry(value_node, text, (*key, name))
            if key_node.tag == TAG + "merge":
                inherited = self._merge_sources(entry, at, key)
            else:
                content[name] = Entry(entry.value, at)
        for source in inherited:
            merged = dict(source.value)
            note_halves(merged, content)
            for name, entry in merged.items():
                content.setdefault(name, entry)
        return self._with_base(Entry(content, text.at(node)), os.path.dirname(text.file), key)

    def _key(self, node: yaml.Node, at: Position, parent: KeyPath) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag in (TAG + "str", TAG + "merge"):
            return str(node.value)
        shown = repr(shortened(node.value)) if isinstance(node, yaml.ScalarNode) else "of lists or mappings"
        message = f"key {shown} is not text; keys are text, so quote it"
        self.refused.append(LocatedProblem(at, parent, message, is_of_value=False))
        return None

    def _merge_sources(self, entry: Entry, at: Position, key: KeyPath) -> list[Entry]:
        sources = entry.value if isinstance(entry.value, list) else [entry]
        if all(isinstance(source.value, dict) for source in sources):
            return sources
        message = "'<<' takes a mapping or a list of mappings (<<: *name)"
        self.refused.append(LocatedProblem(at, key, message, is_of_value=False))
        return []

    def _with_base(self, entry: Entry, folder: str, key: KeyPath) -> Entry:
        """Merges a mapping over the files that its `_base_` names; later files over earlier ones."""
        base = entry.value.pop(BASE_KEY, None)
        if base is None:
            return entry
        names = base.value if isinstance(base.value, list) else [base]
        if not names or not all(isinstance(name.value, str) and name.value.isprintable() for name in names):
            raise _error(f"{base.position}: {key_text((*key, BASE_KEY))}: must be a path or a list of paths")
        merged: Entry | None = None
        for name in names:
            if not name.value:
                raise _error(f"{base.position}: {key_text((*key, BASE_KEY))}: must be a path or a list of paths")
            file = os.path.normpath(os.path.join(folder, os.path.expanduser(name.value)))
            content = self.read_file(file, base.position, key)
            merged = content if merged is None else merge_entries(merged, content)
        assert merged is not None
        return merge_entries(merged, entry)


def _error(text: str) -> OptionsError:
    return OptionsError(one_line(text))


def _identity(file: str, asked_at: Position) -> str:
    try:
        return os.path.realpath(file)
    except (OSError, ValueError):
        raise _error(f"{asked_at}: {file!r} is not the path of a file") from None


def _content(file: str, prefix: str) -> bytes:
    """The file's bytes, at most one more than may be; waits for no pipe and reads no device."""
    try:
        with io.BufferedReader(open_regular(file)) as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _error(f"{prefix}there is no options file {file}") from None
    except OSError as error:
        raise _error(f"{prefix}cannot read the options file {file}: {error.strerror}") from None
    except ValueError:
        raise _error(f"{prefix}cannot read the options file {file!r}: no file has such a name") from None


def _syntax_message(error: yaml.MarkedYAMLError, lines: Lines, file: str, position: Position | None) -> str:
    mark = error.problem_mark or error.context_mark
    at = position or Position(file, lines.of(mark) if mark else None)
    problem = shortened(error.problem or "is not YAML", 200)
    if "'\\t'" in problem:
        problem += "; indent with spaces, not tabs"
    told = ("found undefined alias", "found another document", "nested deeper", "more than")
    if any(words in problem for words in told):
        return f"{at}: {problem.replace('expected a single document in the stream', '')}"
    context = f" ({shortened(error.context.splitlines()[0])})" if error.context else ""
    return f"{at}: not valid YAML: {problem}{context}"


def _plain_value(value: Any) -> tuple[Any, str | None]:
    """A value of a mapping as YAML could hold it, numpy's numbers as Python's; and what is wrong with it."""
    if value is None or isinstance(value, bool):
        return value, None
    if isinstance(value, str):
        return str(value), None
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return (whole, None) if fits_64_bits(whole) else (None, "is too large for a whole number, which has 64 bits")
    if isinstance(value, numbers.Real):
        number = float(value)
        return number, None
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return (path, None) if isinstance(path, str) else (None, "must be a path of text, not of bytes")
    allowed = "text, numbers, true, false, ~, lists and mappings"
    return None, f"must be what YAML holds ({allowed}), got a value of type {type(value).__name__}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (bool, float, tuple)) or (isinstance(value, int) and fits_64_bits(value)):
        return shortened(repr(value))
    return f"of type {type(value).__name__}"
