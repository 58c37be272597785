"""What the reader of options files makes of them: values that know where they were written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from basicsr.utils.text import one_line, shortened

KeyPath = tuple[str | int, ...]

_FEWEST_GROUPED = 3
_MOST_PLACES = 5


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


def lines_of(problems: Iterable[LocatedProblem]) -> list[str]:
    """The problems as lines, ordered by file and line; what holds for three or more keys is one line with places."""
    ordered = sorted(problems, key=lambda problem: (problem.position.file, problem.position.line or 0))
    groups: dict[tuple[str, str], list[LocatedProblem]] = {}
    for problem in dict.fromkeys(ordered):
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
    """What problems of one cause have in common: what is said, and of which key, unless a folder is lacking."""
    name = str(problem.key[-1]) if problem.key and not problem.message.startswith("lies in ") else ""
    return problem.message, name


def _places(group: Sequence[LocatedProblem]) -> str:
    """Where else a problem is, as `7 more: val.metrics.a at base.yml:7, ...`."""
    first, *others = group
    shown = []
    for other in others[:_MOST_PLACES]:
        where = str(other.position) if other.position.file != first.position.file else f"line {other.position.line}"
        shown.append(key_text(other.key) + ("" if other.position == first.position else f" ({where})"))
    return f"{len(others)} more: {', '.join(shown)}{', ...' if len(others) > _MOST_PLACES else ''}"


@dataclass
class Entry:
    """A value with its position; a mapping holds entries by key, a list holds entries in order.

    Attributes:
        value: the value.
        position: where it was written.
        replaced: the entry of a base in whose place it stands, where that base's other half of a pair was kept.
    """

    value: Any
    position: Position
    replaced: Entry | None = None


PAIRS = (("dataroot_gt", "dataroot_lq"),)
"""Keys whose values belong together, so that none of them is replaced alone."""


def key_text(key: Sequence[str | int]) -> str:
    """`('datasets', 'train', 'mean', 0)` as `datasets.train.mean[0]`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" if text else shortened(part)
    return one_line(text)


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
    """Notes in the entries of `own` which of them replace one half of a pair in `base` and leave the other.

    Where the other half was itself put beside one that is now replaced, both are new, and its note is taken back.
    """
    for pair in PAIRS:
        for half, other in (pair, pair[::-1]):
            if not (half in own and half in base and other in base and other not in own):
                continue
            if base[other].replaced is not None:
                base[other] = Entry(base[other].value, base[other].position)
            elif own[half].value != base[half].value:
                own[half].replaced = base[half]
