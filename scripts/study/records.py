"""How far each run of a study is: what is kept of it beside its experiment folder, and what its folder holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import TypeAdapter

from basicsr.config.load import resolved_yaml, todays_text
from basicsr.config.schema import Options, flat
from basicsr.data import build_eval_dataset
from basicsr.engine.inputs import digest_of_file
from basicsr.engine.logs.run_log import STATUS
from basicsr.engine.precision_choice import settled
from basicsr.files.regular_files import read_regular
from basicsr.files.run_history import HISTORY, ITERATION, read_history
from basicsr.models import build_model, recognise_networks
from basicsr.report.tables import write_text
from basicsr.utils.errors import DataError, OptionsError, UserError
from basicsr.utils.randomness import seed_everything
from basicsr.utils.timing import spread
from study.plan import Run, Study

State = Literal["start", "resume", "done"]
_METRICS = "metrics/"
_SECONDS = "time/iteration"


@dataclass(frozen=True)
class Record:
    """What is kept of a run.

    Attributes:
        status: `started` until it has ended.
        teacher: SHA-256 of its teacher's file; None where it has none.
        initial: SHA-256 of the student that it starts from; None where it could not be built.
        owns_student: whether a term of the method gives the student its weights, from the first step.
        threads: how many each of its processes computes with.
        jobs: how many trainings ran at a time.
        values: figures after the last iteration by dataset and metric; empty unless done.
        seconds: per iteration, median over the lines of its log; None unless done.
        middle: between which seconds the middle half of these lines is; None where that is not known.
        images: how many the figures are averages over, by dataset.
        error: why it failed, in a line.
    """

    status: Literal["started", "done", "failed"]
    teacher: str | None = None
    initial: str | None = None
    owns_student: bool = False
    threads: int = 1
    jobs: int = 1
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float | None = None
    middle: Sequence[float] | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


def weights_of(options: Options) -> Path:
    """Where a finished training leaves its network."""
    return options.models_folder / "net_g_latest.pth"


def record_file(study: Study, run: Run) -> Path:
    """Where a run's record lies."""
    return study.folder / "records" / f"{run.method}_seed{run.seed}.json"


