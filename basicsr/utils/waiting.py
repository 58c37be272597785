"""How threads wait for each other. OpenMP reads it once, when PyTorch is imported: so nothing is imported here."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# Threads that spin while they wait slow small networks several times where other programs use the processor.
VARIABLES = {"OMP_WAIT_POLICY": "PASSIVE"}


def sleep_while_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets the threads of this process, and of those that it starts, sleep while they wait for each other.

    For commands, before they import PyTorch; a program that uses the package as a library decides for itself. What
    the user has set stays.
    """
    for name, value in VARIABLES.items():
        environment.setdefault(name, value)
