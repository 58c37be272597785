"""Cells that spreadsheets would execute are text, and are read back as they were."""

from __future__ import annotations

import csv

import pytest

from basicsr.files.csv_files import Number, csv_text, guarded, read_csv

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1")
NAMES = (*FORMULAS, "'x", "''=1", 'a"b,c', "a\rb", "plain", "", "x=1")


@pytest.mark.parametrize("name", NAMES)
def test_a_formula_becomes_text_and_comes_back_unchanged(name, tmp_path):
    (tmp_path / "a.csv").write_text(csv_text(("image", "value"), [(name, Number("-0.5"))]), "utf-8", newline="")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        ((cell, value),) = list(csv.reader(file))[1:]
    assert value == "-0.5"
    assert not cell.strip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert read_csv(str(tmp_path / "a.csv")) == [{"image": name, "value": "-0.5"}]


def test_what_is_no_formula_is_as_it_was():
    assert [guarded(text) for text in ("baby", "x-1", "2=2", "")] == ["baby", "x-1", "2=2", ""]
    assert csv_text(("a", "b"), [("img", -1.25)]) == "a,b\nimg,-1.25\n"
