"""Stopping on a signal: between iterations, after a checkpoint. Imports nothing heavy, to be ready early."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

from basicsr.utils.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(UserError):
    """The run was asked to stop; it has saved its state and can be resumed."""

    exit_code = 75
    known_to_all = True


class Interrupted(UserError):
    """A command without a state to save was asked to stop."""

    exit_code = 130


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGUSR1 within a `with` block.

    A second SIGINT interrupts at once, but for processes under torchrun or srun: these hand on what may have reached
    the process itself too.

    Args:
        notice: what Ctrl+C is answered with, on standard error; nothing if empty.
    """

    def __init__(self, notice: str = "") -> None:
        self.signal: signal.Signals | None = None
        self._notice = notice
        self._previous: dict[signal.Signals, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                break  # signals can be caught in the main thread only; elsewhere they keep their meaning
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        launched = "RANK" in os.environ or "SLURM_PROCID" in os.environ
        if self.signal is signal.SIGINT and number == signal.SIGINT and not launched:
            raise KeyboardInterrupt
        if number == signal.SIGINT and self.signal is None and self._notice and not launched:
            os.write(2, f"\n{self._notice}\n".encode())  # print could be in the middle of something
        self.signal = signal.Signals(number)


def quiet_start() -> None:
    """Until the program is ready, lets Ctrl+C end it at once and without a traceback."""
    signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(Interrupted.exit_code)
