"""Notices that another rank has ended, stands still or waits in vain, says which one, and ends this one.

Ranks of one machine see each other's processes. All ranks give heartbeats over the store, from a thread of their own.
"""

from __future__ import annotations

import json
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

from basicsr.engine.process.meeting import Meeting, RankFailure
from basicsr.utils.errors import Interrupted, LostRankError, Preempted, UserError
from basicsr.utils.process_settings import STOP_SIGNALS

_UNKNOWN = "unknown"
_SECONDS = 1.0  # between heartbeats, and between looks at other ranks
_ASKED_SILENT, _ASKED_STUCK = 10.0, 20.0  # torchrun and SLURM kill 30 s after they have asked
_GRACE_SECONDS = 10.0  # within which a rank ends by itself when it finds another one gone
_IDLE = 0.2  # of a core, below which a process waits
_COLLECTIVES = tuple(
    map(os.path.normpath, ("torch/distributed", "engine/process/distributed.py", "utils/dist_util.py"))
)
_BACKWARD = os.path.normpath("torch/autograd")
_STOPPED = (Preempted.exit_code, Interrupted.exit_code)
_LOST = re.compile(r"gloo|nccl|by peer", re.IGNORECASE)
_NOT_LOST = "in DataLoader worker process"  # whatever the traceback of a data worker says
_RESUME = "this one cannot go on without; resume with --auto_resume"


class Process(NamedTuple):
    """The process of a rank. Its number is valid in `space`; `started` distinguishes it from a later one."""

    host: str
    space: str
    pid: int
    started: str


class LostRanks(LostRankError):
    """Ranks have ended, or give no sign of life; `master` if rank 0 is among them."""

    master = False


class MainThread:
    """Tells other threads whether the thread that made it waits for other ranks, or was asked to stop."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._position: tuple[int, int] = (0, 0)
        self._since = self._looked = time.monotonic()
        self._used = time.process_time()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._asked = False
        self._previous: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

    @property
    def asked(self) -> bool:
        """Whether a signal has asked this process to stop."""
        with suppress(BlockingIOError):
            self._asked = self._asked or any(number in STOP_SIGNALS for number in os.read(self._reading, 4096))
        return self._asked

    def waited(self) -> float:
        """Seconds for which the thread has been waiting for others; to be called about every second."""
        now, used = time.monotonic(), time.process_time()
        idle = used - self._used < _IDLE * (now - self._looked)
        self._looked, self._used = now, used
        frame = sys._current_frames().get(self._thread)
        position = (id(frame), frame.f_lasti if frame is not None else 0)
        file = frame.f_code.co_filename if frame is not None else ""
        waits = any(part in file for part in _COLLECTIVES) or (idle and _BACKWARD in file)
        if position != self._position or not waits:
            self._position, self._since = position, now
        return now - self._since

    def close(self) -> None:
        """Restores signals; to be called in the thread that made it."""
        if self._previous is not None:
            signal.set_wakeup_fd(self._previous)
        os.close(self._reading)
        os.close(self._writing)


class Heartbeats:
    """Gives heartbeats and listens for others': rank 0 for those of all, the others for rank 0's.

    Time counts only while this process runs: one that was stopped for a while does not take the others for dead.
    """

    def __init__(self, meeting: Meeting, seconds: float, main: MainThread) -> None:
        self._meeting, self._seconds, self._main = meeting, seconds, main
        self._rank, size = meeting.launched.rank, meeting.launched.world_size
        self._followed = list(range(1, size)) if self._rank == 0 else [0]
        self._ages = dict.fromkeys(self._followed, 0.0)
        self._heard: dict[int, bytes] = {}
        self._looked = time.monotonic()
        self._store = meeting.connect()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
        self.passes = 0  # how many times the store has answered
        self.suspects: list[int] = []  # ranks whose processes have gone, to be looked for in the store
        self.left: set[int] = set()  # ranks that have reported that they end
        self.silent: list[int] = []  # ranks that are given up, after `seconds` without a heartbeat
        self.stuck = False  # whether all wait for each other although one was asked to stop
        self.failure: RankFailure | None = None  # what another rank ended with, if it has reported
        self._thread.start()

    def limit(self, asked: bool | None = None) -> float:
        """Seconds of silence after which a rank is given up now; fewer if this one, or any (`asked`), is to stop."""
        asked = self._main.asked if asked is None else asked
        return min(self._seconds, _ASKED_SILENT) if asked else self._seconds

    def close(self) -> None:
        """Ends the thread, which a store that does not answer may hold up."""
        self._over.set()
        self._thread.join(2 * _SECONDS)

    def _run(self) -> None:
        number = 0
        with suppress(RuntimeError):  # the store is gone: then `passes` stands still
            while not self._over.is_set():
                number += 1
                mine = [number, round(self._main.waited()), int(self._main.asked)]
                self._store.set(f"beat/{self._rank}", json.dumps(mine))
                self._listen(mine)
                self.failure = self.failure or self._meeting.failure(self._store)
                self.passes += 1
                self._over.wait(_SECONDS)

    def _listen(self, mine: Sequence[int]) -> None:
        heard = self._store.multi_get([f"beat/{rank}" for rank in self._followed])
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * _SECONDS), now
        beats = dict(zip(self._followed, heard, strict=True))
        for rank, beat in beats.items():
            self._ages[rank] = 0.0 if beat != self._heard.get(rank) else self._ages[rank] + passed
        self._heard = beats
        suspects = {*self.suspects, *(rank for rank, age in self._ages.items() if age > 2 * _SECONDS)}
        self.left.update(rank for rank in suspects if self._store.check([f"left/{rank}"]))
        others = {rank: json.loads(beat) for rank, beat in beats.items() if rank not in self.left}
        asked = bool(mine[2]) or any(beat[2] for beat in others.values())
        limit = self.limit(asked)
        self.silent = self.silent or [rank for rank in others if self._ages[rank] >= limit]
        if self._rank != 0:
            verdict = json.loads(self._store.get("verdict"))
            self.silent, self.stuck = self.silent or verdict["silent"], verdict["stuck"]
        elif others:
            self.stuck = asked and min(mine[1], *(beat[1] for beat in others.values())) >= _ASKED_STUCK
            if self.silent or self.stuck:
                self._store.set("verdict", json.dumps({"silent": self.silent, "stuck": self.stuck}))


class RankWatchdog:
    """Ends this rank if another one ends, even during a collective that would wait for it for long.

    If torchrun itself is killed, the run is asked to stop, as by SIGTERM. `processes` are those of all ranks, which
    have joined; a rank without a heartbeat for `seconds` is given up.
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
        while not self._over.wait(_SECONDS):
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
        self._held_up = 0.0 if beats.passes != self._passes else self._held_up + _SECONDS
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
        if failure is None and ask and self._store_is_there and self._held_up <= _SECONDS:
            with suppress(RuntimeError):
                failure = self._meeting.failure()
        if failure is None:
            return None
        error = UserError(f"[rank {failure.rank}] {failure.message}")
        error.exit_code = failure.exit_code
        error.known_to_all = True
        error.printed_elsewhere = failure.exit_code not in _STOPPED  # ranks that were stopped print nothing
        return error

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
    """Within the block, an error that only follows from another rank's is replaced by that one, or a LostRankError.

    `note` is called with the error if the process has to end at once. Yields an event to set when other ranks may end
    before this one.
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


def start_of(pid: int) -> str:
    """When a process started, in the kernel's count; '' if it has ended, also if its parent has not noticed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    except OSError:  # such as too many open files
        return _UNKNOWN
    return "" if fields[0] in "ZX" else fields[19]
