"""What compiled libraries print on standard error, kept off the user's screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Sends to nowhere what anything in this process writes to standard error, compiled code included."""
    with ExitStack() as undo:
        with suppress(OSError, ValueError):  # standard error may be closed
            sys.stderr.flush()
            kept = os.dup(2)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield
