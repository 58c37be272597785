"""experiments/NAME/record.json: what a run was made from, so that its result can be traced to files and versions."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import basicsr
from basicsr.data.teacher_cache import MANIFEST
from basicsr.engine.checkpoint import Checkpoint
from basicsr.engine.run_folders import texts_in
from basicsr.utils.atomic_files import sha256_of, write_atomically
from basicsr.utils.errors import CheckpointError
from basicsr.utils.options_schema import Options, thaw
from basicsr.utils.regular_files import read_regular

if TYPE_CHECKING:
    from basicsr.engine.training_run import TrainingRun

RECORD = "record.json"
_SECTIONS = ("path", "train", "network_g", "network_t", "network_d")
TEACHER_CACHE = "datasets.train.teacher_cache"
_NO_WEIGHTS = ("path.resume_state", "path.experiments_root", "path.results_root")


def weights_read(options: Options) -> dict[str, str]:
    """SHA-256 of each file of weights that the options name, by the option: teachers', VGG's, those to start from.

    Of a teacher's cache it is that of its list, which has those of the outputs.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return {option: digest_of_file(file) for option, file in _files(options).items()}


def write_record(run: TrainingRun, resume: Checkpoint | None) -> None:
    """Writes the record of a new run, or adds to it that the run goes on; on rank 0.

    Args:
        run: its folder is there.
        resume: the checkpoint that the run goes on from.

    Raises:
        CheckpointError: it cannot be written.
    """
    options = run.options
    path = options.experiment_folder / RECORD
    start: dict[str, Any] = {
        "at": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "iteration": resume.iteration if resume is not None else 0,
        "command": sys.argv,
        "versions": {"basicsr": basicsr.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "host": platform.node(),
        "device": str(run.place.device),
        "ranks": run.place.world_size,
        "precision": {**run.precision.kept(), "chosen": run.precision.told or "by the options"},
        "images": run.images,
        "weights": {
            option: {"file": str(file), "sha256": run.files[option]} for option, file in _files(options).items()
        },
    }
    starts = [*(_earlier(path) if resume is not None else []), start]
    content = json.dumps({"name": options.name, "starts": starts}, indent=1).encode()
    write_atomically(path, lambda file: file.write(content))


def _files(options: Options) -> dict[str, Path]:
    found = {}
    for section in _SECTIONS:
        for option, value in texts_in(thaw(getattr(options, section)), section):
            if option not in _NO_WEIGHTS and not option.endswith(".type") and Path(value).is_file():
                found[option] = Path(value)
    if options.teacher_cache is not None and (manifest := Path(options.teacher_cache) / MANIFEST).is_file():
        found[TEACHER_CACHE] = manifest
    return found


def digest_of_file(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal, remembered while the file is unchanged.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        found = file.stat()
        return _known_digest(file, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error


@lru_cache(maxsize=32)
def _known_digest(file: Path, size: int, changed: int) -> str:
    return sha256_of(file)


def _earlier(path: Path) -> list[Any]:
    try:
        starts = json.loads(read_regular(path))["starts"]
        return starts if isinstance(starts, list) else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
