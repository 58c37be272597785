"""A process that does what it is told, line by line: the end that works; `workers.py` is the other.

Of the standard library alone, since benchmarks also run it in the reference's environment. A request is a line of JSON,
{"method": NAME, "arguments": {...}}, an answer {"result": ...} or {"error": "..."}. The first request, `prepare`, names
a part and its settings; later ones are methods of what was prepared.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def memory() -> dict[str, int]:
    """Resident memory of this process, in bytes: `now`, the most it ever was, `peak`, and of now what is its `own`.

    A database that is mapped into memory counts in the first two, page by page as it is read, though the system can
    take it back at any time.

    The kernel's own count of a process begins anew when a program is started; `ru_maxrss`, taken where there is no
    such count, begins with what the process was before.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            entries = dict(line.split(":", 1) for line in file)
        names = {"now": "VmRSS", "peak": "VmHWM", "own": "RssAnon"}
        return {name: _kibibytes(entries[entry]) for name, entry in names.items()}
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"now": peak, "peak": peak, "own": peak}


def serve(parts: Mapping[str, Callable[..., Any]]) -> None:
    """Answers requests from standard input until it ends.

    Args:
        parts: by name, what `prepare` calls with the settings it is given. If it has a method `close`, that is called
            in the end.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    prepared: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        method, arguments = request["method"], request["arguments"]
        try:
            if method == "prepare":
                prepared = None  # frees the part before
                prepared = parts[arguments.pop("part")](**arguments)
                result: Any = None
            elif method == "cpu_seconds":
                result = time.process_time()
            elif method == "memory":
                result = memory()
            else:
                result = getattr(prepared, method)(**arguments)
            answer = {"result": result}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if hasattr(prepared, "close"):
        prepared.close()


def _kibibytes(text: str) -> int:
    return int(text.split()[0]) * 1024
