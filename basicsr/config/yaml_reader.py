"""Reads YAML options files, or options given as a mapping, with all they build on; no input grows without bound."""

from __future__ import annotations

import io
import math
import numbers
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

from basicsr.files.regular_files import open_regular
from basicsr.utils.errors import OptionsError
from basicsr.utils.text import key_text, one_line, shortened

KeyPath = tuple[str | int, ...]
PAIRS = (("dataroot_gt", "dataroot_lq"),)
"""Keys whose values belong together, so that none of them is replaced alone."""

BASE_KEY = "_base_"
MAX_DEPTH = 64
MAX_WRITTEN = 5_000
MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_FILES = 100
MAX_FILES_DEEP = 20

TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z")
_NAN = re.compile(r"\.(nan|NaN|NAN)\Z")
_COMMENT = re.compile(r"(?m)(?:^|(?<= ))#[^'\"\n]*$")
_RARE = re.compile(r"[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff]|[?!|>%&*@`]")
_LARGEST_FAST = 10_000
_LINE_END = re.compile(r"\r\n|\r|\n")  # as editors count lines; PyYAML also begins one after U+0085, U+2028 and U+2029


@dataclass(frozen=True)
class Position:
    """Where a key was written: a file and a line counted from 1, or the command line (no line)."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class LocatedProblem:
    """A mistake at a key. With `is_of_value` the key's value is wrong, so that further checks skip it.

    With `at_any_key` the same message at other keys has the same cause; else only at keys of the same name.
    """

    position: Position
    key: KeyPath
    message: str
    is_of_value: bool = True
    at_any_key: bool = False

    def __str__(self) -> str:
        key = key_text(self.key)
        return one_line(f"{self.position}: {key}: {self.message}" if key else f"{self.position}: {self.message}")


class ReadError(OptionsError):
    """Options that cannot be read: the message and, where it is known, the position that it is about."""

    position: Position | None = None
    message = ""


def read_error(position: Position | None, message: str) -> ReadError:
    """Makes the error, for the caller to raise."""
    error = ReadError(one_line(f"{position}: {message}" if position is not None else message))
    error.position, error.message = position, message
    return error


@dataclass
class Entry:
    """A value and where it was written; mappings and lists hold entries.

    `replaced` is the entry of a base in whose place it stands, where the base's other half of a pair was kept.
    """

    value: Any
    position: Position
    replaced: Entry | None = None


def merge_entries(base: Entry, own: Entry) -> Entry:
    """Merges `own` over `base`: mappings key by key; anything else, or a block of another `type`, replaces."""
    if not (isinstance(base.value, dict) and isinstance(own.value, dict)):
        return own
    types = [entry.value["type"].value for entry in (base, own) if "type" in entry.value]
    if len(types) == 2 and types[0] != types[1]:
        return own
    content = dict(base.value)
    note_halves(content, own.value)
    for key, entry in own.value.items():
        content[key] = merge_entries(content[key], entry) if key in content else entry
    return Entry(content, own.position)


def note_halves(base: dict[str, Entry], own: dict[str, Entry]) -> None:
    """Notes in `own` which entries replace one half of a pair in `base` and leave the other.

    Where the other half was itself put beside one that is now replaced, both are new, and its note is taken back.
    """
    for half, other in (order for pair in PAIRS for order in (pair, pair[::-1])):
        if not (half in own and half in base and other in base and other not in own):
            continue
        if base[other].replaced is not None:
            base[other] = Entry(base[other].value, base[other].position)
        elif own[half].value != base[half].value:
            own[half].replaced = base[half]


class _Limited(yaml.composer.Composer, yaml.resolver.BaseResolver):
    """PyYAML's composer with YAML 1.2's plain scalars and limits on depth and number of nodes."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str, written: int = 0) -> None:
        super().__init__()
        yaml.resolver.BaseResolver.__init__(self)
        self.depth = 0
        self.written = written

    def compose_node(self, parent: Any, index: Any) -> Any:
        """PyYAML's, within the limits."""
        self.depth += 1
        self.written += 1
        problem = ""
        if self.depth > MAX_DEPTH:
            problem = f"is nested deeper than {MAX_DEPTH} levels"
        elif self.written > MAX_WRITTEN:
            problem = f"more than {MAX_WRITTEN} keys and values; is it an options file?"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)  # type: ignore[attr-defined]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Loader(_Limited, yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """Scans and parses in Python, with PyYAML's messages."""

    def __init__(self, text: str, written: int = 0) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        super().__init__(text, written)


if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class FastLoader(_Limited, CParser):
        """Scans and parses by libyaml, six times as fast."""

        def __init__(self, text: str, written: int = 0) -> None:
            CParser.__init__(self, text)
            super().__init__(text, written)


