"""Tables as CSV in which no text is a formula to a spreadsheet: one that might be gets an apostrophe in front."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence

_FULL_WIDTH = "\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
_FORMULA = (*"=+-@\t\r\n'", *_FULL_WIDTH)


class Number(str):
    """The text of a number, which stays as it is: -0.5."""


def csv_text(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The file's text; cells of type `str` are guarded, numbers and `Number`s are not."""
    lines = []
    for row in (head, *([guarded(cell) if type(cell) is str else cell for cell in row] for row in rows)):
        text = io.StringIO()
        # A writer whose lines end in \n alone does not quote \r, at which readers begin a new row (Python 3.11).
        csv.writer(text, lineterminator="\r\n").writerow(row)
        lines.append(text.getvalue().removesuffix("\r\n"))
    return "\n".join([*lines, ""])


def guarded(text: str) -> str:
    """Text with an apostrophe in front where a spreadsheet might take it for a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of such a file, by the names of its columns, with the original texts; raises OSError."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: cell.removeprefix("'") for name, cell in row.items()} for row in csv.DictReader(file)]