def read_record(study: Study, run: Run) -> Record | None:
    """A run's record; None where it has never been started.

    Raises:
        DataError: the file is damaged.
    """
    path = record_file(study, run)
    try:
        return TypeAdapter(Record).validate_python(json.loads(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read; remove it, and its run starts anew") from error


def write_record(study: Study, run: Run, record: Record) -> None:
    """Keeps a run's record, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    path = record_file(study, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def state_of(study: Study, run: Run) -> tuple[State, Record | None]:
    """What is left to do of a run, and its record.

    An unfinished run goes on if options and teacher are those that it was started with, else starts anew.

    Raises:
        OptionsError: it is finished, with other options or another teacher than now, or its folder has gone.
        DataError: its record or its options are damaged.
    """
    record = read_record(study, run)
    kept = kept_options(run.options)
    if record is not None and record.status == "done" and kept is None:
        raise OptionsError(
            f"{run.label} of study {study.name} is finished, but {run.options.experiment_folder} is not there: mount or"
            f" put back what is missing; to train it anew remove {record_file(study, run)}"
        )
    if record is None or kept is None:
        return "start", record
    finished = record.status == "done" and weights_of(run.options).is_file()
    changes = _changes(kept, run.options)
    if teacher_digest(run) != record.teacher:
        changes.append(f"another teacher, {run.teacher}, whose SHA-256 is no longer {record.teacher}")
    if finished and changes:
        raise OptionsError(
            f"{run.label} of study {study.name} is finished, and was trained otherwise: {changes[0]}; put it back, or"
            " give another --name"
        )
    return "done" if finished else "start" if changes else "resume", record


def kept_options(options: Options) -> str | None:
    """The options in the folder of a training, without the line of versions; None where it was never started."""
    kept = options.experiment_folder / f"{options.name}.yml"
    try:
        return todays_text(kept.read_text("utf-8").partition("\n")[2]) if kept.is_file() else None
    except (OSError, UnicodeError) as error:
        raise _damaged(kept) from error


def _damaged(file: Path) -> DataError:
    return DataError(
        f"{file} cannot be read, and says how its run was trained; put it back, or move its folder away to train anew"
    )


def _changes(kept: str, options: Options) -> list[str]:
    if kept == resolved_yaml(options):
        return []
    try:
        before, after = (flat(yaml.safe_load(text)) for text in (kept, resolved_yaml(options)))
    except (yaml.YAMLError, AttributeError) as error:
        raise _damaged(options.experiment_folder / f"{options.name}.yml") from error
    return [
        f"{key} was {before.get(key, 'not set')}, is {after.get(key, 'not set')}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ] or ["the order of its options"]


def teacher_digest(run: Run) -> str | None:
    """SHA-256 of the file of the run's teacher, if it has one."""
    if run.teacher is None or not run.teacher.is_file():
        return None
    return digest_of_file(run.teacher)


def initial_student(options: Options) -> tuple[str, bool]:
    """Builds what train.py builds, on the CPU, up to its first step.

    Returns:
        SHA-256 of the student's names, types, shapes and values, and whether a term gives it its weights.

    Raises:
        UserError: a network, a term or a file of weights does not fit.
    """
    recognised, _ = recognise_networks(settled(options, {"amp": "none", "amp_teacher": "none"}))
    seed_everything(recognised.manual_seed)
    model, _ = build_model(recognised, torch.device("cpu"))
    digest = hashlib.sha256()
    for name, value in sorted(model.network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    owns = any(bool(term.replaces_student) for term in model.terms.values())
    return digest.hexdigest(), owns


def progress_of(options: Options, process: int | None = None) -> int:
    """The last iteration that a training has logged or, of the process that runs it, noted in its status."""
    logged = _logged(options)
    try:
        status = json.loads(read_regular(options.experiment_folder / STATUS))
        return max(logged, int(status["reached"])) if status["pid"] == process else logged
    except (OSError, ValueError, KeyError, TypeError):
        return logged


def _logged(options: Options) -> int:
    path = options.experiment_folder / HISTORY
    try:
        if not path.is_file():  # a pipe would be waited for
            return 0
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().split(b"\n")[:-1]  # what follows the last line's end is not complete
        return int(json.loads(lines[-1])[ITERATION])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return 0


def saved_at(options: Options) -> int:
    """The iteration of a training's newest checkpoint; 0 where there is none."""
    stems = [path.stem for path in options.training_states_folder.glob("*.json")]
    return max((int(stem) for stem in stems if stem.isdigit()), default=0)


def outcome_of(options: Options) -> dict[str, Any] | None:
    """What a `Record` says of a training that is done: `values`, `seconds`, `middle` and `images`.

    The first line of the log is left out of the median where there are more: it has what happens once.

    Returns:
        None where the training has not come to its end, or its figures are not there.

    Raises:
        DataError: the history is damaged.
    """
    path = options.experiment_folder / HISTORY
    if not weights_of(options).is_file() or not path.is_file():
        return None
    history = read_history(path)
    values: dict[str, dict[str, float]] = {}
    for entry in history:
        if entry[ITERATION] == options.train.total_iter:
            _collect(entry, options, values)
    seconds = [entry[_SECONDS] for entry in history if _SECONDS in entry]
    if not values or not seconds:
        return None
    images = {}
    with suppress(UserError):  # a set that has gone since says nothing of a training that is done
        images = {block.name: len(build_eval_dataset(block)) for block in options.datasets_of("val").values()}
    took = spread(seconds[1:] or seconds)
    return {"values": values, "seconds": took.median, "middle": [took.low, took.high], "images": images}


def _collect(entry: Mapping[str, Any], options: Options, values: dict[str, dict[str, float]]) -> None:
    for dataset in (block.name for block in options.datasets_of("val").values()):
        for metric in options.val.metrics:
            if (key := f"{_METRICS}{dataset}/{metric}") in entry:
                values.setdefault(dataset, {})[metric] = float(entry[key])
