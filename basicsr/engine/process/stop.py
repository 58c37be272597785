"""Stopping on a signal: between iterations, after a checkpoint. Imports nothing heavy, to be ready early."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from basicsr.engine.process.streams import guard_streams
from basicsr.utils.errors import UserError
from basicsr.utils.process_settings import STOP_SIGNALS, is_ignored

NOTHING_TO_SAVE = "stopped before it began: nothing to save"
_begun = threading.Event()  # set when "stopped before it began" would be wrong


class Preempted(UserError):
    """The run was asked to stop; it has saved its state and can be resumed."""

    exit_code = 75
    known_to_all = True


class Interrupted(UserError):
    """A command without a state to save was asked to stop."""

    exit_code = 130


class StopRequest:
    """Notes the signals of `STOP_SIGNALS` within a `with` block; those that are ignored stay so.

    A second SIGINT interrupts at once, except under torchrun or srun: these may deliver one Ctrl+C twice.
    `notice` is printed to standard error on the first Ctrl+C.
    """

    def __init__(self, notice: str = "") -> None:
        self.signal: signal.Signals | None = None
        self._notice = notice
        self._previous: dict[signal.Signals, object] = {}
        self._at_once = False

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        _begun.set()
        with suppress(ValueError):  # signals can be caught in the main thread only; elsewhere they keep their meaning
            for number in STOP_SIGNALS:
                if not is_ignored(number):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        _restore(self._previous)
        self._previous = {}

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within the block, a signal raises Preempted, or KeyboardInterrupt for SIGINT; nothing may be left to save."""
        self._at_once = True
        try:
            self._end_if_asked()
            yield
        finally:
            self._at_once = False

    def _end_if_asked(self) -> None:
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise Preempted(NOTHING_TO_SAVE)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
            if self.signal is signal.SIGINT:
                raise KeyboardInterrupt
            if self.signal is None and self._notice:
                _write(f"\n{self._notice}\n")
        self.signal = signal.Signals(number)
        if self._at_once:
            self._end_if_asked()


def quiet_start(signals: Sequence[signal.Signals] = (signal.SIGINT,)) -> None:
    """Lets `signals` end the program at once and without a traceback until `run_command` takes over."""
    guard_streams()
    gc.disable()  # imports make no garbage, and looking for it takes a fifth of their time; `run_command` enables it
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else pages where another rank's store has gone
    for number in signals:
        if not is_ignored(number):
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    interrupted = number == signal.SIGINT
    if os.environ.get("RANK", "0") == "0" and not _begun.is_set():  # of several ranks one is enough
        _write("interrupted\n" if interrupted else f"{NOTHING_TO_SAVE}\n")
    os._exit(Interrupted.exit_code if interrupted else Preempted.exit_code)


def _write(text: str) -> None:
    """To standard error, which may be a terminal that is gone; `print` could be in the middle of something."""
    with suppress(OSError):
        os.write(2, text.encode())


@contextmanager
def deadly_signals() -> Iterator[None]:
    """Within the block, a signal ends the process even while it waits in foreign code."""
    kept: dict[signal.Signals, object] = {}
    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.getsignal(number) for number in STOP_SIGNALS if not is_ignored(number)}
    for number in kept:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        _restore(kept)


def _restore(handlers: dict[signal.Signals, object]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
