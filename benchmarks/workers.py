"""Processes that work for a benchmark: what starts each side, and with how many threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr.latency import workers
from basicsr.utils.errors import MachineError

HERE = Path(__file__).resolve().parent


class Worker(workers.Worker):
    """A process of ours or the reference's that has one part prepared and computes on `threads` threads."""

    def __init__(self, command: Sequence[str], threads: int, part: str, settings: Mapping[str, Any]) -> None:
        super().__init__(command, part, settings, workers.environment(threads))


def ours_command() -> list[str]:
    """What starts our side."""
    return [sys.executable, str(HERE / "ours" / "worker.py")]


def reference_command(python: str) -> list[str]:
    """What starts the reference's side: isolated, so that our package of the same name is not found."""
    return [python, "-I", str(HERE / "reference" / "worker.py")]


def check_reference(python: str) -> str:
    """Versions of the reference's packages.

    Raises:
        MachineError: they are not there, or cannot be imported.
    """
    try:
        found = subprocess.run([*reference_command(python), "--check"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise MachineError(f"{python} cannot be started: {error.strerror}") from error
    if found.returncode:
        said = (found.stderr.strip() or found.stdout.strip()).splitlines() or ["no word"]
        raise MachineError(f"{python} cannot import basicsr 1.4.2 ({said[-1][:200]}); make it by reference/setup.sh")
    return found.stdout.strip().splitlines()[-1]
