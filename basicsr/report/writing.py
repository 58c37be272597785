"""The files that a test leaves beside its images: tables, plots, visual comparisons and the HTML report."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path

import cv2

import basicsr
from basicsr.config.published import published_rows
from basicsr.config.schema import ReportOptions
from basicsr.files.images import imwrite
from basicsr.report.comparison import SavedPictures, compare_scale, write_regions
from basicsr.report.plots import cost_figure, figure_svg, write_figure
from basicsr.report.tables import Line, Results, Table, cost_table, quality_table, weights_used, write_csv, write_text

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: rf"\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{DOWNWARDS ARROW}": r"$\downarrow$",
}


def write_files(
    results: Results, folder: Path, options: ReportOptions, pictures: Mapping[int, SavedPictures]
) -> Iterator[str]:
    """Writes the tables and what the `report` options ask for into `folder`; yields lines for the log."""
    tables, summary = write_tables(results, folder, options)
    yield f"{results.name}; files in {folder}\n{summary}"
    plots = _write_plots(results, folder / "plots", options) if options.plots else {}
    comparisons = _write_comparisons(results, folder, options, pictures) if options.plots else {}
    for scale in (scale.scale for scale in results.scales if options.plots and options.regions):
        if scale in pictures and scale not in comparisons:
            yield f"no comparison at x{scale}, because none of report: regions is of a dataset that is there"
    if not pictures and (options.plots or options.html):
        yield "no comparison of images, because none were saved: val: save_img is false"
    if options.html:
        from basicsr.report.html import write_report

        path = folder / "report.html"
        size = write_report(
            path,
            results,
            pictures,
            images_per_dataset=options.images,
            tables=tables,
            plots=plots,
            comparisons=comparisons,
            date=f"{time.strftime('%Y-%m-%d')}, basicsr {basicsr.__version__}",
        )
        yield f"report, {size / 1e6:.1f} MB: {path}"


def write_tables(results: Results, folder: Path, options: ReportOptions) -> tuple[list[Table], str]:
    """Writes metrics.csv, summary.md and tables.tex; returns the tables, and the text of summary.md."""
    write_csv(folder / "metrics.csv", results)
    tables = [quality_table(results, published=options.published)]
    quoted = list(tables)
    if any(row.parameters for scale in results.scales for row in scale.rows):
        tables.append(cost_table(results))
        quoted.append(cost_table(results, quoted=True))
    summary = "\n\n".join(to_markdown(table) for table in tables)
    if weights := weights_used(results):
        summary += "\n" + to_markdown_list(weights)
    write_text(folder / "summary.md", f"{summary}\n")
    write_text(folder / "tables.tex", "\n\n".join(to_latex(table, results.name) for table in quoted) + "\n")
    return tables, summary


def _write_plots(results: Results, folder: Path, options: ReportOptions) -> dict[str, str]:
    """Plots of each scale and dataset, of the first metric; SVG text of each scale's first one, by title."""
    shown: dict[str, str] = {}
    for scale in results.scales:
        published = published_rows(options.published, scale.scale) if options.published else ()
        title = ""
        for metric, dataset in product(scale.metrics()[:1], scale.datasets()):
            figure = cost_figure(results, scale, dataset, metric=metric, published=published)
            if figure is None:
                continue
            folder.mkdir(exist_ok=True)
            for suffix in ("svg", "png"):
                write_figure(figure, folder / f"{metric}_{dataset}_x{scale.scale}.{suffix}")
            if not title:
                title = f"{dataset}, x{scale.scale}"
                shown[title] = figure_svg(figure)
    return shown


def _write_comparisons(
    results: Results, folder: Path, options: ReportOptions, pictures: Mapping[int, SavedPictures]
) -> dict[int, bytes]:
    """Each scale's visual comparison; PNG bytes by scale."""
    drawn = {}
    for scale in results.scales:
        if scale.scale not in pictures:
            continue
        shown, better = pictures[scale.scale], results.better
        compared = compare_scale(scale, shown, count=options.crops, regions=options.regions, better=better)
        if compared is None:
            continue
        image, regions = compared
        path = folder / f"comparison_x{scale.scale}.png"
        imwrite(image, path)
        write_regions(path.with_suffix(".yml"), regions)
        drawn[scale.scale] = cv2.imencode(".png", image)[1].tobytes()
    return drawn


