"""What a run tells: log lines and figures, status.json, skipped_images.txt.

Figures have the same names in every run and everywhere: losses/NAME, lr/GROUP, metrics/DATASET/METRIC,
images/DATASET/NAME, time/iteration and time/data (seconds).
"""

from __future__ import annotations

import datetime
import glob
import json
import logging
import os
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from tqdm import tqdm

import basicsr
from basicsr.config.schema import Options
from basicsr.config.without_hr import lacks_hr
from basicsr.data.base import Skipped
from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.logs.metric_writers import ComparisonImages, MetricWriter, open_metric_writers
from basicsr.engine.process.rank_watchdog import LostRanks, start_of
from basicsr.files.atomic_files import write_atomically
from basicsr.files.regular_files import read_regular
from basicsr.utils.complexity import count_parameters
from basicsr.utils.dist_util import gather_objects, get_dist_info, on_master
from basicsr.utils.errors import CheckpointError, DataError, Interrupted, Preempted, UserError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.process_settings import num_processors

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun

STATUS, SKIPPED = "status.json", "skipped_images.txt"
_FIRST_SILENCE, _LATER_SILENCE, _STATUS_SECONDS = 10.0, 60.0, 5.0


@contextmanager
def open_log(folder: Path, kind: str, name: str, *, goes_on: bool = False) -> Iterator[logging.Logger]:
    """The package's logger: lines to the screen and, on rank 0 within the block, to FOLDER/KIND_NAME_TIME.log.

    With `goes_on` the newest such file is continued, where there is one. All ranks must call; raises CheckpointError
    where the file cannot be written.
    """
    found = folder.glob(f"{glob.escape(f'{kind}_{name}_')}*.log") if goes_on else ()
    logs = sorted(log for log in found if os.path.isfile(log))  # a pipe would be waited for
    file = logs[-1] if logs else folder / f"{kind}_{name}_{time.strftime('%Y%m%d_%H%M%S')}.log"
    logger = get_root_logger("basicsr", logging.INFO)

    def add() -> None:
        try:
            get_root_logger("basicsr", logging.INFO, str(file))
        except OSError as error:
            raise CheckpointError(f"cannot write {file}: {error.strerror}") from error

    before = list(logger.handlers)
    on_master(add)
    opened = [handler for handler in logger.handlers if handler not in before]
    try:
        yield logger
    finally:
        for handler in opened:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def open_run_log(run: TrainingRun, logger: logging.Logger) -> Iterator[RunLog | None]:
    """The log of figures within the block, on rank 0; all ranks must call.

    Raises UserError on every rank where Weights & Biases cannot be used, or the history cannot be written.
    """
    options, opened = run.options, list[RunLog]()

    def opens() -> None:
        writers = open_metric_writers(options, run.options_text, run.iteration, run.validation_due)
        images = ComparisonImages(options, run.validation, run.teacher, run.rank_info.device)
        opened.append(RunLog(logger, options.name, run.iteration, options.train.total_iter, writers, images))

    on_master(opens)
    exit_code = 1
    try:
        yield opened[0] if opened else None
        exit_code = 0
    except UserError as error:
        exit_code = error.exit_code
        raise
    finally:
        for log in opened:
            log.close(exit_code)


