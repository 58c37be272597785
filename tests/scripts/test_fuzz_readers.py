"""The fuzzer of the readers: what it reports, that its cases repeat, and a few hundred of them on the real readers."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from basicsr.utils.errors import CheckpointError, DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def fuzzer():
    return importlib.import_module("fuzz_readers")


class Planted:
    """A reader of single numbers that breaks in every way there is at some of them."""

    name = "planted"

    def make(self, generator: np.random.Generator) -> tuple[str, bytes]:
        return "x.txt", str(int(generator.integers(16))).encode()

    def read(self, path: Path) -> object:
        match int(path.read_text()):
            case 1:
                os.kill(os.getpid(), signal.SIGSEGV)
            case 2:
                raise KeyError("a bug")
            case 3:
                return bytearray(1 << 34)
            case 4:
                os._exit(0)
            case 5:
                raise DataError("two\nlines")
            case 6:
                raise SystemExit(0)
            case 7:
                raise CheckpointError("a line")
            case 8:
                while True:
                    pass
        return None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process as Linux has them")
def test_whatever_is_neither_taken_nor_refused_is_reported_once_with_its_file(fuzzer, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzzer, "SECONDS_A_CASE", 1)
    reader = Planted()
    (count,) = fuzzer.fuzz([reader], seed=0, seconds=60, cases=60, out=tmp_path, batch=20)
    kinds = " ".join(count.findings)
    for kind in (
        "ended by SIGSEGV",
        "KeyError at",
        "MemoryError at",
        "DataError of odd lines",
        "SystemExit",
        "too long",
    ):
        assert kind in kinds
    assert "ended by exit code 0" in kinds, "an end without a word, as os._exit's, is one too"
    assert {path.read_text() for path in tmp_path.iterdir()} == {"1", "2", "3", "4", "5", "6", "8"}
    assert count.refused > 0 and count.accepted > 0
    numbers = [int(fuzzer.case_of(reader, 0, number)[1]) for number in range(60)]
    assert (count.refused, count.accepted) == (numbers.count(7), sum(n == 0 or n > 8 for n in numbers))
    assert "planted" in fuzzer.summary([reader], [count]) and "SIGSEGV" in fuzzer.summary([reader], [count])


class Waiting(Planted):
    """A reader that waits for ever, as one of a pipe would."""

    name = "waiting"

    def read(self, path: Path) -> object:
        time.sleep(600)
        return None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of a process as Linux has them")
def test_what_waits_for_ever_is_ended_and_reported(fuzzer, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzzer, "SECONDS_A_CASE", 0.25)
    (count,) = fuzzer.fuzz([Waiting()], seed=0, seconds=60, cases=1, out=tmp_path)
    assert list(count.findings) == ["took too long"] and len(list(tmp_path.iterdir())) == 1


def test_cases_repeat(fuzzer):
    for make in fuzzer.READERS.values():
        first, again, other = ([fuzzer.case_of(make(), seed, n) for n in range(12)] for seed in (3, 3, 4))
        assert first == again != other


def test_the_readers_take_or_refuse_a_few_hundred_cases(fuzzer, capsys, tmp_path):
    code = fuzzer.main(["--cases", "80", "--seed", "5", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    for reader in ("options", "meta", "images", "checkpoints"):
        assert f"{reader:<12} {80:>8} cases" in printed
    assert not any(tmp_path.iterdir())
