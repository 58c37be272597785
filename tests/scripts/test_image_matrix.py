"""Files of every dialect against the true pixels: all by the reader, some by every command."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from basicsr.data.checks.inspection import examine
from basicsr.files.header_readers import read_header
from basicsr.files.image_headers import Content
from basicsr.files.images import imfrombytes
from basicsr.inference.pictures import PictureFile
from basicsr.utils.errors import DataError


@pytest.fixture(scope="module")
def matrix():
    before = list(sys.path)
    yield importlib.import_module("image_matrix")
    sys.path[:] = before


@pytest.fixture(scope="module")
def dialects(matrix):
    return list(matrix.all_dialects())


def read(read_one):
    """The pixels, or the refusal's words."""
    try:
        return read_one()
    except DataError as error:
        assert "\n" not in str(error)
        return str(error).partition(": ")[2]


def test_every_dialect_is_read_to_its_true_pixels_or_refused_from_the_header_on(matrix, dialects, tmp_path):
    wrong, read_well = [], 0
    for dialect in dialects:
        path = tmp_path / f"a{dialect.ending}"
        path.write_bytes(dialect.content)
        found, finding = read(lambda content=dialect.content: imfrombytes(content)), examine(str(path))
        if isinstance(found, str):
            ok = dialect.damaged or finding.fault == found
            ok &= dialect.truth is None or dialect.name in EXACT_BUT_REFUSED
        else:
            ok = matrix.judge(found[..., ::-1], dialect.truth, dialect.lossy) == matrix.EQUAL
            ok &= finding.header is not None and finding.header.size == found.shape[:2]
            ok &= read_header(Content(dialect.content)).depth == 8 * found.itemsize
            read_well += 1
        if not ok:
            wrong.append((dialect.name, finding.fault, found if isinstance(found, str) else found.shape))
    assert wrong == []
    assert read_well > 300


# Their pixels would be exact, but the files do not say so, or nobody keeps photographs so.
EXACT_BUT_REFUSED = {"OpenCV TIFF uint8 of 4 channels", "OpenCV TIFF uint16 of 4 channels", "BMP RLE"}


def test_upscaling_reads_what_training_reads_and_beyond_it_says_what_it_shows(matrix, dialects, tmp_path):
    wrong = []
    for dialect in dialects:
        path = tmp_path / f"a{dialect.ending}"
        path.write_bytes(dialect.content)
        picture = read(lambda path=path: PictureFile(path).read())
        if isinstance(picture, str):
            ok = dialect.truth is None or dialect.name in EXACT_BUT_REFUSED
        elif any("only the first" in note or "CMYK" in note for note in picture.notes):
            ok = dialect.truth is None
        else:
            pixels = picture.pixels
            colours = np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]
            ok = matrix.judge(colours, dialect.shown, dialect.lossy) == matrix.EQUAL
            ok &= dialect.hidden is None or np.array_equal(pixels[..., -1] == 0, dialect.hidden)
        if not ok:
            wrong.append(dialect.name)
    assert wrong == []


@pytest.fixture
def run(matrix, tmp_path, monkeypatch):
    def call(dialects):
        monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "cache"))
        here = os.getcwd()
        made = matrix.Matrix(tmp_path, dialects)
        try:
            made.run()
        finally:
            os.chdir(here)
        return {dialect.name: made.rows[stem] for stem, dialect in made.dialects.items()}

    return call


def test_a_truth_that_is_off_by_one_level_is_a_silent_difference_of_every_command(run, matrix, dialects):
    by_name = {dialect.name: dialect for dialect in dialects}
    plain, refused = by_name["tifffile 8 RGBA, plain"], by_name["tifffile 8 5 bands"]
    off = plain.truth.copy()
    off[5, 7, 1] ^= 1
    rows = run([plain, replace(plain, name="off", truth=off), refused])
    assert set(rows["tifffile 8 RGBA, plain"].values()) == {matrix.EQUAL}
    assert set(rows["tifffile 8 5 bands"].values()) == {matrix.REFUSED}
    assert {reader for reader, verdict in rows["off"].items() if verdict == matrix.SILENT} == set(matrix.READERS) - {
        "start-up check",
        *(["generate_lr"] if rows["off"]["generate_lr"] == matrix.EQUAL else []),  # which rounds
    }


@pytest.mark.long
def test_the_whole_matrix_has_no_silent_difference(matrix, capsys):
    assert matrix.main([]) == 0
    assert ", 0 SILENT, 0 MISSED" in capsys.readouterr().out
