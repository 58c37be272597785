"""Trainings of a run, each as train.py in a process of its own, which goes on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from study.execution import TRAIN, environment_for, last_error, threads_for
from study.records import outcome_of, progress_of, saved_at, weights_of
from subprocesses import Programs, StepFailed, Stopped, take_lock

from basicsr.config.load import load_options, no_warning
from basicsr.config.schema import Options, flat, thaw
from basicsr.config.yaml_files import dump_yaml
from basicsr.report.tables import write_text
from basicsr.utils.errors import CheckpointError
from compression.progress import Progress, duration
from compression.steps import Steps, key_of

_POLL_SECONDS = 0.1
_VERSION = 1  # of what a training's result depends on beside its options and inputs
_WITHOUT_EFFECT = ("logger.", "val.pbar", "path.experiments_root", "dist_params.")
_OF_LOADERS = ("num_worker_per_gpu", "num_prefetch_queue", "pin_memory", "persistent_workers", "prefetch_mode")
_HEXADECIMAL = 64  # digits of a SHA-256
_OF_THE_END = ("train.total_iter", "val.val_freq")


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        name: of its options file, without ending, and of its step.
        label: how lines speak of it.
        content: what its options file holds.
        inputs: digests of the images and weights that it reads.
        keeps: whether its weights are of use later: a brief training of the search goes on in the next rung.
    """

    name: str
    label: str
    content: Mapping[str, Any]
    inputs: Mapping[str, Any]
    keeps: bool = True

    def options(self) -> Options:
        """The content, typed."""
        return load_options(self.content, training=True, warn=no_warning)

    def made_from(self) -> dict[str, Any]:
        """What its result depends on; see `Steps`."""
        options = flat(thaw(self.options()))
        without = {key for key in options if key.startswith(_WITHOUT_EFFECT) or key.endswith(_OF_LOADERS)}
        kept = {key: value for key, value in options.items() if key not in without}
        return {"version": _VERSION, "options": plain(kept), "inputs": dict(self.inputs)}

    def course(self) -> dict[str, Any]:
        """All that decides its steps, however many of them there are."""
        made_from = self.made_from()
        options = {key: value for key, value in made_from["options"].items() if key not in _OF_THE_END}
        return {**made_from, "options": options}

    def is_of(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        """Whether `made_from` or `course` of an earlier version of the code says the same: it knew fewer options.

        Those that it did not know must not be written in the content.
        """
        if {**before, "options": None} != {**now, "options": None}:
            return False
        then, today = before["options"], now["options"]
        written = {key.rpartition(".")[2] for key in flat(self.content)}
        new = {key for key in today if key not in then and key.rpartition(".")[2] not in written}
        return bool(then == {key: value for key, value in today.items() if key not in new})

    def goes_on(self, before: str) -> bool:
        """Whether a training that began with this course, as JSON, is the same so far."""
        now = self.course()
        if len(before) == _HEXADECIMAL:  # of the first version of this command
            return before == key_of(now)
        return bool(before) and self.is_of(json.loads(before), now)


def _is_same(training: Training, now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    return training.is_of(before, now)


def plain(value: Any) -> Any:
    """Options as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


@dataclass
class _Active:
    training: Training
    options: Options
    process: subprocess.Popen[bytes]
    log: Path
    slot: int
    began_at: int
    started: float = field(default_factory=time.monotonic)


class Trainer:
    """Runs trainings.

    Args:
        steps: of the run, in whose folder options, logs and experiments lie.
        progress: where lines go.
    """

    def __init__(self, steps: Steps, progress: Progress) -> None:
        self.steps, self._progress = steps, progress

    def file(self, training: Training) -> Path:
        """A training's options file."""
        return self.steps.folder / "options" / f"{training.name}.yml"

    def weights(self, training: Training) -> Path:
        """What a finished training leaves."""
        return weights_of(training.options())

    def run(self, trainings: Sequence[Training], what: str, jobs: int = 1) -> dict[str, Mapping[str, Any]]:
        """Runs what is not done of several trainings, so many at a time, and returns their outcomes by name.

        An outcome has `values` by dataset and metric after the last iteration, and `seconds` per iteration.

        Raises:
            Stopped: a signal came; what was running has saved its state.
            StepFailed: one of them failed; the message is its own.
        """
        found: dict[str, Mapping[str, Any]] = {}
        open_ones: deque[Training] = deque()
        for training in trainings:
            made_from = training.made_from()
            kept = self.steps.kept(training.name, made_from, partial(_is_same, training, made_from))
            if kept is not None:
                found[training.name] = kept
            else:
                open_ones.append(training)
        if open_ones:
            found |= self._run(open_ones, what, jobs)
        return {training.name: found[training.name] for training in trainings}

    def _run(self, waiting: deque[Training], what: str, jobs: int) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        active: list[_Active] = []
        count, started, made = len(waiting), time.monotonic(), 0
        total = sum(training.content["train"]["total_iter"] for training in waiting)
        failure: StepFailed | None = None
        with Programs() as programs:
            while (waiting and not programs.received and failure is None) or active:
                while waiting and len(active) < jobs and not programs.received and failure is None:
                    slot = min(set(range(jobs)) - {one.slot for one in active})
                    begun = self._begin(programs, waiting[0], slot, jobs)
                    if begun is None:
                        break
                    waiting.popleft()
                    active.append(begun)
                for one in list(active):
                    code = one.process.poll()
                    if code is None:
                        continue
                    active.remove(one)
                    made_from = one.training.made_from()
                    self.steps.spend(one.training.name, made_from, time.monotonic() - one.started)
                    made += one.options.train.total_iter
                    outcome = outcome_of(one.options) if code == 0 else None
                    if outcome is not None:
                        found[one.training.name] = self._note(one.training, outcome)
                    elif not programs.received:
                        reason = last_error(one.log) or f"train.py ended with code {code}; see {one.log}"
                        failure = StepFailed(f"{one.training.label}: {reason}", code if code > 0 else 1)
                        for other in active:
                            other.process.terminate()
                self._show(active, what, count, len(found), made, total, started)
                time.sleep(_POLL_SECONDS)
        if programs.received:
            raise Stopped
        if failure is not None:
            raise failure
        return found

    def _begin(self, programs: Programs, training: Training, slot: int, jobs: int) -> _Active | None:
        """Starts a training; None while a process of a killed run still has it."""
        lock = take_lock(self.steps.folder / "locks" / f"{training.content['name']}.lock")
        if lock is None:
            self._progress.show(f"{training.label}: still training for a run that was killed; waiting for its end")
            return None
        try:
            options = training.options()
            began_at = saved_at(options)
            goes_on = training.goes_on(self.steps.course(options.name)) and options.experiment_folder.is_dir()
            goes_on = goes_on and began_at <= options.train.total_iter
            self.steps.begin(options.name, json.dumps(training.course()))
            log = self._write(training, goes_on)
            with log.open("wb") as output:
                process = programs.start(
                    [str(TRAIN), "-opt", str(self.file(training)), *(["--auto_resume"] if goes_on else [])],
                    lock=lock,
                    environment=environment_for(options, threads_for(jobs), slot),
                    output=output,
                    ends_with_us=True,
                )
        finally:
            os.close(lock)  # the training has its own
        return _Active(training, options, process, log, slot, began_at if goes_on else 0)

    def _write(self, training: Training, goes_on: bool) -> Path:
        """Writes its options file, and returns where its output goes."""
        file, log = self.file(training), self.steps.folder / "logs" / f"{training.name}.log"
        text = (
            f"# Run {self.steps.folder.name} of compress.py: {training.label}.\n"
            f"# By hand: torchrun basicsr/train.py -opt {file}{' --auto_resume' if goes_on else ''}\n"
            f"{dump_yaml(plain(training.content))}"
        )
        try:
            for folder in (file.parent, log.parent):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.steps.folder}: {error.strerror}") from error
        write_text(file, text)
        return log

    def _note(self, training: Training, outcome: Mapping[str, Any]) -> Mapping[str, Any]:
        files = [self.weights(training)] if training.keeps else []
        result = self.steps.do(training.name, training.made_from(), lambda: (outcome, files))
        figures = "; ".join(
            f"{dataset} {', '.join(f'{metric} {value:.4f}' for metric, value in values.items())}"
            for dataset, values in result["values"].items()
        )
        self._progress.say(f"  {training.label}: {figures}")
        return result

    def _show(
        self, active: Sequence[_Active], what: str, count: int, done: int, made: int, total: int, started: float
    ) -> None:
        parts, now, fresh = [], made, made
        for one in active:
            at = progress_of(one.options, one.process.pid)
            now += at
            fresh += max(0, at - one.began_at)
            parts.append(f"{one.training.label} {at}/{one.options.train.total_iter}")
        left = (total - now) * (time.monotonic() - started) / fresh if fresh else None
        eta = f", about {duration(left)} left" if left is not None else ""
        self._progress.show(f"{what} [{done}/{count}] {'; '.join(parts)}{eta}")
