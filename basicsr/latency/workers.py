"""Processes that work for this one: started, asked in turn, ended."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from typing_extensions import Self

from basicsr.utils.errors import ForeignError, MachineError


class Worker:
    """A process that has one part prepared.

    Args:
        command: program and arguments of the process, which calls `serving.serve`.
        part: name of what to prepare.
        settings: of the part.
        variables: of the process's environment.

    Raises:
        MachineError: the program cannot be started.
        ForeignError: it failed to prepare the part.
    """

    def __init__(
        self, command: Sequence[str], part: str, settings: Mapping[str, Any], variables: Mapping[str, str]
    ) -> None:
        self._part = part
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=tempfile.gettempdir(),  # where no package lies that an import might take for another
                env=dict(variables),
                text=True,
            )
        except OSError as error:
            raise MachineError(f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            self.ask("prepare", part=part, **settings)
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, **arguments: Any) -> Any:
        """Has a method of the part run and returns its result.

        Raises:
            ForeignError: it raised an error, or the process is gone; with what it said last.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise ForeignError(f"{self._part}: the process has ended ({self._said_last()})")
        content = json.loads(answer)
        if "error" in content:
            raise ForeignError(f"{self._part}: {method}: {content['error']}")
        return content["result"]

    def idle_share(self, seconds: float = 1.0) -> float:
        """Which share of a core the process takes while nothing is asked of it."""
        before = self.ask("cpu_seconds")
        time.sleep(seconds)
        return float((self.ask("cpu_seconds") - before) / seconds)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _said_last(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "without a word"


def environment(threads: int) -> dict[str, str]:
    """Variables of a process that may compute on so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads))}
