"""Reads options files, or options given as a mapping, with all they build on; no input grows without bound."""

from __future__ import annotations

import io
import numbers
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from basicsr.config.yaml_entries import Entry, KeyPath, LocatedProblem, Position, key_text, merge_entries, note_halves
from basicsr.config.yaml_scalars import MAX_DEPTH, TAG, fits_64_bits, parse, scalar_value
from basicsr.files.regular_files import open_regular
from basicsr.utils.errors import OptionsError
from basicsr.utils.text import one_line, shortened

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_FILES = 100
MAX_FILES_DEEP = 20
BASE_KEY = "_base_"

_Locate = Callable[[Any], Position]
_LINE_END = re.compile(r"\r\n|\r|\n")  # as editors count lines; PyYAML also begins one after U+0085, U+2028 and U+2029
_NOT_A_PATH = "must be a path or a list of paths"


class Reader:
    """Makes entries of files with their bases; counts files, bytes and values over all of them.

    `problems` are mistakes that did not stop the reading; with `keep_going` also those that leave a key without a value
    or a value without a key, which otherwise raise.
    """

    def __init__(self, keep_going: bool = False) -> None:
        self.problems: list[LocatedProblem] = []
        self._keep_going = keep_going
        self._open: list[str] = []
        self._num_files = 0
        self._num_bytes = 0
        self._num_nodes = 0
        self._num_written = 0

    def read_file(self, file: str, asked_at: Position, key: KeyPath) -> Entry:
        """Reads one file with its bases; `asked_at` is where it is named, `key` that of the mapping it becomes.

        Raises:
            OptionsError: the file cannot be read, is no mapping, is too large, or builds on itself.
        """
        try:
            identity = os.path.realpath(file)
        except (OSError, ValueError):
            raise _error(f"{asked_at}: {file!r} is not the path of a file") from None
        if identity in self._open:
            raise _error(f"{asked_at}: {file} builds on itself through {BASE_KEY}")
        self._num_files += 1
        if self._num_files > MAX_FILES:
            raise _error(f"{asked_at}: more than {MAX_FILES} files are read through {BASE_KEY}")
        if len(self._open) >= MAX_FILES_DEEP:
            raise _error(f"{asked_at}: {BASE_KEY} leads through more than {MAX_FILES_DEEP} files, one in the other")
        text = self._file_text(file, asked_at)
        line_ends = [match.end() for match in _LINE_END.finditer(text)]

        def position(index: int) -> Position:
            return Position(file, 1 + bisect_right(line_ends, index))

        node = self._parsed(text, position)
        self._open.append(identity)
        folder = os.path.dirname(file)
        entry = self._entry(node, lambda node: position(node.start_mark.index), key, folder) if node else None
        self._open.pop()
        if entry is None or entry.value is None:
            raise _error(f"{file}: is empty; an options file is a mapping of keys to values")
        if not isinstance(entry.value, dict):
            raise _error(f"{entry.position}: an options file is a mapping of keys to values")
        return entry

    def read_text(self, text: str, position: Position, key: KeyPath) -> Entry:
        """Reads the value at `key` from YAML; all of it gets one position.

        Raises:
            OptionsError: it is not YAML, or too much.
        """
        node = self._parsed(text, lambda _: position)
        return self._entry(node, lambda _: position, key) if node else Entry(None, position)

    def read_mapping(self, data: Mapping[Any, Any], position: Position) -> Entry:
        """Reads options that are given as a mapping, which may build on files.

        Raises:
            OptionsError: it is nested too deeply, holds too much, or a file cannot be read.
        """
        return self._entry(data, lambda _: position, ())

    def _file_text(self, file: str, asked_at: Position) -> str:
        prefix = "" if str(asked_at) == file else f"{asked_at}: "
        try:
            with io.BufferedReader(open_regular(file)) as stream:  # waits for no pipe and reads no device
                content = stream.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise _error(f"{prefix}there is no options file {file}") from None
        except OSError as error:
            raise _error(f"{prefix}cannot read the options file {file}: {error.strerror}") from None
        except ValueError:
            raise _error(f"{prefix}cannot read the options file {file!r}: no file has such a name") from None
        self._num_bytes += len(content)
        if len(content) > MAX_BYTES:
            raise _error(f"{prefix}{file} is larger than {MAX_BYTES} bytes; is it an options file?")
        if self._num_bytes > MAX_BYTES:
            raise _error(f"{prefix}{file}: it and the files before it are larger than {MAX_BYTES} bytes together")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = 1 + len(_LINE_END.findall(content[: error.start].decode("utf-8", "replace")))
            raise _error(f"{file}:{line}: is not text in UTF-8; save the file as UTF-8") from None

    def _parsed(self, text: str, position: Callable[[int], Position]) -> yaml.Node | None:
        """The text's one document; `position` is that of an index in the text."""
        try:
            node, self._num_written = parse(text, self._num_written)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _error(f"{position(mark.index if mark else 0)}: {_syntax_message(error)}") from None
        except yaml.reader.ReaderError as error:
            sign = f"U+{ord(text[error.position]):04X}"
            message = f"is not text in UTF-8: holds the control character {sign}; remove it"
            raise _error(f"{position(error.position)}: {message}") from None
        return node

    def _entry(self, item: Any, position: _Locate, key: KeyPath, folder: str = "") -> Entry:
        """The entry of a node or of a plain value; bases in it are relative to `folder`."""
        here = position(item)
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise _error(f"{here}: more than {MAX_NODES} values once aliases (*name) are expanded")
        if len(key) > MAX_DEPTH:
            at = key_text(key[:3])
            raise _error(f"{here}: {at}: is nested deeper than {MAX_DEPTH} levels once aliases (*name) are expanded")
        if not isinstance(item, yaml.Node):
            value, message = _plain_value(item)
        elif not _has_known_tag(item):
            tag = shortened(item.tag.replace(TAG, "!!"))
            self._refuse(here, key, f"tag {tag} is not read; write the value plainly", is_of_value=True)
            return Entry(None, here)
        else:
            value, message = scalar_value(item) if isinstance(item, yaml.ScalarNode) else (item.value, None)
        if isinstance(item, (yaml.MappingNode, Mapping)):
            content = self._mapping(value if isinstance(value, list) else value.items(), position, key, folder)
            return self._with_base(Entry(content, here), folder, key)
        if isinstance(item, (yaml.SequenceNode, list, tuple)):
            return Entry([self._entry(one, position, (*key, i), folder) for i, one in enumerate(value)], here)
        if message:
            self.problems.append(LocatedProblem(here, key, message))
        return Entry(value, here)

    def _mapping(
        self, pairs: Iterable[tuple[Any, Any]], position: _Locate, key: KeyPath, folder: str
    ) -> dict[str, Entry]:
        content: dict[str, Entry] = {}
        given: dict[str, Position] = {}
        inherited: list[Entry] = []
        for written, value in pairs:
            at = position(written)
            name, message = _key(written)
            if name is None:
                self._refuse(at, key, message)
                continue
            if name in given:
                message = f"is given twice, here and at {given[name]}; keep one"
                self.problems.append(LocatedProblem(at, (*key, name), message, is_of_value=False))
                continue
            given[name] = at
            entry = self._entry(value, position, (*key, name), folder)
            if not (isinstance(written, yaml.Node) and written.tag == TAG + "merge"):
                content[name] = Entry(entry.value, at)
                continue
            inherited = entry.value if isinstance(entry.value, list) else [entry]
            if not all(isinstance(source.value, dict) for source in inherited):
                self._refuse(at, key, "'<<' takes a mapping or a list of mappings (<<: *name)")
                inherited = []
        for source in inherited:
            merged = dict(source.value)
            note_halves(merged, content)
            content |= {name: entry for name, entry in merged.items() if name not in content}
        return content

    def _refuse(self, at: Position, key: KeyPath, message: str, is_of_value: bool = False) -> None:
        problem = LocatedProblem(at, key, message, is_of_value)
        if not self._keep_going:
            raise OptionsError(str(problem))
        self.problems.append(problem)

    def _with_base(self, entry: Entry, folder: str, key: KeyPath) -> Entry:
        """Merges a mapping over the files that its `_base_` names; later files over earlier ones."""
        base = entry.value.pop(BASE_KEY, None)
        if base is None:
            return entry
        names = [name.value for name in base.value] if isinstance(base.value, list) else [base.value]
        if not names or not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise _error(f"{base.position}: {key_text((*key, BASE_KEY))}: {_NOT_A_PATH}")
        merged = Entry({}, base.position)
        for name in names:
            file = os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
            merged = merge_entries(merged, self.read_file(file, base.position, key))
        return merge_entries(merged, entry)


