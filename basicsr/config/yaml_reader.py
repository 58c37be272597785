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
from basicsr.utils.text import key_text, one_line, shortened, shown

KeyPath = tuple[str | int, ...]
PAIR = ("dataroot_gt", "dataroot_lq")
"""Keys whose values belong together, so that neither is replaced alone."""

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
_PLAIN_PROBLEMS = ("found undefined alias", "found another document", "nested deeper", "more than")
_TAGS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: ("str", "int", "float", "bool", "null", "merge", "seq", "map"),  # of the last two more is said
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}
_LINE_END = re.compile(r"\r\n|\r|\n")  # as editors count lines; PyYAML also begins one after U+0085, U+2028 and U+2029


@dataclass(frozen=True)
class Position:
    """Where a key was written: a file and a line counted from 1; no line for the command line, no file for nowhere."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class LocatedProblem:
    """A mistake at a key."""

    position: Position
    key: KeyPath
    message: str
    is_of_value: bool = True  # so that further checks skip the key
    at_any_key: bool = False  # whether the same message at keys of other names has the same cause

    def __str__(self) -> str:
        parts = (str(self.position), key_text(self.key), self.message)
        return one_line(": ".join(part for part in parts if part))


class ReadError(OptionsError):
    """Options that cannot be read."""

    @property
    def problem(self) -> LocatedProblem:
        """What is wrong, and where."""
        problem: LocatedProblem = self.args[0]
        return problem


def read_error(position: Position, message: str, key: KeyPath = ()) -> ReadError:
    """Makes the error, for the caller to raise."""
    return ReadError(LocatedProblem(position, key, message))


@dataclass
class Entry:
    """A value and where it was written; mappings and lists hold entries."""

    value: Any
    position: Position
    replaced: Entry | None = None  # that of a base in whose place it stands, where the other half of a pair was kept


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
    """Notes in `own` which entries replace one half of a pair in `base` and leave the other."""
    for half, other in (PAIR, PAIR[::-1]):
        if not (half in own and half in base and other in base and other not in own):
            continue
        if base[other].replaced is not None:  # both halves are new by now
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
        if self.depth > MAX_DEPTH or self.written > MAX_WRITTEN:
            problem = f"is nested deeper than {MAX_DEPTH} levels"
            if self.written > MAX_WRITTEN:
                problem = f"more than {MAX_WRITTEN} keys and values; is it an options file?"
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
    short = shortened(text)
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
        return text, f"{short} has a leading zero: write {bare} for the number, '{short}' for text"
    if _INFINITE.match(text):
        return (-math.inf if text.startswith("-") else math.inf), None
    if _NAN.match(text):
        return text, ".nan is not a number to compute with; write a number, or ~ for nothing"
    is_whole = _INT.match(text) is not None
    digits = text.replace("_", "") if is_whole else text
    if not _FLOAT.match(digits) or (kind == "int" and not is_whole):
        return text, f"'{short}' is not a number that !!{kind} can hold"
    number = float(digits)
    if kind == "int":
        if abs(number) > 2**64 or not _fits_64_bits(int(digits)):
            return text, f"{short} is too large for a whole number, which has 64 bits; quote it if it is text"
        return int(digits), None
    if math.isinf(number):
        return text, f"{short} is too large for a number"
    is_whole = is_whole or ("e" in text.lower() and number.is_integer())
    return int(number) if is_whole and abs(number) < 2**53 else number, None


def _fits_64_bits(number: int) -> bool:
    """Whether torch and numpy can hold a whole number."""
    return -(2**63) <= number < 2**63


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
    """Makes entries of files with their bases; counts files, bytes and values over all of them; raises `ReadError`."""

    def __init__(self, keep_going: bool = False) -> None:
        self.problems: list[LocatedProblem] = []  # what did not stop the reading
        self._keep_going = keep_going  # where a key has no value, or a value no key
        self._open: list[str] = []  # the files that are being read, each named by the one before it
        self._num_files = 0
        self._num_bytes = 0
        self._num_nodes = 0
        self._num_written = 0

    def read_file(self, file: str, asked_at: Position, key: KeyPath) -> Entry:
        """Reads one file with its bases; `asked_at` is where another names it, `key` that of the mapping it becomes."""
        try:
            identity = os.path.realpath(file)
        except (OSError, ValueError):
            raise read_error(asked_at, f"{file!r} is not the path of a file") from None
        self._num_files += 1
        if identity in self._open:
            raise read_error(asked_at, f"{file} builds on itself through {BASE_KEY}")
        if self._num_files > MAX_FILES:
            raise read_error(asked_at, f"more than {MAX_FILES} files are read through {BASE_KEY}")
        if len(self._open) >= MAX_FILES_DEEP:
            raise read_error(asked_at, f"{BASE_KEY} leads through more than {MAX_FILES_DEEP} files, one in the other")
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

    def read_text(self, text: str, position: Position, key: KeyPath = ()) -> Entry:
        """Reads the value at `key` from YAML; all of it gets one position."""
        node = self._parsed(text, lambda _: position)
        return self._entry(node, lambda _: position, key) if node else Entry(None, position)

    def read_mapping(self, data: Mapping[Any, Any], position: Position) -> Entry:
        """Reads options that are given as a mapping, which may build on files."""
        return self._entry(data, lambda _: position, ())

    def _file_text(self, file: str, asked_at: Position) -> str:
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
            raise read_error(asked_at, f"{file}: it and the files before it are larger than {MAX_BYTES} bytes together")
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = 1 + len(_LINE_END.findall(content[: error.start].decode("utf-8", "replace")))
            raise read_error(Position(file, line), "is not text in UTF-8; save the file as UTF-8") from None

    def _parsed(self, text: str, position: Callable[[int], Position]) -> yaml.Node | None:
        """The text's one document; `position` is that of an index in the text."""
        try:
            node, self._num_written = parse(text, self._num_written)
            return node
        except yaml.reader.ReaderError as error:
            sign = f"U+{ord(text[error.position]):04X}"
            message = f"is not text in UTF-8: holds the control character {sign}; remove it"
            raise read_error(position(error.position), message) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            message = shortened(error.problem or "is not YAML", 200)
            if "'\\t'" in message:
                message += "; indent with spaces, not tabs"
            if not any(words in message for words in _PLAIN_PROBLEMS):
                context = f" ({shortened(error.context.splitlines()[0])})" if error.context else ""
                message = f"not valid YAML: {message}{context}"
            raise read_error(position(mark.index if mark else 0), message) from None

    def _entry(self, item: Any, position: _Locate, key: KeyPath, folder: str = "") -> Entry:
        """The entry of a node or of a plain value; bases in it are relative to `folder`."""
        here = position(item)
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES:
            raise read_error(here, f"more than {MAX_NODES} values once aliases (*name) are expanded")
        if len(key) > MAX_DEPTH:
            raise read_error(
                here, f"is nested deeper than {MAX_DEPTH} levels once aliases (*name) are expanded", key[:3]
            )
        if isinstance(item, yaml.Node) and item.tag.removeprefix(TAG) not in _TAGS[type(item)]:
            tag = shortened(item.tag.replace(TAG, "!!"))
            self._refuse(LocatedProblem(here, key, f"tag {tag} is not read; write the value plainly"))
            return Entry(None, here)
        if isinstance(item, (yaml.MappingNode, Mapping)):
            pairs = item.value if isinstance(item, yaml.MappingNode) else item.items()
            return self._with_base(Entry(self._mapping(pairs, position, key, folder), here), folder, key)
        if isinstance(item, (yaml.SequenceNode, list, tuple)):
            items = item.value if isinstance(item, yaml.SequenceNode) else item
            return Entry([self._entry(one, position, (*key, i), folder) for i, one in enumerate(items)], here)
        value, message = _scalar_value(item) if isinstance(item, yaml.ScalarNode) else _plain_value(item)
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
            name, is_merge = _key(written)
            if name is None:
                shown_key = "of lists or mappings"
                if not isinstance(written, yaml.CollectionNode):
                    shown_key = shown(written.value if isinstance(written, yaml.Node) else written)
                message = f"key {shown_key} is not text; keys are text, so quote it"
                self._refuse(LocatedProblem(at, key, message, is_of_value=False))
                continue
            if name in given:
                message = f"is given twice, here and at {given[name]}; keep one"
                self.problems.append(LocatedProblem(at, (*key, name), message, is_of_value=False))
                continue
            given[name] = at
            entry = self._entry(value, position, (*key, name), folder)
            if not is_merge:
                content[name] = Entry(entry.value, at)
                continue
            inherited = entry.value if isinstance(entry.value, list) else [entry]
            if not all(isinstance(source.value, dict) for source in inherited):
                message = "'<<' takes a mapping or a list of mappings (<<: *name)"
                self._refuse(LocatedProblem(at, key, message, is_of_value=False))
                inherited = []
        for source in inherited:
            merged = dict(source.value)
            note_halves(merged, content)
            content |= {name: entry for name, entry in merged.items() if name not in content}
        return content

    def _refuse(self, problem: LocatedProblem) -> None:
        if not self._keep_going:
            raise ReadError(problem)
        self.problems.append(problem)

    def _with_base(self, entry: Entry, folder: str, key: KeyPath) -> Entry:
        """Merges a mapping over the files that its `_base_` names; later files over earlier ones."""
        base = entry.value.pop(BASE_KEY, None)
        if base is None:
            return entry
        names = [name.value for name in base.value] if isinstance(base.value, list) else [base.value]
        if not names or not all(isinstance(name, str) and name and name.isprintable() for name in names):
            raise read_error(base.position, "must be a path or a list of paths", (*key, BASE_KEY))
        merged = Entry({}, base.position)
        for name in names:
            file = os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
            merged = merge_entries(merged, self.read_file(file, base.position, key))
        return merge_entries(merged, entry)


def _key(written: Any) -> tuple[str | None, bool]:
    """A key's text, or None where it is not text, and whether it is YAML's `<<`."""
    if isinstance(written, yaml.ScalarNode) and written.tag in (TAG + "str", TAG + "merge"):
        return written.value, written.tag == TAG + "merge"
    return (str(written) if isinstance(written, str) else None), False


def _plain_value(value: Any) -> tuple[Any, str | None]:
    """A value of a mapping as YAML could hold it, numpy's numbers as Python's; and what is wrong with it."""
    if value is None or isinstance(value, bool):
        return value, None
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return (whole, None) if _fits_64_bits(whole) else (None, "is too large for a whole number, which has 64 bits")
    if isinstance(value, numbers.Real):
        return float(value), None
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str):
        return str(text), None
    allowed = "text, numbers, true, false, ~, lists and mappings"
    return None, f"must be what YAML holds ({allowed}), got a value of type {type(text).__name__}"
