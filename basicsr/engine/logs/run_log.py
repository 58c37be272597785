"""What a run logs: lines, a progress bar, and figures and images for TensorBoard, W&B and the history.

The names are the same in every run and everywhere: losses/NAME, lr/GROUP, metrics/DATASET/METRIC,
images/DATASET/NAME, time/iteration and time/data (seconds).
"""

from __future__ import annotations

import datetime
import glob
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from tqdm import tqdm

import basicsr
from basicsr.engine.checkpoint import Checkpoint
from basicsr.engine.logs.metric_writers import MetricWriter, open_metric_writers
from basicsr.engine.process.distributed import RankInfo
from basicsr.files.images import tensor2img
from basicsr.inference.runner import ImageRunner
from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import CheckpointError, UserError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.matlab_functions import imresize

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun

_FIRST_SILENCE, _LATER_SILENCE = 10.0, 60.0  # seconds
_LARGEST = 512  # pixels a side that are shown of an image
_GAP, _CAPTION = 4, 22  # pixels between columns, and above them
_PAPER, _INK = 255, 32  # gray levels


@contextmanager
def open_log(
    folder: Path, kind: str, name: str, rank_info: RankInfo, *, goes_on: bool = False
) -> Iterator[logging.Logger]:
    """The package's logger: lines to the screen and, on rank 0 within the block, to FOLDER/KIND_NAME_TIME.log.

    With `goes_on` the newest such file is continued, where there is one. All ranks must call.

    Raises:
        CheckpointError: the file cannot be written.
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

    on_master(add)
    handlers = (handler for handler in logger.handlers if isinstance(handler, logging.FileHandler))
    opened = [handler for handler in handlers if Path(handler.baseFilename) == file.absolute()]
    try:
        yield logger
    finally:
        for handler in opened:
            logger.removeHandler(handler)
            handler.close()


@contextmanager
def open_run_log(run: TrainingRun, logger: logging.Logger) -> Iterator[RunLog | None]:
    """The log of figures within the block, on rank 0; all ranks must call.

    Raises:
        UserError: Weights & Biases cannot be used, or the history cannot be written; on every rank.
    """
    options, opened = run.options, list[RunLog]()

    def opens() -> None:
        writers = open_metric_writers(options, run.options_text, run.iteration, run.validation_due)
        images = ComparisonImages(run)
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
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    options, rank_info = run.options, run.rank_info
    logger.info(
        f"basicsr {basicsr.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()};"
        f" {rank_info.device}, {rank_info.world_size} rank(s), amp {run.precision.amp}"
    )
    if run.precision.reason:
        logger.info(run.precision.reason)
    for line in run.precision.warnings:
        logger.warning(line)
    if rank_info.device.type == "cpu" and (remark := _about_threads(torch.get_num_threads(), _cores(), os.environ)):
        logger.warning(remark)
    left_out = f" ({len(run.skipped)} of them left out)" if run.skipped else ""
    logger.info(
        f"{options.model_type} {options.name}: {type(run.network).__name__} with {parameters:,d} parameters,"
        f" {run.loader.num_samples} training images{left_out}, {options.train.total_iter} iterations"
    )
    if resume is not None:
        epoch = run.loader.epoch_at(run.iteration)
        logger.info(
            f"Resumed {resume.path.name} at iteration {run.iteration} (epoch {epoch.number},"
            f" batch {epoch.iteration}/{epoch.iterations})"
        )


class RunLog:
    """Writes a training run's figures. Made on rank 0 only.

    Args:
        logger: for lines.
        name: the run's.
        start: number of iterations already done.
        total: number of iterations in all.
        writers: where figures and images go.
        compare: makes a picture, uint8 (H, W, 3) BGR, from a validation set's name and the network's output for its
            first image, which it sets beside others.
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
        self, iteration: int, epoch: int, rates: Mapping[str, float], parts: Mapping[str, float], waited: float
    ) -> None:
        """Logs one iteration.

        Args:
            iteration: from 1.
            epoch: passes over the dataset so far.
            rates: learning rates by parameter group.
            parts: losses by name, unweighted.
            waited: seconds that an iteration waited for data, on average since the last call.
        """
        now = time.monotonic()
        per_iteration, left = self._pace(iteration, now)
        lr = ", ".join(f"{group} {rate:.3e}" for group, rate in rates.items())
        losses = " ".join(f"{name}: {value:.4e}" for name, value in parts.items())
        self.line(
            f"[{self._name[:5]}..][epoch:{epoch:3d}, iter:{iteration:8,d}, lr:({lr})] [eta: {left},"
            f" time (data): {per_iteration:.3f} ({waited:.3f})] {losses}"
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

        Raises:
            CheckpointError: it cannot be written; not where the run has failed for another reason.
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


class ComparisonImages:
    """Makes pictures of columns: LR enlarged by bicubic interpolation, output, teacher's output, HR.

    A column without its image is left out. What does not change in the run is made once for each validation set.
    """

    def __init__(self, run: TrainingRun) -> None:
        self._run = run
        self._fixed: dict[str, dict[str, np.ndarray]] = {}

    def __call__(self, dataset: str, output: np.ndarray) -> np.ndarray:
        """The picture, uint8 (H, W, 3) BGR, for a set's first image, of which `output` is the network's output."""
        if dataset not in self._fixed:
            self._fixed[dataset] = self._others(dataset)
        (first, bicubic), *after = self._fixed[dataset].items()
        name = "student" if self._run.teacher is not None else "output"
        return side_by_side({first: bicubic, name: centre(output), **dict(after)})

    def _others(self, dataset: str) -> dict[str, np.ndarray]:
        """All columns but the output's."""
        images, teacher = self._run.validation[dataset], self._run.teacher
        item, scale, val = images[0], self._run.options.scale, self._run.options.val
        columns = {"LR, bicubic": imresize(images.restored(item["lq"]), scale)}
        if teacher is not None:
            runner = ImageRunner(
                teacher.network,
                scale,
                self._run.rank_info.device,
                tile=val.tile,
                tile_overlap=val.tile_overlap,
                precision=teacher.precision,
            )
            columns["teacher"] = images.restored(runner(item["lq"].unsqueeze(0)))
        if "gt" in item:
            columns["HR"] = images.restored(item["gt"])
        return {name: centre(tensor2img(column)) for name, column in columns.items()}


def centre(image: np.ndarray) -> np.ndarray:
    """The middle of an image (H, W) or (H, W, 3), at most 512 pixels a side, as (h, w, 3)."""
    height, width = image.shape[:2]
    top, left = max(0, height - _LARGEST) // 2, max(0, width - _LARGEST) // 2
    middle = image[top : top + _LARGEST, left : left + _LARGEST]
    return middle if middle.ndim == 3 else middle[..., None].repeat(3, axis=2)


def side_by_side(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Sets images of one height, uint8 (H, W, 3), side by side, with gaps of 4 pixels and captions of 22 above."""
    captioned = []
    for name, image in columns.items():
        head = np.full((_CAPTION, image.shape[1], 3), _PAPER, np.uint8)
        cv2.putText(head, name, (2, _CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (_INK,) * 3, 1, cv2.LINE_AA)
        gap = np.full((_CAPTION + image.shape[0], _GAP, 3), _PAPER, np.uint8)
        captioned += [np.concatenate([head, image]), gap]
    return np.concatenate(captioned[:-1], axis=1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
