"""The files that a test leaves beside its images: tables, plots, visual comparisons and the HTML report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import cv2

import basicsr
from basicsr.config.published import published_rows
from basicsr.config.schema import ReportOptions
from basicsr.files.images import imwrite
from basicsr.report.comparison import compare_scale
from basicsr.report.pictures import SavedPictures
from basicsr.report.plots import cost_figure, figure_svg, write_figure
from basicsr.report.regions import write_regions
from basicsr.report.results import Results
from basicsr.report.table_text import to_latex, to_markdown, to_markdown_list
from basicsr.report.tables import Table, cost_table, quality_table, weights_used, write_csv, write_text


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
