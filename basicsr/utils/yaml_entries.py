"""What the reader of options files makes of them: values that know where they were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KeyPath = tuple[str | int, ...]

_MAX_NAME = 80
_MAX_MESSAGE = 4000


@dataclass(frozen=True)
class Position:
    """Where a key was written: a file and a line counted from 1, or the command line (no line)."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class LocatedProblem:
    """A mistake at a key of the options, and where that key was written; as text it is one line.

    Attributes:
        position: where it is.
        key: which key.
        message: what was given, what is allowed.
        is_of_value: whether the key's value is what is wrong, so that nothing more need be said of it.
    """

    position: Position
    key: KeyPath
    message: str
    is_of_value: bool = True

    def __str__(self) -> str:
        key = key_text(self.key)
        return one_line(f"{self.position}: {key}: {self.message}" if key else f"{self.position}: {self.message}")


@dataclass
class Entry:
    """A value with its position; a mapping holds entries by key, a list holds entries in order."""

    value: Any
    position: Position


def key_text(key: Sequence[str | int]) -> str:
    """`('datasets', 'train', 'mean', 0)` as `datasets.train.mean[0]`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" if text else shortened(part)
    return one_line(text)


def one_line(text: str) -> str:
    """The text on one line that any terminal shows: what is not printable becomes an escape; cut where very long."""
    cut = text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
    if cut.isprintable():
        return cut
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in cut)


def shortened(text: str, limit: int = _MAX_NAME) -> str:
    """The text, or its beginning and `...` where it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


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