def describe(run: TrainingRun, logger: logging.Logger, resume: Checkpoint | None) -> None:
    """Logs what is about to run."""
    trained = sum(parameter.numel() for parameter in run.network.parameters())
    shipped = count_parameters(run.network)
    parameters = f"{shipped:,d} parameters" + (f" ({trained:,d} with branches)" if trained != shipped else "")
    options, rank_info = run.options, run.rank_info
    logger.info(
        f"basicsr {basicsr.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()};"
        f" {rank_info.device}, {rank_info.world_size} rank(s), amp {run.precision.amp}"
    )
    if run.precision.reason:
        logger.info(run.precision.reason)
    for line in run.precision.warnings:
        logger.warning(line)
    if rank_info.device.type == "cpu":
        remark = _about_threads(torch.get_num_threads(), num_processors(), os.environ)
        if remark:
            logger.warning(remark)
    images, samples = run.loader.num_samples, run.loader.samples_per_pass
    weighted = f", {samples:,d} samples to a pass by their weights" if samples != images else ""
    left_out = f" ({len(run.skipped)} of them left out)" if run.skipped else ""
    logger.info(
        f"{options.model_type} {options.name}: {type(run.network).__name__} with {parameters},"
        f" {images} training images{left_out}{weighted}, {options.train.total_iter} iterations"
    )
    for key, dataset in run.training_sets.items():
        if (made := getattr(dataset, "degradation", None)) is not None:
            which = f"{options.datasets[key].name}: " if len(run.training_sets) > 1 else ""
            place = f", on {rank_info.device}" if getattr(dataset, "makes_lr_later", False) else ""
            logger.info(f"{which}LR images are made of HR images while training{place}: {made}")
    _describe_sets(run, logger)
    if resume is not None:
        epoch, batch, batches = run.loader.epoch_at(run.iteration)
        logger.info(f"Resumed {resume.path.name} at iteration {run.iteration} (epoch {epoch}, batch {batch}/{batches})")


def _describe_sets(run: TrainingRun, logger: logging.Logger) -> None:
    """Logs which sets the iterations take, and which losses count where there are no HR images."""
    blocks = run.options.datasets_of("train")
    if (mixture := run.loader.mixture) is not None:
        shares = [
            f"{block.name} ({len(cast(Sized, run.training_sets[key]))} images, {float(share):.1%} of the iterations)"
            for (key, block), share in zip(blocks.items(), mixture.shares, strict=True)
        ]
        logger.info(f"Each iteration takes its images of one set: {', '.join(shares)}")
    free = [block.name for block in blocks.values() if lacks_hr(block)]
    if free:
        needs = {name: bool(cast(LossTerm, term).gt_needs) for name, term in run.terms.items()}
        counting = ", ".join(name for name, is_needed in needs.items() if not is_needed)
        idle = [*(name for name, is_needed in needs.items() if is_needed), *(["adversarial"] if run.adversary else [])]
        without = f", without {', '.join(idle)}" if idle else ""
        distils = run.options.model_type == "KDModel"
        source = "the teacher" if distils else "the network as the run began"
        logger.info(f"{', '.join(free)}: no HR images; learned from {source} alone, by {counting}{without}")


def _about_threads(threads: int, cores: int, environment: Mapping[str, str]) -> str:
    """A remark where torchrun leaves cores without work: for several ranks it sets OMP_NUM_THREADS=1."""
    ranks = int(environment.get("LOCAL_WORLD_SIZE", 1))
    share = cores // ranks
    if "TORCHELASTIC_RUN_ID" not in environment or threads > 1 or share < 2:
        return ""
    return (
        f"each of {ranks} rank(s) computes with one thread, and there are {cores} cores: torchrun sets"
        f" OMP_NUM_THREADS=1 where it is not set; to use them all, export OMP_NUM_THREADS={share}"
    )


