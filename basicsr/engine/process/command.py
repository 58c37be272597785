"""How a command ends: with one line and an exit code of its own for each kind of failure."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable

from basicsr.engine.process.stop import Interrupted, Preempted
from basicsr.engine.process.streams import guard_streams, output_failure
from basicsr.utils.errors import CheckpointError, ForeignError, UserError
from basicsr.utils.text import printable_lines

_GRACE_SECONDS = 5.0


def run_command(main: Callable[[], int]) -> int:
    """Runs `main` and returns its exit code; a `UserError` is one line, without a traceback, and a code of its own.

    `docs/reliability.md` lists the codes: those of `basicsr.utils.errors`, 75 for a run that was asked to stop and has
    saved, 130 for Ctrl+C. Other exceptions are bugs and keep their traceback. If the reader of the output has gone, as
    `head` does, the command ends quietly, as if killed by SIGPIPE. If standard output is closed or full, the work is
    done all the same, and a line and the code of a file that cannot be written say that its report is lost.
    """
    guard_streams()
    if not gc.isenabled():
        gc.freeze()  # what was imported stays
        gc.enable()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the place of `quiet_start`
    _warn_of_published_package()
    try:
        code = main()
        if (failure := output_failure()) is not None:
            print(f"error: cannot write standard output: {failure.strerror}", file=sys.stderr, flush=True)
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
            traceback.print_exception(error.__cause__)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)  # what is left to write goes nowhere
        return 141


def _reader_has_gone() -> bool:
    """Whether standard output is the pipe that broke; other pipes, as to workers, break by mistake."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _warn_of_published_package() -> None:
    """Warns if PyPI's `basicsr` is installed too: `import basicsr` elsewhere may then mean either."""
    try:
        version = importlib.metadata.version("basicsr")
    except importlib.metadata.PackageNotFoundError:
        return
    print(
        f"warning: the published basicsr {version} is installed in this environment under the same import name;"
        " remove it by `pip uninstall basicsr`",
        file=sys.stderr,
        flush=True,
    )
