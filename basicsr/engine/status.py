"""experiments/NAME/status.json: how a run stands, for schedulers and for those who look after many runs.

    {"state": "preempted", "exit_code": 75, "message": "preempted: saved 37.state; go on with --auto_resume",
     "name": "edsr", "iteration": 37, "reached": 37, "total_iter": 1000, "checkpoint": "37.state", "ranks": 2,
     "host": "node3", "pid": 4711, "launch": "...", "started": "2025-01-31T09:30:00Z", "updated": "..."}

`iteration` is that of the newest checkpoint or of the end, `reached` what a process has come to, within seconds.
`state` is 'starting', 'running', 'finished', 'preempted' (it was asked to stop and has saved), or 'failed'. A process
that was killed writes nothing more: then it stays 'running', with a `pid` that is not there any more.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from basicsr.config.schema import Options
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.process.rank_watchdog import LostRanks, start_of
from basicsr.files.atomic_files import write_atomically
from basicsr.files.regular_files import read_regular
from basicsr.utils.errors import CheckpointError, Interrupted, Preempted, UserError

STATUS = "status.json"
_TICK_SECONDS = 5.0


class RunStatus:
    """Writes the status of a run on rank 0, and does nothing on others."""

    def __init__(self, options: Options, rank_info: RankInfo) -> None:
        self._path = options.experiment_folder / STATUS
        self._writes, self._begun = rank_info.is_master, False
        self._ticked = time.monotonic()
        begun = {"state": "starting", "exit_code": None, "message": "", "name": options.name}
        reached = {"iteration": 0, "reached": 0, "total_iter": options.train.total_iter, "checkpoint": None}
        process = {"ranks": rank_info.world_size, "host": socket.gethostname(), "pid": os.getpid()}
        self._content: dict[str, Any] = begun | reached | process | {"launch": launch(), "started": _now()}

    def begin(self, resume: Checkpoint | None) -> None:
        """Makes the file this run's: at once if it resumes, else once it can run, since it may be another run's."""
        if resume is not None and CheckpointFolder(self._path.parent).holds(resume):
            self._begun = True
            self.update(iteration=resume.iteration, checkpoint=resume.path.name)

    def update(self, **changes: Any) -> None:
        """Changes entries and writes the file, if the run's folder is there; a full disk raises nothing here."""
        self._content.update(changes)
        self._begun = self._begun or self._content["state"] == "running"
        if self._begun and self._writes and self._path.parent.is_dir():
            content = json.dumps({**self._content, "updated": _now()}, indent=1).encode()
            try:
                write_atomically(self._path, lambda file: file.write(content))
            except (CheckpointError, OSError):  # a full disk may have room in the file itself
                with suppress(OSError), open(self._path, "r+b") as file:
                    file.write(content)
                    file.truncate()

    def tick(self, iteration: int) -> None:
        """Writes how far the run is, every few seconds at most; `iteration` stays that of the checkpoint."""
        if time.monotonic() - self._ticked >= _TICK_SECONDS:
            self._ticked = time.monotonic()
            self.update(reached=iteration)

    def saved(self, iteration: int) -> None:
        """Notes a checkpoint."""
        self.update(state="running", iteration=iteration, checkpoint=f"{iteration}.state")

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Notes how the block ends."""
        try:
            yield
        except BaseException as error:
            self.ended(error)
            raise
        self.update(state="finished", exit_code=0, message="")

    def ended(self, error: BaseException) -> None:
        """Writes that the run ends with an error; another rank does if rank 0 is lost."""
        self._writes = self._writes or (isinstance(error, LostRanks) and error.master)
        interrupted = isinstance(error, KeyboardInterrupt)
        code = error.exit_code if isinstance(error, UserError) else Interrupted.exit_code if interrupted else 1
        state = "preempted" if isinstance(error, Preempted) else "failed"
        lines = ["interrupted"] if interrupted else str(error).splitlines()
        self.update(state=state, exit_code=code, message=lines[0][:500] if lines else type(error).__name__)


def launch() -> str:
    """Identifies the launch by one torchrun agent, the same for restarted processes; '' without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    parent = os.getppid()  # torchrun's agent, which starts workers anew
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {parent} {start_of(parent)}"


def launched_by_us(folder: Path) -> bool:
    """Whether the run in `folder` was started by the launch that this process belongs to.

    Raises:
        CheckpointError: its status is there and cannot be read: the run might be ours, and must not begin anew.
    """
    if not launch() or not os.path.lexists(folder / STATUS):
        return False
    try:
        return bool(json.loads(read_regular(folder / STATUS))["launch"] == launch())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"cannot read {folder / STATUS} ({error}), so whether to go on"
        raise CheckpointError(f"{problem}; remove it and start with --auto_resume, or begin anew") from error


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