def to_markdown(table: Table) -> str:
    """A padded table: the best figure is bold, the second best in <ins>, published lines are in italics."""
    marks = {"best": "**{}**", "second": "<ins>{}</ins>", "": "{}"}
    rows = [["Scale", "Method", *(_markdown(f"{column.title} {column.subtitle}") for column in table.columns)]]
    for group in table.groups:
        lines = [["", _markdown(line.method), *_texts(line, marks, str)] for line in group.lines]
        lines += [["", "*published:*", *[""] * len(table.columns)]] if group.published else []
        for line in group.published:
            lines.append(["", f"*{_markdown(line.method)}* {_references(line)}", *_texts(line, marks, str)])
        if lines:
            lines[0][0] = f"x{group.scale}"
        rows += lines
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width if index < 2 else "-" * (width - 1) + ":" for index, width in enumerate(widths)])
    for row in rows:
        row[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        row[2:] = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    below = "".join(f"- [{key}] {_markdown(text)}\n" for key, text in table.references.items())
    below += to_markdown_list(table.notes)
    return "\n\n".join(filter(None, [_markdown(table.caption), text, below.rstrip("\n")])) + "\n"


def to_latex(table: Table, experiment: str = "") -> str:
    r"""A table for booktabs and multirow, best \textbf, second best \underline; `experiment` begins its label."""
    marks = {"best": "\\textbf{{{}}}", "second": "\\underline{{{}}}", "": "{}"}
    subtitled = any(column.subtitle for column in table.columns)
    front = [r"\multirow{2}{*}{Scale}", r"\multirow{2}{*}{Method}"] if subtitled else ["Scale", "Method"]
    header = _latex_row([*front, *(latex_escape(column.title) for column in table.columns)])
    if subtitled:
        header += "\n" + _latex_row(["", "", *(latex_escape(column.subtitle) for column in table.columns)])
    groups, width = [], len(table.columns)
    for group in table.groups:
        rows = [_latex_row(["", latex_escape(line.method), *_texts(line, marks, latex_escape)]) for line in group.lines]
        height = len(group.lines) + (1 + len(group.published) if group.published else 0)
        if group.published:
            heading = f"\\multicolumn{{{width + 1}}}{{l}}{{\\textit{{published}}}}"
            rows += [f"\\cmidrule(l){{2-{width + 2}}}", _latex_row(["", heading])]
        for line in group.published:
            method = f"{latex_escape(line.method)} {_references(line)}"
            rows.append(_latex_row(["", method, *_texts(line, marks, latex_escape)]))
        if rows:
            rows[0] = f"\\multirow{{{height}}}{{*}}{{$\\times {group.scale}$}}{rows[0]}"
        groups.append("\n".join(rows))
    body = "\n\\midrule\n".join(groups)
    below = [f"[{key}] {latex_escape(text)}" for key, text in table.references.items()]
    below += [latex_escape(note) for note in table.notes]
    notes = "\n\\par\\smallskip\n{\\footnotesize\n" + "\\par\n".join(below) + "\\par}" if below else ""
    label = "_".join(filter(None, (re.sub(r"[^A-Za-z0-9-]+", "_", experiment), table.name)))
    return (
        "% needs \\usepackage{booktabs,multirow}\n\\begin{table*}[t]\n\\centering\n"
        f"\\caption{{{latex_escape(table.caption)}}}\n\\label{{tab:{label}}}\n"
        f"\\begin{{tabular}}{{cl{'c' * width}}}\n\\toprule\n{header}\n\\midrule\n{body}\n"
        f"\\bottomrule\n\\end{{tabular}}{notes}\n\\end{{table*}}\n"
    )


def to_markdown_list(sentences: Iterable[str]) -> str:
    """Sentences as a list of Markdown."""
    return "".join(f"- {_markdown(sentence)}\n" for sentence in sentences)


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters, line breaks and the signs that tables use replaced."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _texts(line: Line, marks: dict[str, str], escape: Callable[[str], str]) -> list[str]:
    texts = []
    for cell in line.cells:
        figures = [marks[figure.mark].format(escape(figure.text)) for figure in cell]
        texts.append("/".join(figures))
    return texts


def _markdown(text: str) -> str:
    """One line in which Markdown's signs stand for themselves; underscores inside words do already."""
    escaped = re.sub(r"([\\`|*<&\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _references(line: Line) -> str:
    return f"[{', '.join(line.references)}]"
