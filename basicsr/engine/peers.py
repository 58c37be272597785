"""Noticing that another rank has ended: which one it was, and not to wait for it."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from basicsr.utils.dist_util import gather_objects, get_dist_info
from basicsr.utils.errors import LostRankError

UNKNOWN = "unknown"
_POLL_SECONDS = 1.0
_GRACE_SECONDS = 10.0  # within which a rank ends by itself when it finds another one gone
_LOST = re.compile(r"gloo|nccl|by peer", re.IGNORECASE)
_NOT_LOST = "in DataLoader worker process"  # whatever the traceback of a data worker says


class _Process(NamedTuple):
    """Which process a rank is; `space` is where its number means something, `started` tells it from a later one."""

    rank: int
    host: str
    space: str
    pid: int
    started: str


class Peers:
    """The processes of a run's ranks. Made on all ranks at once.

    Those on other machines, or in other containers, cannot be looked at: of them nothing is said.
    """

    def __init__(self) -> None:
        me = _myself(get_dist_info()[0])
        self._others = [one for one in gather_objects(me) if one.rank != me.rank and one.space == me.space]

    def gone(self) -> list[_Process]:
        """Those that have ended."""
        return [one for one in self._others if started(one.pid) not in (one.started, UNKNOWN)]


class LostRanks(LostRankError):
    """Ranks of this machine, or some that are not known, have ended.

    Attributes:
        master: whether rank 0 is among them.
    """

    master = False


@contextmanager
def watched(peers: Peers, note: Callable[[LostRanks], None]) -> Iterator[threading.Event]:
    """Within the block, a rank that ends makes this one end too, even where a collective would wait for it for long.

    Where torchrun itself has been killed, the run is asked to stop, as by SIGTERM.

    Args:
        peers: the other ranks.
        note: called with the error where the process ends at once.

    Yields:
        What to set when other ranks may end before this one.

    Raises:
        LostRankError: a collective failed because another rank cannot be reached.
    """
    over = threading.Event()
    if get_dist_info()[1] == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield over
        return
    thread = threading.Thread(target=_watch, args=(peers, over, note), name="watch of ranks", daemon=True)
    thread.start()
    try:
        yield over
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and (not _LOST.search(str(error)) or _NOT_LOST in str(error)):
            raise
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise _lost(_gone_by_now(peers), f" ({reason})") from error
    finally:
        over.set()


def _watch(peers: Peers, over: threading.Event, note: Callable[[LostRanks], None]) -> None:
    missed_since: float | None = None
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
    while not over.wait(_POLL_SECONDS):
        if launcher is not None and os.getppid() != launcher:
            launcher = None
            os.kill(os.getpid(), signal.SIGTERM)
        gone = peers.gone()
        if not gone:
            missed_since = None
        elif missed_since is None:
            missed_since = time.monotonic()
        elif time.monotonic() - missed_since > _GRACE_SECONDS:
            error = _lost(gone)
            print(f"[rank {os.environ.get('RANK', '0')}] error: {error}", file=sys.stderr, flush=True)
            note(error)
            os._exit(error.exit_code)


def _gone_by_now(peers: Peers) -> list[_Process]:
    """Who has ended; the connection may be closed a moment before the process is gone."""
    for _ in range(20):
        if gone := peers.gone():
            return gone
        time.sleep(0.1)
    return []


def _lost(gone: list[_Process], reason: str = "") -> LostRanks:
    who = " and ".join(f"rank {one.rank} (process {one.pid} on {one.host})" for one in gone)
    told = f"{who} ended" if gone else "another rank ended or cannot be reached"
    error = LostRanks(f"{told}; this one cannot go on without; resume with --auto_resume{reason}")
    error.master = any(one.rank == 0 for one in gone)
    return error


def _myself(rank: int) -> _Process:
    pid = os.getpid()
    return _Process(rank, socket.gethostname(), _space(), pid, started(pid))


def _space() -> str:
    """What processes share that see each other under the same numbers; of its own where there is no way to know."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {os.getpid()}"


def started(pid: int) -> str:
    """When a process started, in the kernel's count; '' where there is none, or it has ended and nobody has looked."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:  # such as too many open files
        return UNKNOWN
    return "" if fields[0] in "ZX" else fields[19]
