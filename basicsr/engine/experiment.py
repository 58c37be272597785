"""A run's folders, its log file, and which checkpoint it starts from."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import yaml

import basicsr
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder
from basicsr.engine.comparison_images import ComparisonImages
from basicsr.engine.distributed import Place, any_rank
from basicsr.engine.run_log import RunLog
from basicsr.engine.sinks import flat, open_sinks
from basicsr.engine.training_run import TrainingRun
from basicsr.utils.errors import CheckpointError, MachineError, UserError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.options import resolved_yaml
from basicsr.utils.options_schema import Options


def find_checkpoint(options: Options, auto_resume: bool) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to continue from, and remarks: `--auto_resume`'s newest one, else `path: resume_state`.

    Raises:
        CheckpointError: `resume_state` cannot be used, or none of the run's checkpoints is intact.
    """
    if auto_resume:
        checkpoint, damaged = CheckpointFolder(options.experiment_folder).latest()
        if checkpoint is not None:
            return checkpoint, [f"{remark}; using {checkpoint.path.name}" for remark in damaged]
        if damaged:
            raise CheckpointError(f"no intact checkpoint to resume in {options.experiment_folder}: {damaged[0]}")
    if options.path.resume_state is not None:
        path = Path(options.path.resume_state)
        return CheckpointFolder(path.parent.parent).load(path), []
    return None, []


def prepare_training(options: Options, place: Place, *, fresh: bool) -> None:
    """Makes the folders and keeps the options there, on rank 0.

    A run that starts anew renames the folders of an earlier run of its name, as BasicSR does.

    Raises:
        CheckpointError: a folder cannot be renamed or written.
    """
    _wait_for_all_ranks()  # until each has looked for a checkpoint there
    if place.is_master:
        folder = options.experiment_folder
        if fresh:
            for old in (folder, options.tensorboard_folder):
                archive(old)
        try:
            options.models_folder.mkdir(parents=True, exist_ok=True)
            options.training_states_folder.mkdir(exist_ok=True)
            (folder / f"{options.name}.yml").write_text(_with_versions(options), encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
    _wait_for_all_ranks()


def prepare_results(scales: Sequence[Options], place: Place) -> None:
    """Makes the folder of a test's results and keeps each scale's options there, on rank 0.

    The folder of an earlier test of the name is renamed.

    Raises:
        CheckpointError: a folder cannot be renamed or written.
    """
    if place.is_master:
        folder = scales[0].results_folder
        archive(folder)
        try:
            folder.mkdir(parents=True)
            for options in scales:
                suffix = f"_x{options.scale}" if len(scales) > 1 else ""
                (folder / f"{options.name}{suffix}.yml").write_text(_with_versions(options), encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
    _wait_for_all_ranks()


def _with_versions(options: Options) -> str:
    header = f"# basicsr {basicsr.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}\n"
    return header + resolved_yaml(options)


def archive(folder: Path) -> None:
    """Renames `folder`, if it is there, to NAME_archived_TIME.

    Raises:
        CheckpointError: it cannot be renamed.
    """
    if not folder.exists():
        return
    archived = folder.with_name(f"{folder.name}_archived_{time.strftime('%Y%m%d_%H%M%S')}")
    try:
        folder.rename(archived)
    except OSError as error:
        raise CheckpointError(f"cannot rename {folder} to {archived.name}: {error}") from error
    get_root_logger().info(f"{folder} exists: renamed to {archived.name}")


@contextmanager
def open_log(folder: Path, kind: str, name: str, place: Place) -> Iterator[logging.Logger]:
    """The package's logger: lines to the screen and, on rank 0 within the block, to FOLDER/KIND_NAME_TIME.log."""
    file = folder / f"{kind}_{name}_{time.strftime('%Y%m%d_%H%M%S')}.log"
    logger = get_root_logger("basicsr", logging.INFO, str(file) if place.is_master else None)
    try:
        yield logger
    finally:
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == file.absolute():
                logger.removeHandler(handler)
                handler.close()


def changed_options(resume: Checkpoint, options: Options, place: Place) -> list[str]:
    """A line for each option that differs from what the checkpoint was saved with, and for another number of ranks."""
    before = flat(yaml.safe_load(resume.state["options"]))
    after = flat(yaml.safe_load(resolved_yaml(options)))
    lines = [
        f"{key}: {before.get(key, 'not set')} -> {after.get(key, 'not set')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]
    if resume.state["world_size"] != place.world_size:
        lines.append(f"ranks: {resume.state['world_size']} -> {place.world_size}")
    return [f"changed since {resume.path.name} was saved: {line}" for line in lines]


@contextmanager
def open_run_log(run: TrainingRun, logger: logging.Logger) -> Iterator[RunLog | None]:
    """The log of figures within the block, on rank 0; all ranks must call.

    Raises:
        UserError: Weights & Biases cannot be used, or the history cannot be written; on every rank.
    """
    log: RunLog | None = None
    failure: UserError | None = None
    options = run.options
    if run.place.is_master:
        try:
            sinks = open_sinks(options, run.iteration)
            log = RunLog(logger, options.name, run.iteration, options.train.total_iter, sinks, ComparisonImages(run))
        except UserError as error:
            failure = error
    if any_rank([failure is not None], run.place.device)[0]:
        raise failure or MachineError("rank 0 could not open its logs; it says why")
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


def describe(run: TrainingRun, logger: logging.Logger, resume: Checkpoint | None) -> None:
    """Logs what is about to run."""
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    options = run.options
    logger.info(
        f"basicsr {basicsr.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()};"
        f" {run.place.device}, {run.place.world_size} rank(s), amp {options.amp}"
    )
    logger.info(
        f"{options.model_type} {options.name}: {type(run.network).__name__} with {parameters:,d} parameters,"
        f" {run.loader.num_samples} training images, {options.train.total_iter} iterations"
    )
    if resume is not None:
        place = run.loader.epoch_at(run.iteration)
        logger.info(
            f"Resumed {resume.path.name} at iteration {run.iteration} (epoch {place.number},"
            f" batch {place.iteration}/{place.iterations})"
        )


def _wait_for_all_ranks() -> None:
    if dist.is_initialized():
        dist.barrier()
