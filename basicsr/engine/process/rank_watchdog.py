"""Notices that another rank has ended, stands still or waits in vain, says which one, and ends this one."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from basicsr.engine.process.heartbeats import Heartbeats, MainThread
from basicsr.engine.process.meeting import Meeting, RankFailure
from basicsr.utils.errors import Interrupted, LostRankError, Preempted, UserError

_UNKNOWN = "unknown"
_POLL_SECONDS = 1.0
_STOPPED = (Preempted.exit_code, Interrupted.exit_code)
_GRACE_SECONDS = 10.0  # within which a rank ends by itself when it finds another one gone
_LOST = re.compile(r"gloo|nccl|by peer", re.IGNORECASE)
_RESUME = "this one cannot go on without; resume with --auto_resume"
_NOT_LOST = "in DataLoader worker process"  # whatever the traceback of a data worker says


class Process(NamedTuple):
    """The process of a rank. Its number is valid in `space`; `started` distinguishes it from a later one."""

    host: str
    space: str
    pid: int
    started: str


class LostRanks(LostRankError):
    """Ranks have ended, or give no sign of life; `master` if rank 0 is among them."""

    master = False


class RankWatchdog:
    """Ends this rank if another one ends, even during a collective that would wait for it for long.

    If torchrun itself is killed, the run is asked to stop, as by SIGTERM.

    Args:
        meeting: of the ranks, which have joined.
        processes: of the ranks, in their order.
        seconds: after which a rank without a heartbeat is given up.
    """

    def __init__(self, meeting: Meeting, processes: Sequence[Process], seconds: float) -> None:
        self._meeting, self._processes = meeting, processes
        self._rank = meeting.launched.rank
        mine = processes[self._rank]
        self._near = {rank: one for rank, one in enumerate(processes) if rank != self._rank and one.space == mine.space}
        self._main = MainThread()
        self._beats = Heartbeats(meeting, seconds, self._main) if len(processes) > 1 else None
        self.note: Callable[[UserError], None] = lambda error: None
        self.others_may_end = threading.Event()
        self._store_is_there, self._held_up, self._passes = True, 0.0, 0
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="rank watchdog", daemon=True).start()

    def leave(self, error: BaseException | None = None) -> None:
        """Ends the watchdog, and reports to the other ranks that this one has ended as it should, or why not."""
        self._meeting.leave(error)  # watched: a store that does not answer would hold it up
        self._over.set()
        if self._beats is not None:
            self._beats.close()
        self._main.close()

    def _watch(self) -> None:
        found_since: float | None = None
        launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        while not self._over.wait(_POLL_SECONDS):
            if launcher is not None and os.getppid() != launcher:
                launcher, self._store_is_there = None, False  # it goes with torchrun
                os.kill(os.getpid(), signal.SIGTERM)
            if self.others_may_end.is_set():
                continue
            if (silence := self._silence()) is not None:
                self._end(silence)
            error = self.reported(ask=False) or (self._lost(gone, "ended") if (gone := self._gone()) else None)
            found_since = None if error is None else found_since or time.monotonic()
            if error is not None and found_since is not None and time.monotonic() - found_since > _GRACE_SECONDS:
                self._end(error)

    def _end(self, error: UserError) -> None:
        self.note(error)
        if not error.printed_elsewhere:
            print(f"[rank {self._rank}] error: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    def _silence(self) -> LostRanks | None:
        """The error if ranks live but do not answer."""
        beats = self._beats
        if beats is None or not self._store_is_there:
            return None
        self._held_up = 0.0 if beats.passes != self._passes else self._held_up + _POLL_SECONDS
        self._passes = beats.passes
        silent = beats.silent or ([0] if self._rank != 0 and self._held_up >= beats.limit() else [])
        if silent:
            return self._lost(silent, f"gave no sign of life for {beats.limit():g} s")
        return LostRanks(f"asked to stop, but the ranks wait for each other; {_RESUME}") if beats.stuck else None

    def _gone(self) -> list[int]:
        """Ranks of this machine whose processes have ended without leaving."""
        gone = [rank for rank, one in self._near.items() if start_of(one.pid) not in (one.started, _UNKNOWN)]
        if self._beats is None:
            return gone
        self._beats.suspects = gone
        return [rank for rank in gone if rank not in self._beats.left]

    def cause_of(self, error: RuntimeError) -> UserError:
        """Why a collective failed; waits a little, as a connection may close a moment before its process is gone."""
        for _ in range(20):
            if gone := self._gone():
                break
            time.sleep(0.1)
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        return self.reported() or self._lost(gone, "ended", f" ({reason})")

    def reported(self, ask: bool = True) -> UserError | None:
        """What another rank has reported as its end; with `ask` the store is asked too, if it answers."""
        failure = self._beats.failure if self._beats is not None else None
        if failure is None and ask and self._store_is_there and self._held_up <= _POLL_SECONDS:
            with suppress(RuntimeError):
                failure = self._meeting.failure()
        return None if failure is None else _as_error(failure)

    def _lost(self, ranks: Sequence[int], what: str, reason: str = "") -> LostRanks:
        named = [(rank, self._processes[rank]) for rank in ranks]
        who = " and ".join(f"rank {rank} (process {one.pid} on {one.host})" for rank, one in named)
        error = LostRanks(f"{f'{who} {what}' if who else 'another rank ended or cannot be reached'}; {_RESUME}{reason}")
        error.master = 0 in ranks
        return error


@contextmanager
def following(
    watchdog: RankWatchdog | None, note: Callable[[UserError], None] = lambda error: None
) -> Iterator[threading.Event]:
    """Within the block, an error that only follows from another rank's is replaced by that one.

    Args:
        watchdog: None for a single process.
        note: called with the error if the process has to end at once.

    Yields:
        An event to set when other ranks may end before this one.

    Raises:
        UserError: what another rank reports as its end.
        LostRankError: a collective failed because another rank cannot be reached.
    """
    if watchdog is None:
        yield threading.Event()
        return
    watchdog.note = note
    try:
        yield watchdog.others_may_end
    except (Preempted, Interrupted, KeyboardInterrupt) as error:
        cause = watchdog.reported()  # torchrun stops all when one has ended
        if cause is not None and cause.exit_code not in _STOPPED:
            raise cause from error
        raise
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and (not _LOST.search(str(error)) or _NOT_LOST in str(error)):
            raise
        raise watchdog.cause_of(error) from error


def this_process() -> Process:
    """This process; its space is its own where processes cannot know whether they see each other."""
    pid, host = os.getpid(), socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        space = f"{host} {pid}"
    return Process(host, space, pid, start_of(pid))


def _as_error(failure: RankFailure) -> UserError:
    error = UserError(f"[rank {failure.rank}] {failure.message}")
    error.exit_code = failure.exit_code
    error.known_to_all = True
    error.printed_elsewhere = failure.exit_code not in _STOPPED  # ranks that were stopped print nothing
    return error


def start_of(pid: int) -> str:
    """When a process started, in the kernel's count; '' if it has ended, also if its parent has not noticed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:  # such as too many open files
        return _UNKNOWN
    return "" if fields[0] in "ZX" else fields[19]
