"""Tables: figures, ranks worked out by hand, and what Markdown and LaTeX make of them."""

from __future__ import annotations

import csv
import dataclasses
import re

import numpy as np
import pytest
from support.results import evaluation, results, row

from basicsr.config.schema import ReportOptions
from basicsr.metrics.evaluator import Evaluation
from basicsr.report.tables import DASH, Row, ScaleResults, Table, cost_table, quality_table, significant, write_csv
from basicsr.report.writing import latex_escape, to_latex, to_markdown, write_tables
from basicsr.utils.errors import OptionsError
from basicsr.utils.timing import Spread

BICUBIC = row("bicubic", 0, {"Set5": (39.0, 0.99)})
TEACHER = row("The Teacher", 43_000_000, {"Set5": (38.9, 0.98)})


def marks(table: Table, scale: int = 0) -> dict[str, list[list[str]]]:
    """By method, for each column, the marks of its figures."""
    group = table.groups[scale]
    return {
        line.method: [[figure.mark for figure in cell] for cell in line.cells]
        for line in (*group.lines, *group.published)
    }


def markdown_cells(table: Table) -> list[list[str]]:
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "columns are not aligned"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def latex_cells(text: str) -> list[list[str]]:
    """Cells of a tabular, its commands resolved; fails where braces or columns do not match."""
    depth = 0
    for match in re.finditer(r"(?<!\\)[{}]", text):
        depth += 1 if match[0] == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert text.count(r"\begin") == text.count(r"\end")
    columns, body = re.search(r"\\begin{tabular}{([clr]+)}(.*)\\end{tabular}", text, re.DOTALL).groups()
    body = re.sub(r"\\(toprule|midrule|bottomrule|cmidrule\(l\){\d+-\d+})\n", "", body)
    rows = []
    for line in body.strip().split(r"\\" + "\n"):
        cells = re.split(r"(?<!\\)&", line.removesuffix(r"\\"))
        spans = [int(match[1]) for match in re.finditer(r"\\multicolumn{(\d+)}", line)]
        assert len(cells) + sum(spans) - len(spans) == len(columns), line
        rows.append([cell.strip() for cell in cells])
    return rows


def test_best_and_second_best_of_each_metric_and_dataset_are_marked():
    rows = (
        row("a", 5, {"Set5": (38.00, 0.9605), "Set14": (33.60, 0.9171)}),
        row("b", 5, {"Set5": (38.15, 0.9611), "Set14": (33.57, 0.9180)}),
        row("c", 5, {"Set5": (38.19, 0.9610), "Set14": (33.58, 0.9172)}),
    )
    table = quality_table(results(ScaleResults(2, rows)))
    assert marks(table) == {
        "a": [["", ""], ["best", ""]],
        "b": [["second", "best"], ["", "best"]],
        "c": [["best", "second"], ["second", "second"]],
    }


def test_figures_that_print_the_same_share_a_mark():
    """38.194 and 38.186 both print 38.19; the next figure is second, not third."""
    rows = (
        row("a", 5, {"Set5": (38.194, 0.96105)}),
        row("b", 5, {"Set5": (38.186, 0.96111)}),
        row("c", 5, {"Set5": (38.15, 0.9605)}),
        row("d", 5, {"Set5": (38.15, 0.9604)}),
    )
    table = quality_table(results(ScaleResults(2, rows)))
    assert [cell[0][0] for cell in marks(table).values()] == ["best", "best", "second", "second"]


def test_lower_is_better_where_the_metric_says_so():
    def lpips(name: str, value: float) -> Row:
        return Row(name, 5, {"Set5": Evaluation(("lpips",), ("a",), np.array([[value]]), np.ones(1))})

    scale = ScaleResults(2, (lpips("a", 0.31), lpips("b", 0.12), lpips("c", 0.25)))
    table = quality_table(results(scale, better={"lpips": "lower"}))
    assert marks(table) == {"a": [[""]], "b": [["best"]], "c": [["second"]]}
    assert table.columns[0].subtitle == "LPIPS↓"
    assert table.groups[0].lines[1].cells[0][0].text == "0.1200"


