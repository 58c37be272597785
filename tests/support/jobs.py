"""Real jobs under torchrun: started from a command line, found by a mark in their environment, killed, waited for."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "basicsr/train.py")
_MARK = "TEST_JOB"


class Job:
    """A command with all processes that come of it, the loader's workers too.

    They are known by a variable of their environment, which they inherit whatever group or parent they have.

    Args:
        command: as typed.
        folder: where it runs; its output goes to a file there.
        environment: further variables.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.mark = secrets.token_hex(8)
        self.output_file = folder / f"output_{self.mark}.txt"
        # Sums over several threads round otherwise than over one: runs that are compared must have equally many.
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {}), _MARK: self.mark}
        with self.output_file.open("w") as output:
            # What pytest-xdist starts may ignore Ctrl+C, as what shells start in the background does.
            self.process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kills all its processes, as a machine does that fails."""
        for number in self.processes():
            send(number, signal.SIGKILL)
        self.process.wait()

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self.output_file.read_text(errors="replace")

    def processes(self, variable: str = "") -> list[int]:
        """Numbers of all its processes that are not dead, itself included; or of those that have a variable."""
        wanted = f"{variable}=".encode()
        return [
            number
            for number in processes_of(self.mark)
            if not variable or any(entry.startswith(wanted) for entry in _environment(number))
        ]

    def ranks(self) -> dict[int, int]:
        """Process numbers of the training processes by rank, without the loader's workers."""
        found: dict[int, int] = {}
        for number in self.processes():
            variables = dict(entry.split(b"=", 1) for entry in _environment(number) if b"=" in entry)
            parent = _parent(number)
            if b"RANK" in variables and b"RANK=" + variables[b"RANK"] not in _environment(parent):
                found[int(variables[b"RANK"])] = number
        return found

    def kill_rank(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to the training process of a rank."""
        send(self.ranks()[rank], number)

    def wait(self, seconds: float = 120) -> int:
        """Its exit code; fails with its output where it does not end in time."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {seconds} s:\n{self.output[-5000:]}") from None

    def until(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        """Waits for a condition to hold and returns its value; the job must not end before."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"ended too early:\n{self.output[-5000:]}"
            assert time.monotonic() < end, f"waited {seconds} s in vain:\n{self.output[-5000:]}"
            time.sleep(0.002)
        return value


def processes_of(mark: str) -> list[int]:
    """Numbers of the processes of the job with a mark that are not dead."""
    wanted = f"{_MARK}={mark}".encode()
    return [number for number in _numbers() if wanted in _environment(number) and _is_alive(number)]


def mark_of_this_job() -> str:
    """The mark of the job to which the calling process belongs."""
    return os.environ[_MARK]


def torchrun(*options: str, processes: int = 2) -> list[str]:
    """The beginning of a command under torchrun."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", *options]


def write_options(options: dict[str, Any], folder: Path) -> str:
    """Writes an options file and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "options.yml"
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    return str(file)


def status_of(experiment: Path) -> dict[str, Any]:
    """Content of status.json."""
    content: dict[str, Any] = json.loads((experiment / "status.json").read_text())
    return content


def _numbers() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _environment(number: int) -> list[bytes]:
    """The variables that a process began with; none where it is gone or another user's."""
    try:
        return Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _stat(number: int) -> list[str]:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def _is_alive(number: int) -> bool:
    return _stat(number)[0] not in "XZ"


def _parent(number: int) -> int:
    return int(_stat(number)[1])


def send(number: int, what: int) -> None:
    """Sends a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(number, what)
