"""Runs a study's trainings, several at a time, each as train.py in a process of its own."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from subprocesses import ENVIRONMENT, Programs, StepFailed, Stopped, exclusive, take_lock

from basicsr.config.load import load_options, resolved_yaml
from basicsr.config.schema import Options
from basicsr.config.yaml_files import dump_yaml
from basicsr.engine.process.distributed import RankInfo
from basicsr.engine.startup_checks import check_fit
from basicsr.engine.training_run import TrainingRun
from basicsr.models import recognise_networks
from basicsr.report.tables import write_text
from basicsr.utils.errors import CheckpointError, OptionsError, UserError
from basicsr.utils.process_settings import num_processors
from study.plan import Run, Study, studies_folder
from study.records import (
    Record,
    State,
    initial_student,
    kept_options,
    outcome_of,
    progress_of,
    saved_at,
    state_of,
    teacher_digest,
    weights_of,
    write_record,
)

TRAIN = Path(__file__).resolve().parents[2] / "basicsr/train.py"
_POLL_SECONDS = 0.1
_PROGRESS_SECONDS = 10.0
_THREADS = "OMP_NUM_THREADS"


@dataclass
class _Active:
    """A training that is running."""

    run: Run
    number: int
    record: Record
    process: subprocess.Popen[bytes]
    log: Path
    slot: int
    began_at: int
    shown_at: float = field(default_factory=time.monotonic)


class Trainings:
    """The trainings of a study.

    Args:
        study: what to run.
        jobs: how many trainings at a time.
        changed: called with all records that count, by method and seed, whenever a run has ended.
        say: where lines of progress go.
    """

    def __init__(
        self,
        study: Study,
        jobs: int,
        changed: Callable[[Mapping[tuple[str, int], Record]], object],
        say: Callable[[str], object],
    ) -> None:
        self.study, self.jobs, self._changed, self._say = study, jobs, changed, say
        self.threads = threads_for(jobs)
        self.records: dict[tuple[str, int], Record] = {}
        self.exit_code = 0
        self._pending: deque[tuple[int, Run]] = deque()
        self._active: list[_Active] = []
        self._plain: dict[int, str] = {}
        self._waiting: set[str] = set()
        self._done_iterations, self._started = 0, time.monotonic()
        for number, run in enumerate(study.runs, 1):
            state, record = state_of(study, run)
            if state == "done":
                assert record is not None
                self.records[run.method, run.seed] = record
                self._tell(number, run, "done already")
            else:
                self._pending.append((number, run))

    def execute(self) -> None:
        """Runs what is left; a run that fails is noted, and the others go on.

        Raises:
            Stopped: a signal came; what was running has been asked to save and has ended.
        """
        self._changed(self.records)
        self._started = time.monotonic()
        with Programs() as programs:
            while (self._pending and not programs.received) or self._active:
                self._fill(programs)
                for active in list(self._active):
                    code = active.process.poll()
                    if code is not None:
                        self._active.remove(active)
                        self._end(active, code, bool(programs.received))
                self._show_progress()
                time.sleep(_POLL_SECONDS)
        if programs.received:
            raise Stopped

    def _fill(self, programs: Programs) -> None:
        while self._pending and len(self._active) < self.jobs and not programs.received:
            number, run = self._pending[0]
            lock = take_lock(self.study.folder / "records" / f"{run.method}_seed{run.seed}.lock")
            if lock is None:
                if run.label not in self._waiting:
                    self._waiting.add(run.label)
                    self._tell(number, run, "still training for a study that was killed; waiting for its end")
                return
            self._pending.popleft()
            try:
                self._begin(programs, number, run, lock)
            except UserError as error:
                self._note(number, run, Record("failed", error=_one_line(str(error))), error.exit_code)
            finally:
                os.close(lock)  # the training has its own

    def _begin(self, programs: Programs, number: int, run: Run, lock: int) -> None:
        """Starts a run, or notes that it is done: one whose script was killed may have come to its end since."""
        state, record = state_of(self.study, run)
        if state == "resume" and record is not None and (found := outcome_of(run.options)) is not None:
            self._note(number, run, replace(record, status="done", error="", **found))
            return
        if state == "start" or record is None or record.initial is None:
            state, record = "start", self._checked(run)
        record = replace(record, status="started", threads=self.threads, jobs=self.jobs, error="")
        if programs.received:
            return
        write_record(self.study, run, record)
        log = self.study.folder / "logs" / f"{run.method}_seed{run.seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        slot = min(set(range(self.jobs)) - {active.slot for active in self._active})
        began_at = saved_at(run.options) if state == "resume" else 0
        words = {"start": "starts", "resume": f"goes on after {began_at}/{run.options.train.total_iter}", "done": ""}
        self._tell(number, run, words[state])
        with log.open("wb") as output:
            process = programs.start(
                [str(TRAIN), "-opt", str(run.file), *(["--auto_resume"] if state == "resume" else [])],
                lock=lock,
                environment=environment_for(run.options, self.threads, slot),
                output=output,
                ends_with_us=True,
            )
        self._active.append(_Active(run, number, record, process, log, slot, began_at))

    def _checked(self, run: Run) -> Record:
        """Sees to it that a run starts from the student that all of its seed start from."""
        initial, owns = initial_student(run.options)
        if run.seed not in self._plain:
            plain = self.study.plain.model_copy(update={"manual_seed": run.seed})
            self._plain[run.seed], _ = initial_student(plain)
        if not owns and initial != self._plain[run.seed]:
            raise OptionsError(
                f"method {run.method} does not start from the student that the base and seed {run.seed} give: its file"
                " changes network_g or its weights, or a term changes the student; such figures cannot be compared"
            )
        return Record("started", teacher_digest(run), initial, owns)

    def _end(self, active: _Active, code: int, stopping: bool) -> None:
        run, record = active.run, active.record
        self._done_iterations += max(0, progress_of(run.options, active.process.pid) - active.began_at)
        found, error = None, ""
        if code == 0:
            error = "its history has no figures of the last iteration; remove its folder and start again"
            try:
                found = outcome_of(run.options)
            except UserError as damage:
                error = str(damage)
        if found is not None:
            self._note(active.number, run, replace(record, status="done", **found))
        elif stopping:
            self._tell(active.number, run, f"stopped after {saved_at(run.options)}/{run.options.train.total_iter}")
        else:
            error = error or last_error(active.log) or f"train.py ended with code {code}; see {active.log}"
            self._note(active.number, run, replace(record, status="failed", error=error), code if code > 0 else 1)

    def _note(self, number: int, run: Run, record: Record, exit_code: int = 0) -> None:
        self.exit_code = self.exit_code or exit_code
        self.records[run.method, run.seed] = record
        write_record(self.study, run, record)
        figures = "; ".join(
            f"{dataset} {', '.join(f'{metric} {value:.4f}' for metric, value in values.items())}"
            for dataset, values in record.values.items()
        )
        self._tell(number, run, f"failed: {record.error}" if record.status == "failed" else f"done, {figures}")
        self._changed(self.records)

    def _show_progress(self) -> None:
        now = time.monotonic()
        for active in self._active:
            if now - active.shown_at >= _PROGRESS_SECONDS:
                active.shown_at = now
                at, left = progress_of(active.run.options, active.process.pid), self._seconds_left(now)
                total = active.run.options.train.total_iter
                eta = f", ETA {datetime.timedelta(seconds=int(left))}" if left is not None else ""
                self._tell(active.number, active.run, f"{at}/{total}{eta}")

    def _seconds_left(self, now: float) -> float | None:
        """Until the study's end, at the pace of all iterations since its start; None before the first."""
        running = [(progress_of(active.run.options, active.process.pid), active) for active in self._active]
        made = self._done_iterations + sum(max(0, at - active.began_at) for at, active in running)
        left = sum(active.run.options.train.total_iter - at for at, active in running)
        left += sum(run.options.train.total_iter for _, run in self._pending)
        return left * (now - self._started) / made if made else None

    def _tell(self, number: int, run: Run, what: str) -> None:
        self._say(f"[{number}/{len(self.study.runs)}] {run.label}: {what}")