class RunLog:
    """Writes a training run's figures, from iteration `start` to `total`. Made on rank 0 only.

    `compare` makes a picture, uint8 (H, W, 3) BGR, of a validation set's name and the output for its first image.
    """

    def __init__(
        self,
        logger: logging.Logger,
        name: str,
        start: int,
        total: int,
        writers: Sequence[MetricWriter] = (),
        compare: Callable[[str, np.ndarray], np.ndarray] = lambda dataset, output: output,
    ) -> None:
        self._logger, self._name, self._total = logger, name, total
        self._started = self._last = self._last_line = time.monotonic()
        self._start = self._last_iteration = self._done = start
        self._silence = _FIRST_SILENCE
        self._writers, self._compare = list(writers), compare
        hidden = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, desc=name, unit="it", dynamic_ncols=True, disable=hidden)

    def tick(self) -> None:
        """Counts an iteration; where the next line is far off, logs how far the run is, first after ten seconds."""
        self._bar.update()
        self._done += 1
        now = time.monotonic()
        if now - self._last_line >= self._silence:
            self._last_line, self._silence = now, _LATER_SILENCE
            pace, left = self._pace(self._done, now)
            self.line(
                f"[{self._name[:5]}..][iter:{self._done:8,d} of {self._total:,d}] [eta: {left}, time: {pace:.3f}]"
            )

    def step(
        self,
        iteration: int,
        epoch: int,
        rates: Mapping[str, float],
        parts: Mapping[str, float],
        waited: float,
        origin: str = "",
    ) -> None:
        """Logs iteration `iteration`, from 1, after `epoch` passes over the dataset.

        `rates` are learning rates by parameter group, `parts` unweighted losses by name, `waited` the seconds that an
        iteration waited for data, on average since the last call, `origin` the set of its images where there are
        several.
        """
        now = time.monotonic()
        per_iteration, left = self._pace(iteration, now)
        lr = ", ".join(f"{group} {rate:.3e}" for group, rate in rates.items())
        losses = " ".join(f"{name}: {value:.4e}" for name, value in parts.items())
        self.line(
            f"[{self._name[:5]}..][epoch:{epoch:3d}, iter:{iteration:8,d}, lr:({lr})] [eta: {left},"
            f" time (data): {per_iteration:.3f} ({waited:.3f})] {f'({origin}) ' if origin else ''}{losses}"
        )
        figures = {f"losses/{name}": value for name, value in parts.items()}
        figures |= {f"lr/{name}": rate for name, rate in rates.items()}
        figures["time/iteration"] = (now - self._last) / max(1, iteration - self._last_iteration)
        figures["time/data"] = waited
        self._last, self._last_iteration, self._last_line = now, iteration, now
        self._scalars(iteration, figures)

    def metrics(self, iteration: int, means: Mapping[str, Mapping[str, float]]) -> None:
        """Logs a validation: the average figures of each dataset by metric."""
        figures = {f"metrics/{dataset}/{name}": value for dataset, row in means.items() for name, value in row.items()}
        self._scalars(iteration, figures)

    def comparison(self, dataset: str, name: str, iteration: int, output: np.ndarray) -> None:
        """Shows the output, uint8 (H, W, 3) BGR, for the first image, `name`, of a validation set beside others."""
        if shown := [writer for writer in self._writers if writer.shows_images]:
            picture = self._compare(dataset, output)
            for writer in shown:
                self._write(writer, lambda writer: writer.image(f"images/{dataset}/{name}", iteration, picture))

    def line(self, text: str) -> None:
        """Logs one line above the progress bar."""
        self._bar.clear()
        self._logger.info(text)
        self._bar.refresh()

    def close(self, exit_code: int = 0) -> None:
        """Finishes the bar and writes what is pending; a code other than 0 says that the run did not end well.

        Raises CheckpointError where that cannot be written; not where the run has failed for another reason.
        """
        self._bar.close()
        failures: list[CheckpointError] = []
        for writer in list(self._writers):
            try:
                self._write(writer, lambda writer: writer.close(exit_code))
            except CheckpointError as error:
                failures.append(error)
        if failures and exit_code == 0:
            raise failures[0]

    def _pace(self, iteration: int, now: float) -> tuple[float, datetime.timedelta]:
        """Seconds to an iteration so far, and the time that the others will take at this pace."""
        per_iteration = (now - self._started) / max(1, iteration - self._start)
        return per_iteration, datetime.timedelta(seconds=int(per_iteration * (self._total - iteration)))

    def _scalars(self, iteration: int, figures: Mapping[str, float]) -> None:
        for writer in list(self._writers) if figures else ():
            self._write(writer, lambda writer: writer.scalars(iteration, figures))

    def _write(self, writer: MetricWriter, action: Callable[[MetricWriter], None]) -> None:
        """Goes on without a writer that fails and is not needed."""
        try:
            action(writer)
        except CheckpointError as error:
            if writer.needed:
                raise
            self._writers.remove(writer)
            self._logger.warning(f"{error}; training goes on without them")