def test_bicubic_and_teachers_are_not_ranked_and_the_table_says_so():
    rows = (BICUBIC, row("a", 5, {"Set5": (38.0, 0.96)}), row("b", 5, {"Set5": (38.1, 0.97)}), TEACHER)
    table = quality_table(results(ScaleResults(2, rows)))
    assert [cells[0][0] for cells in marks(table).values()] == ["", "second", "best", ""]
    assert "Not ranked: bicubic, The Teacher." in table.notes
    everyone = quality_table(results(ScaleResults(2, rows)), ranked=lambda row: True)
    assert [cells[0][0] for cells in marks(everyone).values()] == ["best", "", "", "second"]


def test_one_network_alone_is_not_the_best():
    table = quality_table(results(ScaleResults(2, (BICUBIC, row("a", 5, {"Set5": (38.0, 0.96)})))))
    assert [cells[0][0] for cells in marks(table).values()] == ["", ""]


def test_scales_are_ranked_apart():
    rows = [row(name, 5, {"Set5": (psnr, 0.9)}) for name, psnr in (("a", 38.0), ("b", 38.1), ("a", 34.2), ("b", 34.1))]
    table = quality_table(results(ScaleResults(2, tuple(rows[:2])), ScaleResults(3, tuple(rows[2:]))))
    assert [marks(table, scale)["a"][0][0] for scale in range(2)] == ["second", "best"]


def test_names_are_text_in_markdown_headings_too():
    rows = (row("a|b", 5, {"S|et <b>_5_ &amp;": (30.0, 0.9)}), row("c", 5, {"S|et <b>_5_ &amp;": (31.0, 0.8)}))
    cells = markdown_cells(quality_table(results(ScaleResults(2, rows))))
    assert {len(line) for line in cells} == {3}
    assert cells[0][2] == r"S\|et \<b>\_5\_ \&amp; PSNR/SSIM"
    assert cells[2][1] == r"a\|b"


def test_a_table_without_metrics_is_whole():
    empty = Evaluation((), ("a",), np.zeros((1, 0)), np.zeros(1))
    table = quality_table(results(ScaleResults(2, (Row("n", 5, {"S": empty}),))))
    assert table.caption == "bench_1: nothing was measured."
    cells = markdown_cells(table)
    assert cells[0] == ["Scale", "Method", "S"] and all(re.fullmatch("-{2,}:?", cell) for cell in cells[1])


def test_markdown_gives_the_averages_back():
    rows = (
        row("a|b *x* _y_", 1_370_000, {"Set5": (38.0, 0.96), "Set14": (33.5, 0.91)}),
        row("c", 29_000, {"Set5": (38.1, 0.97)}),
    )
    scales = (ScaleResults(2, rows), ScaleResults(3, rows, ("Set14: there is no folder",)))
    table = quality_table(results(*scales))
    cells = markdown_cells(table)
    assert cells[0] == ["Scale", "Method", "Set5 PSNR/SSIM", "Set14 PSNR/SSIM"]
    assert cells[2] == ["x2", r"a\|b \*x\* \_y\_", "<ins>38.00</ins>/<ins>0.9600</ins>", "33.50/0.9100"]
    assert cells[3] == ["", "c", "**38.10**/**0.9700**", DASH]
    assert [line[0] for line in cells[2:]] == ["x2", "", "x3", ""]
    assert "- x3: left out Set14: there is no folder" in to_markdown(table).splitlines()


def test_latex_gives_the_averages_back():
    rows = (row("50% of_a & b", 5, {"Set5": (38.0, 0.96), "Set14": (33.5, 0.91)}), row("c", 5, {"Set5": (38.1, 0.95)}))
    text = to_latex(quality_table(results(ScaleResults(2, rows), ScaleResults(4, rows))))
    cells = latex_cells(text)
    assert cells[0] == [r"\multirow{2}{*}{Scale}", r"\multirow{2}{*}{Method}", "Set5", "Set14"]
    assert cells[1] == ["", "", "PSNR/SSIM", "PSNR/SSIM"]
    first = r"\underline{38.00}/\textbf{0.9600}"
    assert cells[2] == [r"\multirow{2}{*}{$\times 2$}", r"50\% of\_a \& b", first, "33.50/0.9100"]
    assert cells[3] == ["", "c", r"\textbf{38.10}/\underline{0.9500}", "--"]
    assert r"\caption{bench\_1: average PSNR/SSIM." in text
    assert len(cells) == 6


