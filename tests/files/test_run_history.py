"""The history of a run: its lines, what is left of a killed process, and damage."""

from __future__ import annotations

import json
import logging
import math
import os

import pytest

from basicsr.files.run_history import History, read_history
from basicsr.utils.errors import CheckpointError, DataError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.jsonl"


def write(path, *iterations, start=0):
    history = History(path, start)
    for iteration in iterations:
        history.scalars(iteration, {"losses/l_pix": iteration / 10})
    history.close(0)


def test_each_line_is_there_as_soon_as_it_is_written(path):
    history = History(path, 0)
    history.scalars(5, {"losses/l_pix": 0.25, "lr/student": 2e-4})
    assert path.read_text() == '{"iter": 5, "losses/l_pix": 0.25, "lr/student": 0.0002}\n'
    history.close(0)


def test_figures_that_are_not_finite_are_null_and_read_as_nan(path):
    history = History(path, 0)
    history.scalars(1, {"a": math.inf, "b": math.nan, "c": 1.0})
    history.close(0)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"iter": 1, "a": None, "b": None, "c": 1.0}
    (entry,) = read_history(path)
    assert math.isnan(entry["a"]) and math.isnan(entry["b"]) and entry["c"] == 1.0


def test_a_resumed_run_drops_what_came_after_its_checkpoint(path):
    write(path, 2, 4, 6, 8)
    write(path, 6, 8, 10, start=4)
    assert [entry["iter"] for entry in read_history(path)] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize("left", ['{"iter": 6, "losses/l_p', '{"iter": 6}', "{", '{"iter": 6, "a": "\xf6'])
def test_half_a_last_line_is_neither_read_nor_continued(path, left):
    """What kill -9 may leave: a line is whole with its end of line only."""
    write(path, 2, 4)
    with open(path, "ab") as file:
        file.write(left.encode("latin-1"))
    assert [entry["iter"] for entry in read_history(path)] == [2, 4]
    write(path, 6, start=4)
    assert [entry["iter"] for entry in read_history(path)] == [2, 4, 6]


@pytest.mark.parametrize("broken", ["{\n", "[1]\n", "7\n", '{"a": 1}\n', '{"iter": "x"}\n'])
def test_damage_elsewhere_is_told_with_its_line(path, broken):
    path.write_text('{"iter": 1, "a": 0.5}\n' + broken + '{"iter": 3, "a": 0.5}\n')
    with pytest.raises(DataError, match=r"history\.jsonl, line 2 is no line of a history"):
        read_history(path)


def test_a_history_that_cannot_be_read_or_written_is_told(path, tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*No such file"):
        read_history(path)
    with pytest.raises(CheckpointError, match=r"cannot write .*No such file"):
        History(tmp_path / "no_folder" / "history.jsonl", 0)


DAMAGED = [
    '{"iter": 1, "a": 0.5}\n{"iter": 2, "a": 0.5\n\x00\x00\x00\n[[\n{"iter": 3, "a": "x"}\n{"iter": 3, "a": 0.25}\n',
    '{"iter": 1, "a": 0.5}\n{"iter": true}\n{"iter": -1}\n' + "[" * 5000 + '\n{"iter": 3, "a": 0.25}\n',
    '{"iter": 1, "a": 0.5}\n{"iter": 2, "a": 1' + "0" * 400 + '}\n{"iter": 3, "a": 0.25}\n{"iter"',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_run_goes_on_with_the_sound_lines_and_keeps_the_damaged_file(path, content, capsys):
    path.write_text(content)
    logger = logging.getLogger("basicsr")
    before = list(logger.handlers)
    logger.handlers.clear()
    try:
        write(path, 4, start=3)
    finally:
        logger.handlers[:] = before
    assert [(entry["iter"], entry.get("a")) for entry in read_history(path)] == [(1, 0.5), (3, 0.25), (4, None)]
    assert (path.parent / "history_damaged.jsonl").read_text() == content
    (line,) = capsys.readouterr().err.splitlines()
    assert "the first is line 2; it goes on without them; what was there is kept as history_damaged.jsonl" in line


@pytest.mark.parametrize("kind", ["folder", "pipe", "dead link", "link to itself"])
def test_what_is_no_file_is_set_aside_and_never_waited_for(path, kind):
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "dead link" else path)
    write(path, 4, start=3)
    assert [entry["iter"] for entry in read_history(path)] == [4]
    assert os.path.lexists(path.parent / "history_damaged.jsonl")
