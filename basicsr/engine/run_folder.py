"""The folders that a command writes: which it may take, how it makes them, and how it keeps other programs out.

A run that starts anew renames the folder of an earlier run of its name. It renames nothing else: no folder that it
reads from, and none that does not look like a run's. Two programs that write the same folder would ruin both.
"""

from __future__ import annotations

import datetime
import errno
import fnmatch
import glob
import json
import math
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

import basicsr
from basicsr.archs.vgg_arch import WEIGHTS_FOLDER
from basicsr.config.load import resolved_yaml
from basicsr.config.schema import Options, thaw
from basicsr.data.checks.notes import cache_folder
from basicsr.engine.checkpoint import Checkpoint, CheckpointFolder, names_in
from basicsr.engine.inputs import input_files, texts_in
from basicsr.files.atomic_files import check_writable, write_atomically
from basicsr.files.regular_files import read_regular
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
RECORD = "record.json"
LOCK = ".lock"
"""Name of the lock in a folder."""
_SECONDS = 0.5  # a process that was killed holds its lock until its last child has gone
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY)
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
    _write_record(run)
    coming = math.ceil((options.train.total_iter - run.iteration) / options.logger.save_checkpoint_freq)
    needed = size * min(coming, (options.logger.keep_checkpoints or coming) + 1)
    if needed > (free := shutil.disk_usage(folder).free):
        remarks.append(
            f"the run's checkpoints need {readable(needed)}, {readable(size)} each, and {readable(free)} are free: free"
            " space, or set logger: keep_checkpoints"
        )
    return remarks


def _write_record(run: TrainingRun) -> None:
    """Writes what a run was made from, so that its result can be traced; adds to it where the run goes on."""
    path = run.options.experiment_folder / RECORD
    files = {option: str(file) for option, file in input_files(run.options).items()}
    start = {
        "at": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "iteration": run.iteration,
        "command": sys.argv,
        "versions": {"basicsr": basicsr.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "host": platform.node(),
        "device": str(run.rank_info.device),
        "ranks": run.rank_info.world_size,
        "precision": {**run.precision.kept(), "chosen": run.precision.reason or "by the options"},
        "images": run.images,
        "weights": {option: {"file": files[option], "sha256": digest} for option, digest in run.files.items()},
    }
    earlier: Any = []
    if run.iteration:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            earlier = json.loads(read_regular(path))["starts"]
    starts = [*earlier, start] if isinstance(earlier, list) else [start]
    content = json.dumps({"name": run.options.name, "starts": starts}, indent=1).encode()
    write_atomically(path, lambda file: file.write(content))


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


@contextmanager
def owned(folders: Sequence[Path], doing: str = "trains there") -> Iterator[Callable[[], None]]:
    """Holds `folders` against other processes, on all ranks; yields what to call after they were made anew."""
    with ExitStack() as held:
        locks: list[FolderLock] = []

        def take() -> None:
            locks.extend(held.enter_context(FolderLock(folder, doing)) for folder in folders)

        def take_again() -> None:
            for lock in locks:
                lock.take_inside()

        on_master(take)
        yield lambda: on_master(take_again)


class FolderLock(ExitStack):
    """Holds a folder until it is closed, by whatever path others reach it; `doing` tells them what its owner does.

    One lock is a file beside the folder that links lead to, since the folder may be missing or be renamed; another one
    lies in the folder, and is the same through a bind mount. The operating system frees both when the process ends. If
    the file system has no locks, as some network disks, their existence is the lock: the next process on the same
    machine removes what a killed one has left, and names one on another machine.

    Raises:
        CheckpointError: another process holds it, nothing can be written there, or it lies behind a broken link.
    """

    def __init__(self, folder: Path, doing: str) -> None:
        super().__init__()
        self._folder, self._doing = folder, doing
        self._inside: set[tuple[int, int]] = set()
        for part in (folder, *folder.parents):
            if os.path.islink(part) and not os.path.exists(part):
                raise CheckpointError(
                    f"{part} is a link to {os.readlink(part)}, which is not there; mount its disk, or remove the link"
                )
        real = Path(os.path.realpath(folder))
        beside = real.with_name(f".{real.name}.lock")
        try:
            if not beside.parent.exists():
                beside.parent.mkdir(parents=True, exist_ok=True)
                self.callback(_remove_if_empty, beside.parent)
            self._take(beside, folder.parent)
            self.take_inside()
        except BaseException as error:
            self.close()
            if not isinstance(error, OSError):
                raise
            raise CheckpointError(f"cannot write {folder.parent}: {error.strerror or error}") from error

    def take_inside(self) -> None:
        """Holds the folder itself, if it is there; to be called again when it was made anew."""
        if not self._folder.is_dir():
            return
        real = Path(os.path.realpath(self._folder))
        found = real.stat()
        if (found.st_dev, found.st_ino) not in self._inside:
            self._take(real / LOCK, self._folder)
            self._inside.add((found.st_dev, found.st_ino))

    def _take(self, file: Path, shown: Path) -> None:
        held = Path(f"{file}.held")
        left = _owner_in(held)
        lock: BaseFileLock = FileLock(file, timeout=_SECONDS, fallback_to_soft=False)
        try:
            try:
                lock.acquire()
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                lock = SoftFileLock(held, timeout=_SECONDS)
                lock.acquire()
            if not isinstance(lock, SoftFileLock):
                file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        except Timeout as error:
            owner = _owner_in(Path(lock.lock_file)) or "another process"
            advice = "wait for it, stop it, or give another name"
            if isinstance(lock, SoftFileLock):
                advice += f"; if it has gone, remove {lock.lock_file}"
            raise CheckpointError(f"{self._folder} is in use: {owner} {self._doing}; {advice}") from error
        except OSError as error:
            raise CheckpointError(f"cannot write {shown}: {error.strerror or error}") from error
        if isinstance(lock, SoftFileLock) and left is not None:
            get_root_logger().warning(f"{self._folder}: took over the lock of {left}, which has gone")
        # By its folder's handle: the folder may have been renamed by then.
        self.callback(_let_go, lock, os.open(file.parent, os.O_RDONLY))


def _owner_in(file: Path) -> str | None:
    """Who wrote a lock's file: 'process 12 on node3'."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace")[:400].splitlines()
    except OSError:
        return None
    if len(lines) >= 2 and lines[0].isdigit():  # as filelock writes it
        return printable(f"process {lines[0]} on {lines[1].partition('?')[0]}")
    return printable(lines[0]) if lines else None


def _let_go(lock: BaseFileLock, folder: int) -> None:
    with suppress(OSError):
        os.unlink(os.path.basename(lock.lock_file), dir_fd=folder)  # while it is held: nobody can have made it anew
    os.close(folder)
    with suppress(OSError):
        lock.release()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