@pytest.mark.parametrize("character", list("&%$#_{}~^\\<>|"))
def test_latex_special_characters_are_escaped(character):
    escaped = latex_escape(f"a{character}b")
    assert re.fullmatch(r"a(\\[&%$#_{}]|\\text[a-z]+{})b", escaped), escaped


def test_skipped_datasets_are_named_below_once_for_all_scales():
    scales = [ScaleResults(scale, (BICUBIC,), ("BSD100: no folder.",)) for scale in (2, 3, 4)]
    for text in (to_markdown, to_latex):
        assert text(quality_table(results(*scales))).count("x2, x3, x4: left out BSD100: no folder.") == 1


def test_a_dataset_without_hr_images_is_a_dash_and_the_reason_is_told():
    nothing = Evaluation((), ("a",), np.zeros((1, 0)), np.ones(1))
    rows = (Row("a", 5, {"Set5": evaluation([30.0], [0.9]), "Mine": nothing}),)
    table = quality_table(results(ScaleResults(2, rows)))
    assert table.groups[0].lines[0].cells[1][0].text == DASH
    assert "x2: Mine has no figures: it has no HR images, or no metric was asked for." in table.notes


def test_published_rows_stand_apart_with_their_sources():
    table = quality_table(results(ScaleResults(2, (row("a", 5, {"Set5": (38.0, 0.96)}),))), published="swinir")
    group = table.groups[0]
    assert [line.method for line in group.lines] == ["a"]
    published = {line.method: line for line in group.published if line.method != "Scratch"}
    assert list(published) == ["Teacher", "KD", "DUKD", "MiPKD", "MCAD-KD", "FAKD", "DCKD"]
    assert [figure.text for figure in published["MCAD-KD"].cells[0]] == ["38.18", "0.9614"]
    assert [table.references[key] for key in published["KD"].references] == [
        "MCAD-KD (ICCVW 2025), Table 5",
        "DCKD (AAAI 2025), Table 2",
    ]
    assert all(figure.mark == "" for line in group.published for cell in line.cells for figure in cell)
    assert len(table.columns) == 1  # BSD100 and Urban100 were not evaluated


def test_the_doubtful_published_row_is_marked_wherever_it_is_shown():
    table = quality_table(results(ScaleResults(2, (BICUBIC,))), published="SwinIR")
    (doubtful,) = [line for line in table.groups[0].published if line.method == "DUKD"]
    assert "equal those of RCAN x2 Scratch" in table.references[doubtful.references[-1]]
    assert "*DUKD* [1, a]" in to_markdown(table)
    assert "DUKD [1, a]" in to_latex(table)
    assert latex_cells(to_latex(table))
    other = quality_table(results(ScaleResults(3, (BICUBIC,))), published="SwinIR")
    assert not any("RCAN" in text for text in other.references.values())


def test_figures_of_restoration_say_what_they_are_measured_on():
    ours = {"GoPro": (31.0, 0.94), "Rain100L": (37.0, 0.97)}
    tables = {
        dataset: quality_table(results(ScaleResults(1, (row("a", 5, {dataset: pair}),))), published="Restormer")
        for dataset, pair in ours.items()
    }
    assert "Published figures of Restormer are average PSNR and SSIM of RGB; not ranked." in tables["GoPro"].notes
    assert any("SSIM of luma" in note for note in tables["Rain100L"].notes)
    for table, figure in zip(tables.values(), ("31.78", "38.02"), strict=True):
        (dckd,) = [line for line in table.groups[0].published if line.method == "DCKD"]
        assert dckd.cells[0][0].text == figure


def test_published_rows_are_not_ranked():
    ours = (row("a", 5, {"Set5": (38.16, 0.97)}), row("b", 5, {"Set5": (37.0, 0.96)}))
    apart = marks(quality_table(results(ScaleResults(2, ours)), published="EDSR"))
    assert [apart["a"], apart["MCAD-KD"]] == [[["best", "best"]], [["", ""]]]


def test_an_unknown_backbone_is_refused_with_what_there_is():
    with pytest.raises(OptionsError, match=r"'SwinR'; there are figures of EDSR, RCAN, SwinIR, .*mean 'SwinIR'"):
        quality_table(results(ScaleResults(2, (BICUBIC,))), published="SwinR")


