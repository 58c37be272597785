"""Values of options files that know where they were written, and mistakes in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from basicsr.utils.text import key_text, one_line

KeyPath = tuple[str | int, ...]
PAIRS = (("dataroot_gt", "dataroot_lq"),)
"""Keys whose values belong together, so that none of them is replaced alone."""

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
    """A mistake at a key. With `is_of_value` the key's value is wrong, so that further checks skip it."""

    position: Position
    key: KeyPath
    message: str
    is_of_value: bool = True

    def __str__(self) -> str:
        key = key_text(self.key)
        return one_line(f"{self.position}: {key}: {self.message}" if key else f"{self.position}: {self.message}")


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
    is_of_folder = problem.message.startswith("lies in ")  # whichever keys name it
    names = [part for part in problem.key if isinstance(part, str)]
    return problem.message, "" if is_of_folder or not names else names[-1]


def _places(group: Sequence[LocatedProblem]) -> str:
    """Where else a problem is, as `7 more: val.metrics.a (base.yml:7), ...`."""
    first, *others = group
    shown = []
    for other in others[:_MOST_PLACES]:
        where = str(other.position) if other.position.file != first.position.file else f"line {other.position.line}"
        shown.append(key_text(other.key) + ("" if other.position == first.position else f" ({where})"))
    return f"{len(others)} more: {', '.join(shown)}{', ...' if len(others) > _MOST_PLACES else ''}"


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