def parse(text: str, written: int = 0) -> tuple[yaml.Node | None, int]:
    """The text's one document, and `written` plus the number of its keys and values; raises yaml.YAMLError.

    libyaml parses what is written as usual; PyYAML's own parser all else, as the two differ in rare characters, and
    what is wrong, for its messages.
    """
    if yaml.__with_libyaml__ and len(text) <= _LARGEST_FAST and not _RARE.search(_COMMENT.sub("", text)):
        with suppress(yaml.YAMLError):
            fast = FastLoader(text, written)
            return fast.get_single_node(), fast.written
    loader = Loader(text, written)
    return loader.get_single_node(), loader.written


def _scalar_value(node: yaml.ScalarNode) -> tuple[Any, str | None]:
    """The value of a scalar, and what is wrong with the way it is written."""
    text: str = node.value
    kind = node.tag.removeprefix(TAG)
    if kind in ("str", "merge"):
        bare_none = text == "None" and not node.style
        return text, "None is text in YAML; write ~ for nothing, or quote it" if bare_none else None
    if kind == "null":
        return None, None if text in ("", "~") or text.lower() == "null" else "!!null takes ~ or nothing"
    if kind == "bool":
        return text.lower() == "true", None if text.lower() in ("true", "false") else "!!bool takes true or false"
    if kind not in ("int", "float"):
        return text, f"!!{kind} is for lists or mappings; write the value plainly"
    if _LEADING_ZERO.match(text):
        bare = shortened(text.lstrip("+-0_") or "0")
        return text, f"{shortened(text)} has a leading zero: write {bare} for the number, '{shortened(text)}' for text"
    return _number(text, kind)


def _number(text: str, kind: str) -> tuple[Any, str | None]:
    shown = shortened(text)
    if _INFINITE.match(text):
        return (-math.inf if text.startswith("-") else math.inf), None
    if _NAN.match(text):
        return text, ".nan is not a number to compute with; write a number, or ~ for nothing"
    if _INT.match(text):
        digits = text.replace("_", "")
        whole = int(digits) if len(digits) < 30 else None
        if kind == "int" and (whole is None or not _fits_64_bits(whole)):
            return text, f"{shown} is too large for a whole number, which has 64 bits; quote it if it is text"
        if whole is not None and (kind == "int" or _is_exact(whole)):
            return whole, None
        text = digits
    if not _FLOAT.match(text) or kind == "int":
        return text, f"'{shown}' is not a number that !!{kind} can hold"
    number = float(text)
    if math.isinf(number):
        return text, f"{shown} is too large for a number"
    is_whole = "e" in text.lower() and number.is_integer() and _is_exact(number)
    return int(number) if is_whole else number, None


def _fits_64_bits(number: int) -> bool:
    """Whether torch and numpy can hold a whole number."""
    return -(2**63) <= number < 2**63


def _is_exact(number: float) -> bool:
    return abs(number) < 2**53


for _tag, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", rf"^({_INT.pattern}|{_LEADING_ZERO.pattern})", list("-+0123456789.")),
    ("float", rf"^({_FLOAT.pattern}|{_INFINITE.pattern}|{_NAN.pattern})", list("-+0123456789.")),
    ("merge", r"^<<$", ["<"]),
):
    _Limited.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _first)


_Locate = Callable[[Any], Position]


