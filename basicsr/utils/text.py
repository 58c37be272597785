"""Texts for messages: values and names as they are shown, the nearest name, sizes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST_MESSAGE = 4000
_LONGEST_LINE = 300
_LONGEST_VALUE = 80


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns `" (did you mean 'x'?)"` for the entry of `allowed` most like `name`, or an empty string."""
    lowered = {entry.lower(): entry for entry in allowed}
    given = str(name).lower()
    close = difflib.get_close_matches(given, list(lowered), n=5, cutoff=0.6)
    # Of two short names with their letters swapped, such as rl and lr, difflib sees one letter in common.
    close += [entry for entry in lowered if len(entry) == len(given) < 4 and sorted(entry) == sorted(given)]
    if not close:
        return ""
    return f" (did you mean '{lowered[min(close, key=lambda entry: edit_distance(given, entry))]}'?)"


def edit_distance(a: str, b: str) -> int:
    """How many letters must be dropped, added, replaced or swapped with their neighbour to turn `a` into `b`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, sign in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(b, 1):
            best = min(before[j] + 1, row[-1] + 1, before[j - 1] + (sign != other))
            if i > 1 and j > 1 and sign == b[j - 2] and other == a[i - 2]:
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return row[-1]


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        return shortened(repr(value))
    except ValueError:  # whole numbers of thousands of digits
        return f"a value of type {type(value).__name__}"


def shortened(text: str, limit: int = _LONGEST_VALUE) -> str:
    """The text, or its beginning and `...` where it has more than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str) -> str:
    """The text in one line that any terminal can show: what cannot be printed is escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )


def printable_lines(text: str) -> str:
    """As `printable`, for a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str) -> str:
    """As `printable`, with the middle of a very long text cut out."""
    half = _LONGEST_MESSAGE // 2
    return printable(text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}")


def first_line(error: BaseException) -> str:
    """An exception's message in one line of bounded length."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return shortened(" ".join((first, *others[: first.endswith(":")])).replace("\t", ""), _LONGEST_LINE)


def key_text(key: Sequence[str | int]) -> str:
    """`('datasets', 'train', 'mean', 0)` as `datasets.train.mean[0]`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" for part in key)
    return one_line("".join(parts).removeprefix("."))


def readable(size: int) -> str:
    """A number of bytes as people read it: '480 MB'."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 10 * factor else f"{size / factor:.0f} {unit}"
    return f"{size} B"
