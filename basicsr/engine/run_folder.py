"""The folders that a command writes: which it may take, and how it makes them.

A run that starts anew renames the folder of an earlier run of its name. It renames nothing else: no folder that it
reads from, and none that does not look like a run's.
"""

from __future__ import annotations

import fnmatch
import glob
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import basicsr
from basicsr.archs.vgg_arch import WEIGHTS_FOLDER
from basicsr.config.load import resolved_yaml
from basicsr.config.schema import Options, thaw
from basicsr.data.checks.notes import cache_folder
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder, names_in
from basicsr.engine.process.run_lock import owned
from basicsr.engine.provenance import texts_in, write_record
from basicsr.files.atomic_files import check_writable, write_atomically
from basicsr.utils.dist_util import on_master
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.text import printable, readable

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun

RUN = ("training_states", "models", "status.json", "record.json", "train_*.log")
"""Names that show that a folder is a training run's; BasicSR's have some of them, too."""
CURVES = ("events.out.tfevents*",)
RESULTS = ("metrics.csv", "report.html", "test_*.log", "visualization", "NAME*.yml")
"""NAME is the folder's own."""
_NOT_READ = ("path.experiments_root", "path.results_root", "path.resume_state")  # the last is checked by itself
# Ignored in a run that goes on: it reads these from its checkpoint, or has written them itself.
_ONCE = ("path.pretrain_network_g", "path.pretrain_network_d", "the options")


def check_training_folders(options: Options, goes_on: bool) -> None:
    """Raises OptionsError unless a run may take experiments/NAME and tb_logger/NAME.

    Nothing that it reads may lie there, nor, unless it `goes_on` in its own folder, anything that is no run's.
    """
    folder, curves = options.experiment_folder, options.tensorboard_folder
    if _lies_in(curves, folder) or _lies_in(folder, curves):
        raise OptionsError(
            f"name: {options.name}: its folder would be {folder}, where TensorBoard files of all runs lie; give the"
            " run another name"
        )
    for taken in (folder, curves):
        _refuse_inputs(options, taken, _ONCE if goes_on else ())
    if not goes_on:
        check_archivable(folder, RUN)
        check_archivable(curves, CURVES)


@contextmanager
def results_taken(scales: Sequence[Options]) -> Iterator[Callable[[], None]]:
    """Within the block, results/NAME is this test's, at all its scales. All ranks must call.

    Yields what all ranks are to call when the folder was made anew. Raises OptionsError where something that the test
    reads lies there, or what is there are no results, and CheckpointError where another process has it.
    """
    folder = scales[0].results_folder

    def check() -> None:
        for options in scales:
            _refuse_inputs(options, folder, ())
        check_archivable(folder, RESULTS, never=RUN)

    on_master(check)
    with owned([folder], "writes its results there") as own_again:
        yield own_again


def check_archivable(folder: Path, marks: Sequence[str], never: Sequence[str] = ()) -> None:
    """Raises OptionsError unless a folder is missing, empty, or has names like `marks` and none like `never`."""
    names = [name for name in names_in(folder) if not name.startswith(".")]
    wanted = [mark.replace("NAME", glob.escape(folder.name)) for mark in marks]
    if names and (not _has(names, wanted) or _has(names, never)):
        shown = printable(", ".join(names[:3])) + (" ..." if len(names) > 3 else "")
        raise OptionsError(
            f"{folder} is there and holds something else ({shown}), so it is not renamed; give another name, or move it"
        )


def archive(folder: Path, marks: Sequence[str], never: Sequence[str] = ()) -> None:
    """Renames `folder` to NAME_archived_TIME, if there is anything in it: it may be a link or where a disk is mounted.

    Raises as `check_archivable`, and CheckpointError where it cannot be renamed.
    """
    check_archivable(folder, marks, never)
    if all(name.startswith(".") for name in names_in(folder)):
        return
    stamped = f"{folder.name}_archived_{time.strftime('%Y%m%d_%H%M%S')}"
    names = (folder.with_name(f"{stamped}{suffix}") for suffix in ("", *(f"_{number}" for number in range(1, 100))))
    archived = next(name for name in names if not os.path.lexists(name))
    try:
        folder.rename(archived)
    except OSError as error:
        raise CheckpointError(f"cannot rename {folder} to {archived.name}: {error}") from error
    get_root_logger().info(f"{folder} exists: renamed to {archived.name}")