def _error(text: str) -> OptionsError:
    return OptionsError(one_line(text))


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    problem = shortened(error.problem or "is not YAML", 200)
    if "'\\t'" in problem:
        problem += "; indent with spaces, not tabs"
    plain = ("found undefined alias", "found another document", "nested deeper", "more than")
    if any(words in problem for words in plain):
        return problem
    context = f" ({shortened(error.context.splitlines()[0])})" if error.context else ""
    return f"not valid YAML: {problem}{context}"


def _has_known_tag(node: yaml.Node) -> bool:
    tag = node.tag.removeprefix(TAG)
    if isinstance(node, yaml.ScalarNode):
        return tag in ("str", "int", "float", "bool", "null", "merge", "seq", "map")  # of the last two more is said
    return bool(tag == ("map" if isinstance(node, yaml.MappingNode) else "seq"))


def _key(written: Any) -> tuple[str | None, str]:
    """A key's text, or None and what is wrong with it."""
    if isinstance(written, yaml.ScalarNode):
        if written.tag in (TAG + "str", TAG + "merge"):
            return written.value, ""
        return None, f"key {shortened(written.value)!r} is not text; keys are text, so quote it"
    if isinstance(written, yaml.Node):
        return None, "key of lists or mappings is not text; keys are text, so quote it"
    if isinstance(written, str):
        return str(written), ""
    is_short = isinstance(written, int) and fits_64_bits(written)
    shown = is_short or written is None or isinstance(written, (float, tuple))
    name = shortened(repr(written)) if shown else f"of type {type(written).__name__}"
    return None, f"key {name} is not text; keys are text"


def _plain_value(value: Any) -> tuple[Any, str | None]:
    """A value of a mapping as YAML could hold it, numpy's numbers as Python's; and what is wrong with it."""
    if value is None or isinstance(value, (bool, Mapping, list, tuple)):
        return value, None
    if isinstance(value, str):
        return str(value), None
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return (whole, None) if fits_64_bits(whole) else (None, "is too large for a whole number, which has 64 bits")
    if isinstance(value, numbers.Real):
        return float(value), None
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return (path, None) if isinstance(path, str) else (None, "must be a path of text, not of bytes")
    allowed = "text, numbers, true, false, ~, lists and mappings"
    return None, f"must be what YAML holds ({allowed}), got a value of type {type(value).__name__}"
