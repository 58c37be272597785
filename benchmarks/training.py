"""Real runs of `basicsr/train.py`, and what they tell of themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from basicsr.latency.workers import environment
from basicsr.utils.errors import ForeignError
from benchmarks.options import ROOT

TRAIN = str(ROOT / "basicsr/train.py")


def write_options(folder: Path, options: dict[str, Any]) -> Path:
    """Writes options as a file in `folder`, which also becomes the root of the run's experiments."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "options.yml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def command(options: Path, ranks: int = 1) -> list[str]:
    """What starts a run, under torchrun where there are several ranks."""
    if ranks == 1:
        return [sys.executable, TRAIN, "-opt", str(options)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, TRAIN, "-opt", str(options), "--launcher", "pytorch"]


def variables(folder: Path, threads: int) -> dict[str, str]:
    """A run's environment: so many threads, and notes about images of its own, as if it were the first one here."""
    return {**environment(threads), "BASICSR_CACHE": str(folder / "cache")}


def train(options: Path, threads: int, ranks: int = 1, program: Sequence[str] | None = None) -> None:
    """Runs training to its end.

    Args:
        options: file of the options; the run lives in its folder.
        threads: of each rank.
        ranks: processes.
        program: what to start instead of train.py.

    Raises:
        ForeignError: it failed; with what it said last.
    """
    started = subprocess.run(
        program or command(options, ranks),
        cwd=options.parent,
        env=variables(options.parent, threads),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if started.returncode:
        lines = [line for line in started.stdout.splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "without a word")
        raise ForeignError(f"train.py ended with code {started.returncode}: {told[:400]}")


def history(options: Path, name: str) -> list[dict[str, Any]]:
    """What a run wrote of its figures, a dict for each log line."""
    path = options.parent / "experiments" / name / "history.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def seconds_an_iteration(options: Path, name: str) -> list[float]:
    """Between log lines, without the first stretch, in which workers and libraries warm up."""
    lines = [entry for entry in history(options, name) if "time/iteration" in entry]
    return [float(entry["time/iteration"]) for entry in lines[1:]]


def seconds_to_first_iteration(options: Path, threads: int) -> float:
    """From the start of the program to the log line of iteration 1, after which it is ended.

    Raises:
        ForeignError: it ended before.
    """
    started = time.monotonic()
    with subprocess.Popen(
        command(options),
        cwd=options.parent,
        env=variables(options.parent, threads),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        try:
            for line in process.stdout:
                lines.append(line.strip())
                if "iter:       1," in line:
                    return time.monotonic() - started
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    raise ForeignError(f"train.py ended before its first iteration: {(lines or ['without a word'])[-1][:400]}")
