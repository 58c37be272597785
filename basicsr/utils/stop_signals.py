"""The signals that ask a program to stop."""

from __future__ import annotations

import signal

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU", "SIGBREAK")

STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name)
    for name in _NAMES
    if hasattr(signal, name)  # Windows lacks some, others lack SIGBREAK
)
"""Ctrl+C, a scheduler's or `kill`'s request, a terminal that is closed, and a processor time limit that is reached."""


def is_ignored(number: signal.Signals) -> bool:
    """Whether whoever started the process has it ignored: by `nohup`, or in the background of a shell."""
    return signal.getsignal(number) is signal.SIG_IGN
