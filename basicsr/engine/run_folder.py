"""A run's folders and its logs."""

from __future__ import annotations

import glob
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import basicsr
from basicsr.config.load import resolved_yaml
from basicsr.config.schema import Options
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.logs.comparison_images import ComparisonImages
from basicsr.engine.logs.metric_writers import open_metric_writers
from basicsr.engine.logs.run_log import RunLog
from basicsr.engine.process.distributed import RankInfo, on_master
from basicsr.engine.provenance import write_record
from basicsr.engine.run_folders import CURVES, RESULTS, RUN, archive
from basicsr.engine.training_run import TrainingRun
from basicsr.engine.validation import best_iteration
from basicsr.files.atomic_files import check_writable, write_atomically
from basicsr.utils.errors import CheckpointError, UserError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.text import readable


def prepare_training(run: TrainingRun, resume: Checkpoint | None) -> list[str]:
    """Makes the run's folders and keeps the options there, on rank 0. All ranks must call.

    A run that starts anew renames the folders of an earlier run of its name, as BasicSR does.

    Returns:
        What the log should say of it.

    Raises:
        CheckpointError: a folder cannot be renamed or written, or has no room for a checkpoint.
    """
    options, size = run.options, run.checkpoint_size()

    def prepare() -> list[str]:
        remarks = _prepare(options, resume, size)
        if (best := best_iteration(run)) is not None:
            CheckpointFolder(options.experiment_folder).restore_best(best)
        write_record(run, resume)
        return remarks

    return on_master(run.rank_info, prepare)


def _prepare(options: Options, resume: Checkpoint | None, size: int) -> list[str]:
    folder, states = options.experiment_folder, options.training_states_folder
    checkpoints = CheckpointFolder(folder, options.logger.keep_checkpoints)
    checkpoints.check_space(size)
    own = checkpoints.holds(resume)
    if resume is not None and not own and Path(os.path.realpath(folder)) in Path(os.path.realpath(resume.path)).parents:
        raise CheckpointError(
            f"resume_state {resume.path} lies in {folder}, which a run of this name would set aside; give the run"
            " another name"
        )
    written = [folder, options.models_folder, states]
    written += [options.visualization_folder] if options.saves_images else []
    written += [options.tensorboard_folder] if options.logger.use_tb_logger else []
    for path in written if own else {path.parent for path in written if path.parent not in written}:
        check_writable(path)  # before anything is renamed
    if not own:
        archive(folder, RUN)
        archive(options.tensorboard_folder, CURVES)
    for path in written:
        _make(path)
    content = _with_versions(options).encode()
    write_atomically(folder / f"{options.name}.yml", lambda file: file.write(content))
    remarks = checkpoints.tidy(resume.iteration if resume is not None and own else None)
    return remarks + _forecast(options, resume.iteration if resume is not None else 0, size)


def _make(folder: Path) -> None:
    """Makes a folder that can be written.

    Raises:
        CheckpointError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
    check_writable(folder)


def _forecast(options: Options, iteration: int, size: int) -> list[str]:
    """Whether all checkpoints to come have room, if each takes `size` bytes."""
    coming = math.ceil((options.train.total_iter - iteration) / options.logger.save_checkpoint_freq)
    needed = size * min(coming, (options.logger.keep_checkpoints or coming) + 1)
    free = shutil.disk_usage(options.experiment_folder).free
    if needed <= free:
        return []
    return [
        f"the run's checkpoints need {readable(needed)}, {readable(size)} each, and {readable(free)} are free: free"
        " space, or set logger: keep_checkpoints"
    ]


def prepare_results(scales: Sequence[Options], rank_info: RankInfo) -> None:
    """Makes the folder of a test's results and keeps each scale's options there, on rank 0.

    The folder of an earlier test of the name is renamed.

    Raises:
        CheckpointError: a folder cannot be renamed or written.
    """
    on_master(rank_info, lambda: _prepare_results(scales))


def _prepare_results(scales: Sequence[Options]) -> None:
    folder = scales[0].results_folder
    check_writable(folder.parent)
    archive(folder, RESULTS, never=RUN)
    _make(folder)
    try:
        for options in scales:
            suffix = f"_x{options.scale}" if len(scales) > 1 else ""
            (folder / f"{options.name}{suffix}.yml").write_text(_with_versions(options), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error


def _with_versions(options: Options) -> str:
    header = f"# basicsr {basicsr.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}\n"
    return header + resolved_yaml(options)


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
    on_master(rank_info, lambda: _add_file(file))
    opened = [handler for handler in logger.handlers if _writes_to(handler, file)]
    try:
        yield logger
    finally:
        for handler in opened:
            logger.removeHandler(handler)
            handler.close()


def _writes_to(handler: logging.Handler, file: Path) -> bool:
    return isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == file.absolute()


def _add_file(file: Path) -> None:
    try:
        get_root_logger("basicsr", logging.INFO, str(file))
    except OSError as error:
        raise CheckpointError(f"cannot write {file}: {error.strerror}") from error


@contextmanager
def open_run_log(run: TrainingRun, logger: logging.Logger) -> Iterator[RunLog | None]:
    """The log of figures within the block, on rank 0; all ranks must call.

    Raises:
        UserError: Weights & Biases cannot be used, or the history cannot be written; on every rank.
    """
    options, opened = run.options, []

    def opens() -> None:
        sinks = open_metric_writers(options, run.iteration, run.validation_due)
        images = ComparisonImages(run)
        opened.append(RunLog(logger, options.name, run.iteration, options.train.total_iter, sinks, images))

    on_master(run.rank_info, opens)
    log = opened[0] if opened else None
    exit_code = 1
    try:
        yield log
        exit_code = 0
    except UserError as error:
        exit_code = error.exit_code
        raise
    finally:
        if log is not None:
            log.close(exit_code)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _about_threads(threads: int, cores: int, environment: Mapping[str, str]) -> str:
    """What to say where torchrun has left cores without work: for several ranks it sets OMP_NUM_THREADS=1."""
    ranks = int(environment.get("LOCAL_WORLD_SIZE", 1))
    share = cores // ranks
    if "TORCHELASTIC_RUN_ID" not in environment or threads > 1 or share < 2:
        return ""
    return (
        f"each of {ranks} rank(s) computes with one thread, and there are {cores} cores: torchrun sets"
        f" OMP_NUM_THREADS=1 where it is not set; to use them all, export OMP_NUM_THREADS={share}"
    )


def describe(run: TrainingRun, logger: logging.Logger, resume: Checkpoint | None) -> None:
    """Logs what is about to run."""
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    options = run.options
    logger.info(
        f"basicsr {basicsr.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()};"
        f" {run.rank_info.device}, {run.rank_info.world_size} rank(s), amp {run.precision.amp}"
    )
    if run.precision.told:
        logger.info(run.precision.told)
    for line in run.precision.warnings:
        logger.warning(line)
    if run.rank_info.device.type == "cpu" and (remark := _about_threads(torch.get_num_threads(), _cores(), os.environ)):
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
