"""Stopping on a signal: between iterations, after a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

from basicsr.utils.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(UserError):
    """The run was asked to stop; it has saved its state and can be resumed."""

    exit_code = 75


class Interrupted(UserError):
    """A command without a state to save was asked to stop."""

    exit_code = 130


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGUSR1 within a `with` block. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
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
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