def prepare_training(run: TrainingRun, resume: Checkpoint | None) -> list[str]:
    """Makes the run's folders and writes its options and record there; returns remarks. To be called on rank 0.

    A run that starts anew renames the folders of an earlier run of its name, as BasicSR does. Raises CheckpointError
    where a folder cannot be renamed or written, or has no room for a checkpoint.
    """
    options, folder = run.options, run.options.experiment_folder
    checkpoints, size = CheckpointFolder(folder, options.logger.keep_checkpoints), run.checkpoint_size()
    checkpoints.check_space(size)
    own = checkpoints.holds(resume)
    if resume is not None and not own and Path(os.path.realpath(folder)) in Path(os.path.realpath(resume.path)).parents:
        raise CheckpointError(
            f"resume_state {resume.path} lies in {folder}, which a run of this name would set aside; give the run"
            " another name"
        )
    written = [folder, options.models_folder, options.training_states_folder]
    written += [options.visualization_folder] if options.saves_images else []
    written += [options.tensorboard_folder] if options.logger.use_tb_logger else []
    if not own:
        for path in {path.parent for path in written if path.parent not in written}:
            check_writable(path)  # before anything is renamed
        archive(folder, RUN)
        archive(options.tensorboard_folder, CURVES)
    for path in written:
        _make(path)
    content = _versions() + run.options_text
    write_atomically(folder / f"{options.name}.yml", lambda file: file.write(content.encode()))
    remarks = checkpoints.tidy(resume.iteration if resume is not None and own else None)
    if (best := run.best_iteration()) is not None:
        checkpoints.restore_best(best)
    facts = {
        "device": str(run.rank_info.device),
        "ranks": run.rank_info.world_size,
        "precision": {**run.precision.kept(), "chosen": run.precision.reason or "by the options"},
        "images": run.images,
    }
    write_record(options, run.iteration, facts, run.files)
    coming = math.ceil((options.train.total_iter - run.iteration) / options.logger.save_checkpoint_freq)
    needed = size * min(coming, (options.logger.keep_checkpoints or coming) + 1)
    if needed > (free := shutil.disk_usage(folder).free):
        remarks.append(
            f"the run's checkpoints need {readable(needed)}, {readable(size)} each, and {readable(free)} are free: free"
            " space, or set logger: keep_checkpoints"
        )
    return remarks


def _make(folder: Path) -> None:
    """Makes a folder; raises CheckpointError where that is not possible, or it cannot be written."""
    there = folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error
    if there:  # a new one can be written
        check_writable(folder)


def prepare_results(scales: Sequence[Options]) -> None:
    """Makes the folder of a test's results, renaming an earlier one, and writes each scale's options there."""
    folder = scales[0].results_folder
    check_writable(folder.parent)
    archive(folder, RESULTS, never=RUN)
    _make(folder)
    try:
        for options in scales:
            suffix = f"_x{options.scale}" if len(scales) > 1 else ""
            text = _versions() + resolved_yaml(options)
            (folder / f"{options.name}{suffix}.yml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from error


def _versions() -> str:
    return f"# basicsr {basicsr.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}\n"


def _refuse_inputs(options: Options, folder: Path, ignored: Sequence[str]) -> None:
    for option, path in _inputs_of(options):
        if option not in ignored and _lies_in(path, folder):
            raise OptionsError(
                f"name: {options.name}: {option} ({path}) lies in {folder}, which would be renamed or written over;"
                " give another name, or move what is read"
            )


def _inputs_of(options: Options) -> Iterator[tuple[str, Path]]:
    """What a command reads or works in, by option: existing files and folders."""
    for option, text in texts_in(thaw(options), ""):
        named = option.rpartition(".")[2] not in ("name", "type") and option not in _NOT_READ
        if named and os.path.exists(text):
            yield option, Path(text)
            links: list[str] = []
            with suppress(OSError), os.scandir(text) as entries:  # it may be no folder, or its reader raises
                links = [os.readlink(entry.path) for entry in entries if entry.is_symlink()]
            for folder in {os.path.dirname(link) for link in links}:  # the images of a folder may be links
                yield option, Path(text, folder)
    for file in options.sources:
        if os.path.isfile(file):
            yield "the options", Path(file)
    yield "the working directory", Path.cwd()
    yield "weights of losses", WEIGHTS_FOLDER
    yield "weights of losses", options.root / WEIGHTS_FOLDER
    yield "notes about images", cache_folder()


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is, or leads to, a folder or something in it, by whatever names."""
    outer = os.path.realpath(folder)
    for part in (inner := Path(os.path.realpath(path)), *inner.parents):
        if str(part) == outer or (os.path.exists(part) and os.path.exists(outer) and os.path.samefile(part, outer)):
            return True
    return False


def _has(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.filter(names, pattern) for pattern in patterns)