def test_nothing_published_for_these_datasets_is_told():
    table = quality_table(results(ScaleResults(2, (row("a", 5, {"Mine": (30, 0.9)}),))), published="EDSR")
    assert "Nothing is published of EDSR for these scales and datasets." in table.notes


def test_cost_is_given_in_the_papers_units():
    rows = (
        row("EDSR", 2_700_000, {"Set5": (38, 0.9)}, multiply_adds=207_280_000_000, seconds=0.02),
        Row("bicubic", 0, {}, None, Spread(0.004, 0.003, 0.005)),
        Row("untimed", 43_091_111, {}),
    )
    table = cost_table(results(ScaleResults(4, rows)))
    cells = markdown_cells(table)
    assert cells[2:] == [
        ["x4", "EDSR", "2.70", "207.28", f"20.0 (19.6{DASH}20.6)", "50.0"],
        ["", "bicubic", DASH, DASH, f"4.00 (3.00{DASH}5.00)", "250"],
        ["", "untimed", "43.09", DASH, DASH, DASH],
    ]
    assert "3x256x256" in table.caption and "a device" in table.caption
    assert latex_cells(to_latex(table))[1][2:] == ["2.70", "207.28", "20.0 (19.6--20.6)", "50.0"]
    assert table == cost_table(results(ScaleResults(4, rows)), quoted=True) and not table.notes


def test_latencies_that_are_doubted_are_shown_with_the_reason_and_never_quoted(tmp_path):
    rows = (row("EDSR", 2_700_000, {"Set5": (38, 0.9)}, multiply_adds=207_280_000_000, seconds=0.02),)
    found = dataclasses.replace(results(ScaleResults(4, rows)), latency_doubt="other programs took 1.2 cores meanwhile")
    write_tables(found, tmp_path, ReportOptions())
    summary, latex = (tmp_path / "summary.md").read_text(), (tmp_path / "tables.tex").read_text()
    told = "Latencies are no figures to quote: other programs took 1.2 cores meanwhile. They are left out of tables.tex"
    assert told in summary and f"20.0 (19.6{DASH}20.6)" in summary
    assert told.replace("_", r"\_") in latex and "20.0" not in latex and "FPS" not in latex and "207.28" in latex


def test_a_table_of_networks_that_ran_in_less_than_float32_says_so():
    found = results(ScaleResults(4, (row("EDSR", 2_700_000, {"Set5": (38, 0.9)}),)))
    assert not any("float32" in note for note in quality_table(found).notes)
    notes = quality_table(dataclasses.replace(found, precision="bf16")).notes
    assert "Networks ran in bf16 (val: amp), not in float32." in notes


@pytest.mark.parametrize(
    "value, text",
    [(3293.35, "3293"), (43.09, "43.1"), (0.4591, "0.459"), (0.01234, "0.0123"), (9.999, "10.0"), (0.9996, "1.00")],
)
def test_numbers_keep_three_significant_digits(value, text):
    assert significant(value) == text


def test_the_csv_file_gives_every_figure_back(tmp_path):
    first = Row("small, fast", 5, {"Set5": evaluation([30.123456, 32.0], [0.9, 0.8], seconds=0.01)})
    second = Row(
        "large", 9, {"Set5": evaluation([31.5, float("inf")], [0.95, 1.0]), "Set14": evaluation([28.0], [0.7])}
    )
    scales = (ScaleResults(2, (first, second)), ScaleResults(3, (first,)))
    write_csv(tmp_path / "metrics.csv", results(*scales))
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    read = {
        (int(line["scale"]), line["network"], line["dataset"], line["image"], line["metric"]): float(line["value"])
        for line in lines
    }
    expected = {
        (scale.scale, entry.name, dataset, image, metric): value
        for scale in scales
        for entry in scale.rows
        for dataset, figures in entry.evaluations.items()
        for image, values, seconds in zip(figures.images, figures.values, figures.seconds, strict=True)
        for metric, value in [*zip(figures.metrics, values, strict=True), ("seconds", seconds)]
    }
    assert len(lines) == len(expected) == 3 * (2 + 2 + 2 + 1)
    assert read == pytest.approx(expected, abs=5e-7)  # six decimals are written
