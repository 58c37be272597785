"""Programs that a script runs as processes of their own, and what becomes of them when the script is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from basicsr.utils.errors import DataError, MachineError, UserError
from basicsr.utils.process_settings import STOP_SIGNALS, is_ignored, shorten_spinning

ENVIRONMENT = dict(os.environ)
shorten_spinning(ENVIRONMENT)

# A program's beginning that has Linux send it SIGTERM at its parent's death (PR_SET_PDEATHSIG, 1), which stays in
# force for what it then becomes. subprocess could do so between fork and exec, but not safely beside PyTorch's threads.
_ENDS_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class Stopped(Exception):
    """The user asked for it."""


class StepFailed(UserError):
    """A command of a step failed, and has said why."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Programs:
    """Python programs, run within a `with` block, to which this process's signals are handed.

    The first signal asks each of them to stop, once, which train.py answers by saving its state; a second one kills
    them.

    Attributes:
        received: the signals that came.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Programs:
        for number in STOP_SIGNALS:
            if not is_ignored(number):
                self._previous[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def start(
        self,
        arguments: Sequence[str],
        *,
        lock: int,
        environment: Mapping[str, str] = ENVIRONMENT,
        output: IO[bytes] | None = None,
        ends_with_us: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Starts a program.

        Args:
            arguments: the program and its arguments.
            lock: file descriptor whose lock lasts while the program runs, even if this process is killed.
            environment: its variables.
            output: where both its outputs go; to those of this process where None.
            ends_with_us: send it SIGTERM when this process is killed, where the system can (Linux).
        """
        tie = ["-c", _ENDS_WITH_PARENT] if ends_with_us and sys.platform == "linux" else []
        # In a session of its own the program gets no Ctrl+C from the terminal, only what is passed on.
        process = subprocess.Popen(
            [sys.executable, *tie, *arguments],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
            pass_fds=[lock],
        )
        self._started.append(process)
        if self.received:
            process.terminate()
        return process

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        for process in self._started:
            if process.poll() is None:
                process.terminate() if len(self.received) == 1 else process.kill()


@contextmanager
def exclusive(file: Path, busy: str) -> Iterator[int]:
    """Holds the lock of a file, by its descriptor.

    Args:
        file: made if it is not there, with its folder.
        busy: what to say where somebody else holds it.

    Raises:
        MachineError: somebody else holds it.
        DataError: nothing can be written here.
    """
    lock = take_lock(file)
    if lock is None:
        raise MachineError(busy)
    try:
        yield lock
    finally:
        os.close(lock)


def take_lock(file: Path) -> int | None:
    """A descriptor that holds the file's lock until it and all copies in other processes are closed; None if held.

    Raises:
        DataError: the file cannot be written.
    """
    if sys.platform == "win32":
        raise MachineError("trainings of a study cannot be started on Windows; use WSL")
    import fcntl

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_CREAT | os.O_WRONLY, 0o644)
    except OSError as error:
        raise DataError(f"cannot write to {file.absolute().parent}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:
        os.close(lock)
        raise DataError(f"cannot lock {file}: {error.strerror}; put its folder on a disk that knows locks") from error
    return lock
