"""scripts/device_table.py: real rows of a tiny network, a process that crashes or hangs, and going on."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.networks import save_checkpoint

from basicsr.archs import build_network
from basicsr.engine.process.command import run_command
from basicsr.utils.errors import DataError

device_table = importlib.import_module("device_table")
rows = importlib.import_module("device_rows.rows")
running = importlib.import_module("device_rows.running")
child = importlib.import_module("device_rows.child")
tables = importlib.import_module("device_rows.tables")
subprocesses = importlib.import_module("subprocesses")

# Makes all rows but the third, which crashes, and the fourth, which hangs.
CHILD = """
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {scripts!r})
from device_rows.rows import Row, Rows
folder = Path(sys.argv[1])
plan = json.loads((folder / "plan.json").read_text())
for target, precision, key in plan["works"]:
    (folder / "running").write_text(key)
    if target == "crashing":
        os.kill(os.getpid(), signal.SIGSEGV)
    if target == "hanging":
        time.sleep(600)
    Rows(folder / "rows").write(Row("net", 2, target, precision, key, megabytes=1.0, difference=0.0))
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(2):
        small = generator.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        (tmp_path / "HR").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"HR/{number}.png"), cv2.resize(small, (48, 40), interpolation=cv2.INTER_CUBIC))
    return tmp_path


@pytest.fixture
def arguments(images: Path) -> list[str]:
    (images / "plain.yml").write_text("{type: PlainSR, num_feat: 4, num_conv: 1, branches: [3x3, 1x1]}\n")
    return [
        *("--students", str(images / "plain.yml"), "--scales", "2", "--targets", "ncnn", "--precisions", "float32"),
        *("--calibration", str(images / "HR"), "--validation", str(images / "HR"), "--output", str(images / "out")),
        *("--size", "16", "16", "--seconds", "0.01", "--threads", "1"),
    ]


def test_files_are_made_run_and_timed_once(arguments, images, capsys):
    pytest.importorskip("ncnn")
    assert run_command(lambda: device_table.main(arguments)) == 0
    table = json.loads((images / "out/device_table.json").read_text())
    made = {(row["student"], row["target"]): row for row in table["rows"]}
    assert list(made) == [("plain", "pytorch"), ("plain", "ncnn")]
    plain = made["plain", "ncnn"]
    assert plain["difference"] < 1e-5 and plain["latency"]["median_ms"] > 0 and plain["latency"]["runtime"] == "ncnn"
    assert plain["psnr"] == pytest.approx(made["plain", "pytorch"]["psnr"], abs=1e-3)
    assert plain["parameters"] == (3 * 9 + 1) * 4 + (4 * 9 + 1) * 4 + (4 * 9 + 1) * 12  # merged
    files = [images / "out/files" / name for name in plain["files"]]
    assert plain["megabytes"] == pytest.approx(sum(file.stat().st_size for file in files) / 1e6)
    text = (images / "out/device_table.md").read_text()
    assert "## plain" in text and "| x2 | ncnn | float32 | " in text and str(images) not in text

    # Given again, nothing is made again.
    capsys.readouterr()
    dates = {file: file.stat().st_mtime_ns for file in (images / "out/rows").iterdir()}
    latencies = (images / "out/latency.json").read_bytes()
    assert run_command(lambda: device_table.main(arguments)) == 0
    assert {file: file.stat().st_mtime_ns for file in (images / "out/rows").iterdir()} == dates
    assert (images / "out/latency.json").read_bytes() == latencies
    assert "measuring" not in capsys.readouterr().out


def test_what_a_target_cannot_take_is_a_row_with_the_reason(images):
    block = {"type": "SwinIR", "img_size": 8, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4}
    block |= {"mlp_ratio": 2, "upsampler": "pixelshuffledirect", "upscale": 2}
    file = save_checkpoint(images / "net.pth", build_network(block), block, 2)
    settings = rows.Settings(str(images / "HR"), (str(images / "HR"),), 0.1, (64, 64))
    student = rows.Student("attention", file, 2, "0", True)
    row = child.Maker(images, student, settings).made(rows.Work(student, "ncnn", "float32", "key"))
    assert "attention in windows" in row.reason and not row.files and row.parameters
    assert not (images / "files").exists()
    (line,) = [
        line
        for line in tables.as_markdown([tables.Entry(row, None)], ABOUT, {"attention": True}).splitlines()
        if line.startswith("| x2")
    ]
    assert row.reason in line and line.count("-") >= 6


ABOUT = {"size": [16, 16], "threads": 1, "device": "here", "date": "today", "versions": "none", "images": "HR"}


def runner(folder: Path, timeout: float, programs, lock: int):
    settings = rows.Settings("LR", ("HR",), 0.1, (64, 64))
    return running.Runner(folder, settings, timeout, programs, lock, lambda line: None)


def test_a_row_that_crashes_or_hangs_costs_no_other(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(scripts=str(Path(device_table.__file__).parent)))
    monkeypatch.setattr(running, "_CHILD", script)
    student = rows.Student("net", tmp_path / "net.pth", 2, "0", True)
    targets = ("first", "second", "crashing", "hanging", "last")
    works = [rows.Work(student, target, "float32", target) for target in targets]
    with subprocesses.exclusive(tmp_path / ".lock", "busy") as lock, subprocesses.Programs() as programs:
        runner(tmp_path, 4.0, programs, lock).make(works)
    reasons = [rows.Rows(tmp_path / "rows").read(work).reason for work in works]
    assert reasons == ["", "", "its process ended by SIGSEGV", "not done after 4 seconds (--timeout)", ""]
    rows.Rows(tmp_path / "rows").forget(works)
    assert sorted(os.listdir(tmp_path / "rows")) == ["first.json", "last.json", "second.json"]


def test_a_process_that_cannot_begin_is_told_with_its_last_words(tmp_path, monkeypatch):
    script = tmp_path / "child.py"
    script.write_text("raise SystemExit('no such thing')\n")
    monkeypatch.setattr(running, "_CHILD", script)
    work = rows.Work(rows.Student("net", tmp_path / "net.pth", 2, "0", True), "first", "float32", "first")
    with subprocesses.exclusive(tmp_path / ".lock", "busy") as lock, subprocesses.Programs() as programs:
        with pytest.raises(DataError, match=r"net x2: its process ended with 1 \(no such thing\)"):
            runner(tmp_path, 2.0, programs, lock).make([work])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--threads", "0"], "--threads: give numbers above 0"),
        (["--validation", "a", "b", "c"], "--validation a b c: give a folder of HR, and one of LR images"),
        (["--validation", "nowhere"], "cannot read the folder nowhere: No such file"),
        (["--students", "nothing.pth"], "nothing.pth"),
        (["--precisions", "int8", "--calibration", "EMPTY"], "EMPTY"),
    ],
)
def test_mistakes_are_told_in_a_line_before_any_work(arguments, images, capsys, given, said):
    (images / "EMPTY").mkdir()
    given = [str(images / value) if value == "EMPTY" else value for value in given]
    assert run_command(lambda: device_table.main([*arguments, *given])) not in (0, 130)
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (images / "out/rows").exists()
