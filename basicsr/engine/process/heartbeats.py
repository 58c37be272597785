"""Heartbeats that the ranks give each other over the store, also between machines, from a thread of their own."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from basicsr.engine.process.meeting import Meeting, RankFailure
from basicsr.utils.process_settings import STOP_SIGNALS

_SECONDS = 1.0  # between heartbeats
_ASKED_SILENT, _ASKED_STUCK = 10.0, 20.0  # torchrun and SLURM kill 30 s after they have asked
_COLLECTIVES = tuple(
    map(os.path.normpath, ("torch/distributed", "engine/process/distributed.py", "utils/dist_util.py"))
)
_BACKWARD = os.path.normpath("torch/autograd")
_IDLE = 0.2  # of a core, below which a process waits


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
        if position != self._position or not _waits(frame, idle):
            self._position, self._since = position, now
        return now - self._since

    def close(self) -> None:
        """Restores signals; to be called in the thread that made it."""
        if self._previous is not None:
            signal.set_wakeup_fd(self._previous)
        os.close(self._reading)
        os.close(self._writing)


def _waits(frame: FrameType | None, idle: bool) -> bool:
    file = frame.f_code.co_filename if frame is not None else ""
    return any(part in file for part in _COLLECTIVES) or (idle and _BACKWARD in file)


class Heartbeats:
    """Gives heartbeats and listens for others': rank 0 for those of all, the others for rank 0's.

    Time counts only while this process runs: one that was stopped for a while does not take the others for dead.
    A rank is given up after `seconds` without a heartbeat. `main` is the thread that trains.

    Attributes:
        passes: how many times the store has answered.
        suspects: ranks whose processes have gone, to be looked for in the store.
        left: ranks that have reported that they end.
        silent: ranks that are given up.
        stuck: whether all wait for each other although one was asked to stop.
        failure: what another rank ended with, if it has reported.
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
        self.passes = 0
        self.suspects: list[int] = []
        self.left: set[int] = set()
        self.silent: list[int] = []
        self.stuck = False
        self.failure: RankFailure | None = None
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
