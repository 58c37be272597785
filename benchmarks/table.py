"""The table of results: what was asked for, what was reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from basicsr.utils.timing import Spread


@dataclass(frozen=True)
class Target:
    """What a figure shall reach.

    Attributes:
        bound: whether `limit` is the least or the most.
        limit: the figure, in `unit`.
        unit: what stands behind it, such as ' x'.
    """

    bound: Literal["at least", "at most"]
    limit: float
    unit: str = ""

    def reached(self, value: float) -> bool:
        """Whether `value` is within the limit; NaN is not."""
        return value >= self.limit if self.bound == "at least" else value <= self.limit

    def __str__(self) -> str:
        return f"{self.bound} {self.limit:g}{self.unit}"


@dataclass(frozen=True)
class Outcome:
    """One line of the table.

    Attributes:
        row: its name.
        what: what was measured.
        reference: the reference's figure as text, empty if there is none.
        ours: our figure as text.
        figure: what `target` is about: a ratio or a figure, with its spread; None where it was not measured.
        target: what it shall reach; None for a line that only informs.
        remark: why it was not measured, or what to know about it.
    """

    row: str
    what: str
    reference: str = ""
    ours: str = ""
    figure: Spread | None = None
    target: Target | None = None
    remark: str = ""

    @property
    def verdict(self) -> str:
        """'yes', 'no', 'not run' or, without a target, '-'."""
        if self.target is None:
            return "-"
        if self.figure is None or math.isnan(self.figure.median):
            return "not run"
        return "yes" if self.target.reached(self.figure.median) else "**no**"


@dataclass(frozen=True)
class Detail:
    """Lines of a further table; those of equal titles become one.

    Attributes:
        title: above it.
        header: of its columns.
        lines: cells, as many as columns.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """What a row has to tell.

    Attributes:
        outcomes: lines of the main table.
        details: what stands below it.
    """

    outcomes: tuple[Outcome, ...]
    details: tuple[Detail, ...] = ()


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]], align: str = "") -> str:
    """A Markdown table.

    Args:
        header: of the columns.
        lines: cells, as many as columns.
        align: 'l' or 'r' for each column; left where it is shorter.
    """
    marks = ["---:" if align[index : index + 1] == "r" else "---" for index in range(len(header))]
    rows = [header, marks, *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def outcomes_table(outcomes: Sequence[Outcome]) -> str:
    """The main table in Markdown, remarks below it."""
    header = ("row", "what", "reference", "ours", "reached", "middle half", "target", "within")
    lines = []
    for outcome in outcomes:
        figure, unit = outcome.figure, outcome.target.unit if outcome.target else ""
        lines.append(
            (
                outcome.row,
                outcome.what,
                outcome.reference or "-",
                outcome.ours or "-",
                f"{short(figure.median)}{unit}" if figure else "-",
                f"{short(figure.low)} to {short(figure.high)}" if figure else "-",
                str(outcome.target or "-"),
                outcome.verdict,
            )
        )
    remarks = [f"- {outcome.row}: {outcome.remark}" for outcome in outcomes if outcome.remark]
    return "\n".join([markdown(header, lines, "llrrrrrl"), *([""] if remarks else []), *remarks])


def details_tables(details: Sequence[Detail]) -> str:
    """All further tables in Markdown, in the order in which their titles first occur."""
    merged: dict[str, Detail] = {}
    for detail in details:
        before = merged.get(detail.title)
        lines = (*(before.lines if before else ()), *detail.lines)
        merged[detail.title] = Detail(detail.title, detail.header, lines)
    return "\n\n".join(
        f"{detail.title}\n\n{markdown(detail.header, detail.lines, 'l' + 'r' * len(detail.header))}"
        for detail in merged.values()
    )


def short(value: float) -> str:
    """Three significant digits, with an exponent only below a thousandth: 1.2e-05, 0.0123, 1.23, 12.3, 1234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"
