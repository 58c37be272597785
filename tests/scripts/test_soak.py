"""scripts/soak.py: it samples a real run, and would see one that grows."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys

import numpy as np
import pytest

from basicsr.engine.process.command import run_command

GROWING = """
import sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(b"x" * 2_000_000))
    kept.append(open("/dev/null"))
    print(flush=True)
"""


@pytest.fixture
def soak():
    return importlib.import_module("soak")


def series(soak, **rises: float):
    """40 samples of a run with noise in its memory; `rises` are added for each 1,000 iterations."""
    noise = np.random.default_rng(0).normal(0, 50_000, 40)
    still = {
        "memory": 4e8,
        "workers_memory": 1e8,
        "workers_share": 1e7,
        "files": 20,
        "threads": 4,
        "folder": 1e6,
        "checkpoints": 2,
    }
    samples = []
    for index, iteration in enumerate(range(500, 20_500, 500)):
        values = {key: int(value + rises.get(key, 0) * iteration / 1000) for key, value in still.items()}
        values["memory"] += int(noise[index])
        samples.append(soak.Sample(iteration=iteration, seconds=iteration / 100, **values))
    return samples


def test_a_short_run_leaves_a_line_for_each_sample(soak, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ["--iterations", "80", "--every", "5", "--workers", "1", "--out", str(tmp_path / "out")]
    assert soak.main([*command, "--limit", "1e12"]) == 0, (tmp_path / "out/output.txt").read_text()
    with (tmp_path / "out/soak.csv").open() as file:
        lines = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert {line["iteration"] for line in lines} <= set(range(5, 81, 5)) and len(lines) >= 14
    last = lines[-1]
    assert 1e8 < last["memory"] < 2e9 and 1e7 < last["workers_memory"] < last["memory"]
    assert 3 < last["files"] < 100 and 1 <= last["threads"] < 50 and 1 <= last["checkpoints"] <= 3
    assert "memory" in (printed := capsys.readouterr().out) and "for 1,000 iterations" in printed
    assert list((tmp_path / "out/tb_logger/soak").glob("events*"))
    assert run_command(lambda: soak.main(command)) == 2, "another run's folder is left alone"


def test_the_slope_is_that_of_numpys_fit_to_the_second_half(soak):
    generator = np.random.default_rng(1)
    iterations = np.arange(100, 6100, 100)
    values = 1e8 + 3e3 * iterations / 1000 + np.tile([-1e3, 1e3], 30) * generator.uniform(0.5, 1, 60)
    values[:30] += 1e7 * np.exp(-np.arange(30))  # what grows at first only does not count
    (rise, _), covariance = np.polyfit(iterations[30:] / 1000, values[30:], 1, cov=True)
    found = soak.slope(list(iterations), list(values))  # residuals that alternate are not correlated for its purpose
    assert (found.rise, found.error) == pytest.approx((rise, covariance[0, 0] ** 0.5), rel=1e-6)


def test_the_slopes_error_covers_memory_that_wanders(soak):
    """Of slopes of noise that wanders (correlation 0.9 at one step), few are more than three errors from 0."""
    generator = np.random.default_rng(2)
    far = 0
    for _ in range(200):
        noise = generator.normal(size=200)
        for index in range(1, 200):
            noise[index] += 0.9 * noise[index - 1]
        found = soak.slope(list(range(1000, 201_000, 1000)), list(noise))
        far += abs(found.rise) > 3 * found.error
    assert far <= 30  # with errors for independent residuals, most are


def test_a_run_that_does_not_grow_passes(soak):
    lines, sound = soak.verdict(series(soak, folder=1e6, workers_share=1e5), soak.LIMIT)
    assert sound and not any("GROWS" in line for line in lines)


@pytest.mark.parametrize(
    ("what", "rise"), [("memory", 100_000), ("workers_memory", 70_000), ("files", 1), ("threads", 0.5)]
)
def test_a_leak_would_be_seen(soak, what, rise):
    lines, sound = soak.verdict(series(soak, **{what: rise}), soak.LIMIT)
    assert not sound
    assert [line.split()[0] for line in lines if "GROWS" in line] == [what]


def test_a_process_that_keeps_memory_and_files_is_seen_to(soak, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        watched = soak.Watched(process, tmp_path)
        samples = []
        for iteration in range(1, 17):
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
            samples.append(watched.sample(iteration))
        process.kill()
    memory, files = (
        soak.slope([sample.iteration for sample in samples], [getattr(sample, name) for sample in samples])
        for name in ("memory", "files")
    )
    assert memory.rise == pytest.approx(2e9, rel=0.05) and files.rise == pytest.approx(1000)