def check_fits(study: Study) -> None:
    """Tries the networks of all methods that are not done on the images, so that none is found unfit after others.

    What keeps a method from being built, such as weights that are missing, is told when its run begins.

    Raises:
        UserError: networks, losses and images of a method do not fit each other.
    """
    for run in study.runs[: len(study.methods)]:
        if state_of(study, run)[0] == "done":
            continue
        try:
            built = TrainingRun(recognise_networks(run.options)[0], RankInfo(torch.device("cpu")), None)
        except UserError:
            continue
        try:
            check_fit(built)
        except UserError as error:
            error.extend(before=f"method {run.method}: ")
            raise


def threads_for(jobs: int) -> int:
    """How many threads each of several trainings computes with: OMP_NUM_THREADS where set, else its share of cores."""
    given = os.environ.get(_THREADS, "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, num_processors() // jobs)


def environment_for(options: Options, threads: int, slot: int) -> dict[str, str]:
    """The variables of a training: its threads and, where there are several GPUs, one of them in turn."""
    environment = {**ENVIRONMENT, _THREADS: str(threads)}
    count = torch.cuda.device_count() if options.num_gpu != 0 else 0
    if count > 1:
        named = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        environment["CUDA_VISIBLE_DEVICES"] = named.split(",")[slot % count]
    return environment


def write_options(study: Study) -> None:
    """Writes the options of all runs, each a file for train.py, beside the runs and beside the tables.

    Raises:
        CheckpointError: a file cannot be written.
    """
    for run in study.runs:
        text = (
            f"# Study {study.name}: {study.base}, made method {run.method} by {study.methods[run.method].name}.\n"
            f"# By hand: python basicsr/train.py -opt {run.file}\n{dump_yaml(run.content)}"
        )
        for folder in (run.file.parent, study.results / "options"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
            path = folder / run.file.name
            if not path.is_file() or path.read_text("utf-8") != text:
                write_text(path, text)


def load_teacher(file: Path) -> tuple[Options, State]:
    """The options of `--teacher-opt`, and what is left to do of that training.

    Raises:
        OptionsError: the file is wrong, or the teacher is finished, with other options.
    """
    options = load_options(file, training=True)
    kept, finished = kept_options(options), weights_of(options).is_file()
    if kept == resolved_yaml(options):
        return options, "done" if finished else "resume"
    if finished and kept is not None:
        raise OptionsError(
            f"--teacher-opt {file}: the teacher {options.name} is finished, and was trained with other options; leave"
            f" --teacher-opt out and name {weights_of(options)} in the base, or give it another name"
        )
    return options, "start"


def train_teacher(file: Path, options: Options, state: State) -> None:
    """Trains the teacher, as far as it is not done.

    Raises:
        Stopped: a signal came.
        StepFailed: train.py failed, and has said why.
        MachineError: another study is training it.
    """
    if state == "done":
        return
    lock_file = studies_folder(options) / f".teacher_{options.name}.lock"
    with exclusive(lock_file, f"another study is training the teacher {options.name}; wait for its end") as lock:
        arguments = [str(TRAIN), "-opt", str(file), *(["--auto_resume"] if state == "resume" else [])]
        with Programs() as programs:
            environment = environment_for(options, threads_for(1), 0)
            code = programs.start(arguments, lock=lock, environment=environment, ends_with_us=True).wait()
        if programs.received:
            raise Stopped
        if code != 0:
            raise StepFailed(f"the teacher of --teacher-opt {file} failed (see above)", code if code > 0 else 1)


def last_error(log: Path) -> str:
    """The line in which train.py says why it failed, else the last line that it wrote."""
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return _one_line((told or lines or [""])[-1])


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def say(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stdout, flush=True)
