"""Tables as Markdown and as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from basicsr.report.tables import Cell, Figure, Group, Line, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$",
}


def to_markdown(table: Table) -> str:
    """A table as GitHub, GitLab and editors show it; padded, so that it reads as a table also where it is printed.

    The best figure is bold, the second best between <ins> and </ins>; published lines are in italics.
    """
    lines = [["Scale", "Method", *(_markdown(f"{column.title} {column.subtitle}") for column in table.columns)]]
    for group in table.groups:
        lines += _markdown_group(group, len(table.columns))
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width if index < 2 else "-" * (width - 1) + ":" for index, width in enumerate(widths)])
    below = [f"- [{key}] {_markdown(text)}" for key, text in table.references.items()]
    below += to_markdown_list(table.notes).splitlines()
    text = "\n".join(_padded(line, widths) for line in lines)
    return "\n\n".join([_markdown(table.caption), text, *(["\n".join(below)] if below else [])]) + "\n"


def to_latex(table: Table, experiment: str = "") -> str:
    r"""A table for the packages booktabs and multirow; best \textbf, second best \underline.

    Args:
        table: what to write.
        experiment: begins the label, so that tables of several experiments can stand in one paper.
    """
    front = [r"\multirow{2}{*}{Scale}", r"\multirow{2}{*}{Method}"] if _subtitled(table) else ["Scale", "Method"]
    header = _latex_row([*front, *(latex_escape(column.title) for column in table.columns)])
    if _subtitled(table):
        header += "\n" + _latex_row(["", "", *(latex_escape(column.subtitle) for column in table.columns)])
    groups = "\n\\midrule\n".join(_latex_group(group, len(table.columns)) for group in table.groups)
    below = [f"[{key}] {latex_escape(text)}" for key, text in table.references.items()]
    below += [latex_escape(note) for note in table.notes]
    notes = "\n\\par\\smallskip\n{\\footnotesize\n" + "\\par\n".join(below) + "\\par}" if below else ""
    label = "_".join(filter(None, (re.sub(r"[^A-Za-z0-9-]+", "_", experiment), table.name)))
    return (
        "% needs \\usepackage{booktabs,multirow}\n\\begin{table*}[t]\n\\centering\n"
        f"\\caption{{{latex_escape(table.caption)}}}\n\\label{{tab:{label}}}\n"
        f"\\begin{{tabular}}{{cl{'c' * len(table.columns)}}}\n\\toprule\n{header}\n\\midrule\n{groups}\n"
        f"\\bottomrule\n\\end{{tabular}}{notes}\n\\end{{table*}}\n"
    )


def to_markdown_list(sentences: Iterable[str]) -> str:
    """Sentences as a list of Markdown."""
    return "".join(f"- {_markdown(sentence)}\n" for sentence in sentences)


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters, line breaks and the signs that tables use replaced."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _subtitled(table: Table) -> bool:
    return any(column.subtitle for column in table.columns)


def _markdown_group(group: Group, columns: int) -> list[list[str]]:
    lines = [["", _markdown(line.method), *map(_markdown_cell, line.cells)] for line in group.lines]
    if group.published:
        lines.append(["", "*published:*", *[""] * columns])
    for line in group.published:
        method = f"*{_markdown(line.method)}* {_references(line)}"
        lines.append(["", method, *map(_markdown_cell, line.cells)])
    if lines:
        lines[0][0] = f"x{group.scale}"
    return lines


def _markdown_cell(cell: Cell) -> str:
    return "/".join(_marked(figure, "**{}**", "<ins>{}</ins>") for figure in cell)


def _markdown(text: str) -> str:
    """One line in which Markdown's signs stand for themselves; underscores inside words do already."""
    escaped = re.sub(r"([\\`|*<&\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [
        cell.ljust(width) if index < 2 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(texts)} |"


def _latex_group(group: Group, columns: int) -> str:
    rows = [["", latex_escape(line.method), *map(_latex_cell, line.cells)] for line in group.lines]
    height = len(rows) + (1 + len(group.published) if group.published else 0)
    texts = [_latex_row(row) for row in rows]
    if group.published:
        heading = f"\\multicolumn{{{columns + 1}}}{{l}}{{\\textit{{published}}}}"
        texts += [f"\\cmidrule(l){{2-{columns + 2}}}", _latex_row(["", heading])]
    for line in group.published:
        method = f"{latex_escape(line.method)} {_references(line)}"
        texts.append(_latex_row(["", method, *map(_latex_cell, line.cells)]))
    if texts:
        texts[0] = f"\\multirow{{{height}}}{{*}}{{$\\times {group.scale}$}}{texts[0]}"
    return "\n".join(texts)


def _latex_cell(cell: Cell) -> str:
    escaped = (Figure(latex_escape(figure.text), figure.mark) for figure in cell)
    return "/".join(_marked(figure, "\\textbf{{{}}}", "\\underline{{{}}}") for figure in escaped)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _references(line: Line) -> str:
    return f"[{', '.join(line.references)}]"


def _marked(figure: Figure, best: str, second: str) -> str:
    return {"best": best, "second": second, "": "{}"}[figure.mark].format(figure.text)
