"""How a command starts, is asked to stop, and ends, with standard streams that may be closed, full or broken.

Imports nothing heavy, to be ready early.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from basicsr.utils.errors import CheckpointError, ForeignError, Interrupted, Preempted, UserError
from basicsr.utils.process_settings import STOP_SIGNALS, is_ignored
from basicsr.utils.text import printable_lines

_NOTHING_TO_SAVE = "stopped before it began: nothing to save"
_GRACE_SECONDS = 5.0
_CLOSED = OSError(errno.EBADF, "it is closed")
_begun = threading.Event()  # set when "stopped before it began" would be wrong


def quiet_start(signals: Sequence[signal.Signals] = (signal.SIGINT,)) -> None:
    """Lets `signals` end the program at once and without a traceback until `run_command` takes over."""
    _guard_streams()
    gc.disable()  # imports make no garbage, and looking for it takes a fifth of their time; `run_command` enables it
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else pages where another rank's store has gone
    for number in signals:
        if not is_ignored(number):
            signal.signal(number, _leave)


def run_command(main: Callable[[], int]) -> int:
    """Runs `main` and returns its exit code; a `UserError` is one line, without a traceback, and a code of its own.

    `docs/reliability.md` lists the codes: those of `basicsr.utils.errors`, 130 for Ctrl+C. Other exceptions are bugs
    and keep their traceback. If the reader of the output has gone, as `head` does, the command ends quietly, as if
    killed by SIGPIPE. If standard output is closed or full, the work is done all the same, and a line and the code of
    a file that cannot be written say that its report is lost.
    """
    import importlib.metadata  # heavy, as is traceback

    _guard_streams()
    if not gc.isenabled():
        gc.freeze()  # what was imported stays
        gc.enable()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the place of `quiet_start`
    # Where PyPI's `basicsr` is installed too, `import basicsr` elsewhere may mean either.
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version("basicsr")
        print(
            f"warning: the published basicsr {version} is installed in this environment under the same import name;"
            " remove it by `pip uninstall basicsr`",
            file=sys.stderr,
            flush=True,
        )
    try:
        code = main()
        outlet = _outlet_of(sys.stdout)
        sys.stdout.flush()
        if outlet is not None and outlet.failure is not None:
            print(f"error: cannot write standard output: {outlet.failure.strerror}", file=sys.stderr, flush=True)
            return code or CheckpointError.exit_code
        return code
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if not error.printed_elsewhere and (rank == "0" or not error.known_to_all):
            prefix = f"[rank {rank}] " if "RANK" in os.environ else ""
            label = "" if isinstance(error, (Preempted, Interrupted)) else "error: "
            print(f"{prefix}{label}{printable_lines(str(error))}", file=sys.stderr, flush=True)
        else:
            time.sleep(_GRACE_SECONDS)  # torchrun stops all when one has ended, perhaps before another has printed
        if isinstance(error, ForeignError) and error.__cause__ is not None:
            import traceback

            traceback.print_exception(error.__cause__)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return Interrupted.exit_code
    except BrokenPipeError:
        # Other pipes, as to workers, break by mistake. Windows has no `poll`.
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(1, 0)
            if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                raise
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # what is left to write goes nowhere
        return 141


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
            raise Preempted(_NOTHING_TO_SAVE)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and "RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
            if self.signal is signal.SIGINT:
                raise KeyboardInterrupt
            if self.signal is None and self._notice:
                _write(f"\n{self._notice}\n")
        self.signal = signal.Signals(number)
        if self._at_once:
            self._end_if_asked()


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


def _leave(number: int, frame: FrameType | None) -> None:
    interrupted = number == signal.SIGINT
    if os.environ.get("RANK", "0") == "0" and not _begun.is_set():  # of several ranks one is enough
        _write("interrupted\n" if interrupted else f"{_NOTHING_TO_SAVE}\n")
    os._exit(Interrupted.exit_code if interrupted else Preempted.exit_code)


def _write(text: str) -> None:
    """To standard error, which may be a terminal that is gone; `print` could be in the middle of something."""
    with suppress(OSError):
        os.write(2, text.encode())


class _Outlet(io.FileIO):
    """A standard stream that drops what cannot be written and keeps the reason; a broken pipe on stdout raises."""

    def __init__(self, descriptor: int, known: OSError | None) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._known = known
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        self.failure = self.failure or self._known
        while self.failure is None:
            try:
                written = super().write(data)
            except OSError as error:
                if isinstance(error, BrokenPipeError) and self.fileno() == 1:
                    raise
                self.failure = error
            else:
                if written is not None:
                    return written
                select.select([], [self.fileno()], [])  # somebody has made the terminal non-blocking
        return len(data)


def _guard_streams() -> None:
    """Replaces standard streams by ones that cannot fail, and opens closed descriptors on nothing."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is not None:
            number = None
            with suppress(OSError, ValueError):
                number = stream.fileno() if isinstance(stream, io.TextIOWrapper) else None
            if number != descriptor or _outlet_of(stream) is not None:
                continue
            stream.flush()
        outlet = _Outlet(descriptor, _CLOSED if stream is None else None)
        guarded = io.TextIOWrapper(
            io.BufferedWriter(outlet),  # type: ignore[type-var]
            encoding=stream.encoding if stream is not None else "utf-8",
            errors="backslashreplace",  # names of files may have letters that the terminal's encoding lacks
            line_buffering=descriptor == 2 or outlet.isatty(),
        )
        setattr(sys, name, guarded)


def _outlet_of(stream: TextIO | None) -> _Outlet | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Outlet) else None
