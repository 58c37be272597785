"""The folders that a command takes for its own, and what it must not take.

A run that starts anew renames the folder of an earlier run of its name. It renames nothing else: no folder that it
reads from, and none that does not look like a run's.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from basicsr.archs.vgg_arch import WEIGHTS_FOLDER
from basicsr.config.schema import Options, thaw
from basicsr.data.checks.notes import cache_folder
from basicsr.engine.checkpoint import names_in
from basicsr.engine.process.distributed import RankInfo, on_master
from basicsr.engine.process.run_lock import owned
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.text import printable

RUN = ("training_states", "models", "status.json", "record.json", "train_*.log")
"""What shows that a folder is a training run's; BasicSR's have some of it, too."""
CURVES = ("events.out.tfevents*",)
RESULTS = ("metrics.csv", "report.html", "test_*.log", "visualization", "NAME*.yml")
"""NAME is the folder's own."""
_NOT_READ = ("path.experiments_root", "path.results_root", "path.resume_state")  # the last is looked at by itself
# Ignored in a run that goes on: it reads these from its checkpoint, or has written them itself.
_ONCE = ("path.pretrain_network_g", "path.pretrain_network_d", "the options")


def check_training_folders(options: Options, goes_on: bool) -> None:
    """Looks whether a run may have experiments/NAME and tb_logger/NAME.

    Args:
        options: of the run.
        goes_on: whether it continues in its own folder. If not, it will rename what is there.

    Raises:
        OptionsError: something that it reads lies there, or what is there is no run's.
    """
    folder, curves = options.experiment_folder, options.tensorboard_folder
    if _lies_in(curves, folder) or _lies_in(folder, curves):
        raise OptionsError(
            f"name: {options.name}: its folder would be {folder}, where TensorBoard files of all runs lie; give the"
            " run another name"
        )
    ignored = _ONCE if goes_on else ()
    for taken in (folder, curves):
        _refuse_inputs(options, taken, ignored)
    if not goes_on:
        check_archivable(folder, RUN)
        check_archivable(curves, CURVES)


@contextmanager
def results_taken(scales: Sequence[Options], rank_info: RankInfo) -> Iterator[Callable[[], None]]:
    """Within the block, results/NAME is this test's. All ranks must call.

    Args:
        scales: the options of each scale, which share the folder.
        rank_info: where this process stands.

    Yields:
        What all ranks are to call when the folder was made anew.

    Raises:
        OptionsError: something that the test reads lies there, or what is there are no results.
        CheckpointError: another process has it.
    """
    folder = scales[0].results_folder

    def check() -> None:
        for options in scales:
            _refuse_inputs(options, folder, ())
        check_archivable(folder, RESULTS, never=RUN)

    on_master(rank_info, check)
    with owned([folder], rank_info, "writes its results there") as own_again:
        yield own_again


def inputs_of(options: Options) -> Iterator[tuple[str, Path]]:
    """What a command reads or works in, by option: files and folders that are there."""
    for option, text in texts_in(thaw(options), ""):
        named = option.rpartition(".")[2] not in ("name", "type") and option not in _NOT_READ
        if named and os.path.exists(text):
            yield option, Path(text)
            yield from ((option, folder) for folder in _linked_folders(text))
    for file in options.sources:
        if os.path.isfile(file):
            yield "the options", Path(file)
    yield "the working directory", Path.cwd()
    yield "weights of losses", WEIGHTS_FOLDER
    yield "weights of losses", options.root / WEIGHTS_FOLDER
    yield "notes about images", cache_folder()


def _linked_folders(root: str) -> set[Path]:
    """The folders that links in a folder, as its images may be, lead to."""
    try:
        with os.scandir(root) as entries:
            links = [os.readlink(entry.path) for entry in entries if entry.is_symlink()]
    except OSError:  # it is no folder, or whoever reads it tells
        return set()
    return {Path(root, folder) for folder in {os.path.dirname(link) for link in links}}


def check_archivable(folder: Path, marks: Sequence[str], never: Sequence[str] = ()) -> None:
    """Looks whether a folder is missing, empty, or looks like what may be renamed.

    Args:
        folder: may be missing.
        marks: patterns of names, of which it must have one.
        never: patterns of names, of which it must have none.

    Raises:
        OptionsError: it holds something else.
        CheckpointError: it cannot be read.
    """
    names = [name for name in names_in(folder) if not name.startswith(".")]
    wanted = [mark.replace("NAME", glob.escape(folder.name)) for mark in marks]
    if names and (not _has(names, wanted) or _has(names, never)):
        shown = printable(", ".join(names[:3])) + (" ..." if len(names) > 3 else "")
        raise OptionsError(
            f"{folder} is there and holds something else ({shown}), so it is not renamed; give another name, or move it"
        )


def archive(folder: Path, marks: Sequence[str], never: Sequence[str] = ()) -> None:
    """Renames `folder` to NAME_archived_TIME, if there is anything in it: it may be a link or where a disk is mounted.

    Args:
        folder: may be missing.
        marks: as for `check_archivable`.
        never: likewise.

    Raises:
        OptionsError: it holds something else than it should.
        CheckpointError: it cannot be renamed.
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


def texts_in(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts of nested options, by their whole names."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            yield from texts_in(entry, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from texts_in(entry, f"{key}[{number}]")


def _refuse_inputs(options: Options, folder: Path, ignored: Sequence[str]) -> None:
    for option, path in inputs_of(options):
        if option not in ignored and _lies_in(path, folder):
            raise OptionsError(
                f"name: {options.name}: {option} ({path}) lies in {folder}, which would be renamed or written over;"
                " give another name, or move what is read"
            )


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is, or leads to, a folder or something in it, by whatever names."""
    outer = os.path.realpath(folder)
    for part in (inner := Path(os.path.realpath(path)), *inner.parents):
        if str(part) == outer or (os.path.exists(part) and os.path.exists(outer) and os.path.samefile(part, outer)):
            return True
    return False


def _has(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.filter(names, pattern) for pattern in patterns)
