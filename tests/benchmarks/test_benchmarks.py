"""The benchmarks' own arithmetic, their tables and mistakes, and one row from the command to its line."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

from basicsr.utils.errors import ForeignError, OptionsError
from basicsr.utils.timing import Spread, in_turn, ratios, spread
from benchmarks import growth, run
from benchmarks.table import Detail, Outcome, Target, details_tables, outcomes_table, short
from benchmarks.workers import Worker, ours_command


def test_spread_is_the_median_and_the_quartiles():
    # Of five values in order the quartiles are the second and the fourth, of four they lie between two.
    assert spread([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert spread([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError):
        spread([])


def test_ratios_are_of_neighbours():
    # The machine is ten times as slow in the second round: each ratio is 2 all the same.
    assert ratios([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == Spread(2.0, 2.0, 2.0)
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], [1.0])


def test_sides_are_run_in_turn_and_warm_up_does_not_count():
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    measured = in_turn({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=3, warm_up=1)
    assert "".join(order) == "ba" + "ab" + "ba" + "ab"
    assert measured == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


@pytest.mark.parametrize(
    "target, value, verdict",
    [
        (Target("at least", 7.0, " x"), 7.0, "yes"),
        (Target("at least", 7.0, " x"), 6.99, "**no**"),
        (Target("at most", 0.02, " dB"), 0.02, "yes"),
        (Target("at most", 0.02, " dB"), 0.021, "**no**"),
        (Target("at most", 0.02, " dB"), math.nan, "not run"),
    ],
)
def test_verdict(target, value, verdict):
    assert Outcome("row", "what", figure=Spread(value, value, value), target=target).verdict == verdict


def test_table_of_outcomes_has_a_line_for_each_and_its_remarks_below():
    outcomes = [
        Outcome("fast", "a thing", "4 s", "2 s", Spread(2.0, 1.9, 2.12), Target("at least", 1.5, " x")),
        Outcome("gone", "another", target=Target("at most", 6, " s"), remark="not run: no GPU"),
    ]
    table = outcomes_table(outcomes).splitlines()
    assert table[2] == "| fast | a thing | 4 s | 2 s | 2.00 x | 1.90 to 2.12 | at least 1.5 x | yes |"
    assert table[3] == "| gone | another | - | - | - | - | at most 6 s | not run |"
    assert table[4:] == ["", "- gone: not run: no GPU"]
    assert len({line.count("|") for line in table[:4]}) == 1


def test_details_of_one_title_become_one_table():
    details = [Detail("T:", ("a", "b"), ((str(number), "x"),)) for number in range(2)]
    assert details_tables(details) == "T:\n\n| a | b |\n| --- | ---: |\n| 0 | x |\n| 1 | x |"


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (1234.4, "1234"), (12.34, "12.3"), (0.01234, "0.0123"), (1.2e-5, "1.2e-05")]
)
def test_short(value, text):
    assert short(value) == text


def test_growth_compares_a_figure_with_its_input():
    counts = (10.0, 100.0, 1000.0)
    figures = {"square": (1.0, 100.0, 1e4), "line": (1.0, 10.0, 100.0), "none": (3.0, 3.0, 3.0), "nothing": (0.0,) * 3}
    series = growth.Series("images", counts, figures)
    assert series.exponents("square") == pytest.approx([2, 2])
    assert series.verdict("square") == "faster than its input (2.00)"
    assert series.verdict("line") == "no faster than its input (1.00)"
    assert series.verdict("none") == "no faster than its input (0.00)"
    assert series.verdict("nothing") == "too small to tell"


def test_ring_formula():
    # 1 MB at 1 ns a byte takes 1 ms between two; each of 8 sends 14/8 of it, in 14 messages of 0.5 ms.
    measured = {1: {"step": 0.1}, 2: {"latency": 1e-3, "transfer": 2e-3, "gradient_bytes": 1e6}}
    eight = growth._ring(measured).splitlines()[3]
    cells = [cell.strip() for cell in eight.strip("|").split("|")]
    assert float(cells[1]) == pytest.approx(1.75e6 / 1024, rel=0.01)
    assert float(cells[2]) == pytest.approx(1.75 + 14 * 0.5, rel=0.01)


def test_rows_by_name_and_by_beginning():
    assert run.chosen_rows(["step", "metrics"]) == ["step_edsr", "step_rcan", "step_swinir", "metrics"]
    assert "numbers" not in run.chosen_rows(None) and "start" in run.chosen_rows(None)
    with pytest.raises(OptionsError, match=r"no row 'metric' \(did you mean 'metrics'\?\); there are: agreement, "):
        run.chosen_rows(["metric"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rounds", "0"], "--rounds is 0, allowed: 1 and more"),
        (["--reference", "nowhere/python"], "nowhere/python is no file"),
        (["--rows", "speed"], "there is no row 'speed'"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments, message):
    with pytest.raises(OptionsError, match=re.escape(message)):
        run.main(arguments)


def test_growth_names_its_parts():
    with pytest.raises(OptionsError, match="no part 'image'; there are: images, size, batch, ranks"):
        growth.main(["--parts", "image"])


def test_a_row_from_the_command_to_its_line(tmp_path):
    file = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "benchmarks/run.py"), "--quick", "--threads", "1"]
    done = subprocess.run([*command, "--rows", "metrics", "--json", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    (row,) = content["outcomes"]
    assert row["row"] == "metrics" and row["figure"]["median"] > 0
    assert "within 0.001 dB and 0.0001" in row["remark"] and "not within" not in row["remark"]
    assert f"| metrics | {row['what']} |" in done.stdout
    assert content["reference"] in ("basicsr 1.4.2", "our float32 path")


def test_a_worker_tells_its_error_in_a_line():
    with pytest.raises(ForeignError, match=r"metrics: prepare: FileNotFoundError: .*nowhere\.npz"):
        Worker(ours_command(), 1, "metrics", {"path": "nowhere.npz", "crop_border": 4, "threads": 1})