class RunStatus:
    """Writes status.json on rank 0: how a run stands, for schedulers and for those who look after many runs.

    `iteration` is that of the newest checkpoint or of the end, `reached` what a process has come to, within seconds.
    `state` is 'starting', 'running', 'finished', 'preempted' (it was asked to stop and has saved), or 'failed'. A
    process that was killed writes nothing more: then it stays 'running', with a `pid` that is not there any more.
    """

    def __init__(self, options: Options) -> None:
        rank, ranks = get_dist_info()
        self._path = options.experiment_folder / STATUS
        self._writes, self._begun = rank == 0, False
        self._ticked = time.monotonic()
        self.ending = ""  # what is to be said of a run that has finished
        self._content: dict[str, Any] = {
            "state": "starting",
            "exit_code": None,
            "message": "",
            "name": options.name,
            "iteration": 0,
            "reached": 0,
            "total_iter": options.train.total_iter,
            "checkpoint": None,
            "ranks": ranks,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "launch": _launch(),
            "started": _now(),
        }

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
        if time.monotonic() - self._ticked >= _STATUS_SECONDS:
            self._ticked = time.monotonic()
            self.update(reached=iteration)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Notes how the block ends."""
        try:
            yield
        except BaseException as error:
            self.ended(error)
            raise
        self.update(state="finished", exit_code=0, message=self.ending)

    def ended(self, error: BaseException) -> None:
        """Writes that the run ends with an error; another rank does if rank 0 is lost."""
        self._writes = self._writes or (isinstance(error, LostRanks) and error.master)
        interrupted = isinstance(error, KeyboardInterrupt)
        code = error.exit_code if isinstance(error, UserError) else Interrupted.exit_code if interrupted else 1
        state = "preempted" if isinstance(error, Preempted) else "failed"
        lines = ["interrupted"] if interrupted else str(error).splitlines()
        self.update(state=state, exit_code=code, message=lines[0][:500] if lines else type(error).__name__)


def launched_by_us(folder: Path) -> bool:
    """Whether the run in `folder` was started by the launch that this process belongs to.

    Raises CheckpointError where its status cannot be read: the run might be ours, and must not begin anew.
    """
    if not _launch() or not os.path.lexists(folder / STATUS):
        return False
    try:
        return bool(json.loads(read_regular(folder / STATUS))["launch"] == _launch())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"cannot read {folder / STATUS} ({error}), so whether to go on"
        raise CheckpointError(f"{problem}; remove it and start with --auto_resume, or begin anew") from error


def _launch() -> str:
    """Identifies the launch by one torchrun agent, the same for restarted processes; '' without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    parent = os.getppid()  # torchrun's agent, which starts workers anew
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {parent} {start_of(parent)}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class SkippedImages:
    """Which images training does without, the same on all ranks; `known` are the run's notes by sample."""

    def __init__(self, folder: Path, limit: int, known: dict[int, list[str]]) -> None:
        self._path, self._limit, self._known = folder / SKIPPED, limit, known
        self._new: set[Skipped] = set()
        self._skipped: set[Skipped] = set()  # since this start
        self._listed: list[str] = on_master(self._read) if limit else []

    def note(self, batches: Sequence[Batch]) -> None:
        """Notes the images that an iteration's batches lack."""
        for batch in batches:
            self._new.update(batch.skipped)

    def share(self) -> list[str]:
        """Merges and writes what all ranks have noted; returns what is new. All ranks must call."""
        if not self._limit:
            return []
        new = sorted({image for images in gather_objects(sorted(self._new)) for image in images} - self._skipped)
        self._new.clear()
        self._skipped.update(new)
        for image in new:
            if image.note not in (notes := self._known.setdefault(image.sample, [])):
                notes.append(image.note)
        lines = sorted(image.note for image in new)
        on_master(lambda: self._append([line for line in lines if line not in self._listed]))
        return lines

    @property
    def too_many(self) -> DataError | None:
        """The error where more images are left out than is allowed."""
        count = len({image.sample for image in self._skipped})  # of a pair, both files may be bad
        if count <= self._limit:
            return None
        return DataError(
            f"{count} training images cannot be used, skip_bad_images allows {self._limit}; they are"
            f" listed in {self._path}"
        )

    def _read(self) -> list[str]:
        if not os.path.lexists(self._path):
            return []
        try:
            return read_regular(self._path).decode("utf-8", "replace").splitlines()
        except OSError as error:
            raise CheckpointError(f"{self._path} cannot be read ({error.strerror}); remove it") from error

    def _append(self, lines: Sequence[str]) -> None:
        try:
            if lines:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._path}: {error.strerror}") from error