class Reader:
    """Makes entries of files with their bases; counts files, bytes and values over all of them; raises `ReadError`.

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

    def read_file(self, file: str, asked_at: Position | None, key: KeyPath) -> Entry:
        """Reads one file with its bases; `asked_at` is where another names it, `key` that of the mapping it becomes."""
        try:
            identity = os.path.realpath(file)
        except (OSError, ValueError):
            raise read_error(asked_at, f"{file!r} is not the path of a file") from None
        if identity in self._open:
            raise read_error(asked_at, f"{file} builds on itself through {BASE_KEY}")
        self._num_files += 1
        if self._num_files > MAX_FILES:
            raise read_error(asked_at, f"more than {MAX_FILES} files are read through {BASE_KEY}")
        if len(self._open) >= MAX_FILES_DEEP:
            message = f"{BASE_KEY} leads through more than {MAX_FILES_DEEP} files, one in the other"
            raise read_error(asked_at, message)
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
            raise read_error(Position(file), "is empty; an options file is a mapping of keys to values")
        if not isinstance(entry.value, dict):
            raise read_error(entry.position, "an options file is a mapping of keys to values")
        return entry

    def read_text(self, text: str, position: Position, key: KeyPath) -> Entry:
        """Reads the value at `key` from YAML; all of it gets one position."""
        node = self._parsed(text, lambda _: position)
        return self._entry(node, lambda _: position, key) if node else Entry(None, position)

    def read_mapping(self, data: Mapping[Any, Any], position: Position) -> Entry:
        """Reads options that are given as a mapping, which may build on files."""
        return self._entry(data, lambda _: position, ())

    def _file_text(self, file: str, asked_at: Position | None) -> str:
        try:
            with io.BufferedReader(open_regular(file)) as stream:  # waits for no pipe and reads no device
                content = stream.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise read_error(asked_at, f"there is no options file {file}") from None
        except OSError as error:
            raise read_error(asked_at, f"cannot read the options file {file}: {error.strerror}") from None
        except ValueError:
            raise read_error(asked_at, f"cannot read the options file {file!r}: no file has such a name") from None
        self._num_bytes += len(content)
        if len(content) > MAX_BYTES:
            raise read_error(asked_at, f"{file} is larger than {MAX_BYTES} bytes; is it an options file?")
        if self._num_bytes > MAX_BYTES:
            message = f"{file}: it and the files before it are larger than {MAX_BYTES} bytes together"
            raise read_error(asked_at, message)
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = 1 + len(_LINE_END.findall(content[: error.start].decode("utf-8", "replace")))
            raise read_error(Position(file, line), "is not text in UTF-8; save the file as UTF-8") from None

    def _parsed(self, text: str, position: Callable[[int], Position]) -> yaml.Node | None:
        """The text's one document; `position` is that of an index in the text."""
        try:
            node, self._num_written = parse(text, self._num_written)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise read_error(position(mark.index if mark else 0), _syntax_message(error)) from None
        except yaml.reader.ReaderError as error:
            sign = f"U+{ord(text[error.position]):04X}"
            message = f"is not text in UTF-8: holds the control character {sign}; remove it"
            raise read_error(position(error.position), message) from None
        return node

    def _entry(self, item: Any, position: _Locate, key: KeyPath, folder: str = "") -> Entry:
        """The entry of a node or of a plain value; bases in it are relative to `folder`."""
        here = position(item)
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise read_error(here, f"more than {MAX_NODES} values once aliases (*name) are expanded")
        if len(key) > MAX_DEPTH:
            what = f"is nested deeper than {MAX_DEPTH} levels once aliases (*name) are expanded"
            raise read_error(here, f"{key_text(key[:3])}: {what}")
        if not isinstance(item, yaml.Node):
            value, message = _plain_value(item)
        elif not _has_known_tag(item):
            tag = shortened(item.tag.replace(TAG, "!!"))
            self._refuse(here, key, f"tag {tag} is not read; write the value plainly", is_of_value=True)
            return Entry(None, here)
        else:
            value, message = _scalar_value(item) if isinstance(item, yaml.ScalarNode) else (item.value, None)
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
        if not self._keep_going:
            raise read_error(at, f"{key_text(key)}: {message}" if key else message)
        self.problems.append(LocatedProblem(at, key, message, is_of_value))

    def _with_base(self, entry: Entry, folder: str, key: KeyPath) -> Entry:
        """Merges a mapping over the files that its `_base_` names; later files over earlier ones."""
        base = entry.value.pop(BASE_KEY, None)
        if base is None:
            return entry
        names = [name.value for name in base.value] if isinstance(base.value, list) else [base.value]
        if not names or not all(isinstance(name, str) and name and name.isprintable() for name in names):
            message = f"{key_text((*key, BASE_KEY))}: must be a path or a list of paths"
            raise read_error(base.position, message)
        merged = Entry({}, base.position)
        for name in names:
            file = os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
            merged = merge_entries(merged, self.read_file(file, base.position, key))
        return merge_entries(merged, entry)


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
    is_short = isinstance(written, int) and _fits_64_bits(written)
    if is_short or written is None or isinstance(written, (float, tuple)):
        name = shortened(repr(written))
    else:
        name = f"of type {type(written).__name__}"
    return None, f"key {name} is not text; keys are text"


def _plain_value(value: Any) -> tuple[Any, str | None]:
    """A value of a mapping as YAML could hold it, numpy's numbers as Python's; and what is wrong with it."""
    if value is None or isinstance(value, (bool, Mapping, list, tuple)):
        return value, None
    if isinstance(value, str):
        return str(value), None
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return (whole, None) if _fits_64_bits(whole) else (None, "is too large for a whole number, which has 64 bits")
    if isinstance(value, numbers.Real):
        return float(value), None
    if isinstance(value, os.PathLike):
        path = os.fspath(value)
        return (path, None) if isinstance(path, str) else (None, "must be a path of text, not of bytes")
    allowed = "text, numbers, true, false, ~, lists and mappings"
    return None, f"must be what YAML holds ({allowed}), got a value of type {type(value).__name__}"
