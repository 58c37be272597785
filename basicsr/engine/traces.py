"""Whether a run was in a folder before, so that `--auto_resume` begins anew only where none has saved anything.

A run that was stopped before its first checkpoint begins anew: its status.json says that none was saved. Everything
else that runs leave, without a training state to go on from, means that something is missing: a disk, a link's target,
files that were removed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from basicsr.config.schema import Options
from basicsr.engine.checkpoint import SUPERSEDED, is_network, names_in
from basicsr.engine.provenance import RECORD
from basicsr.engine.status import STATUS
from basicsr.utils.errors import CheckpointError
from basicsr.utils.text import printable

_SHOWN = 3


def refuse_new_start(options: Options) -> None:
    """Looks whether a run that found no checkpoint of its own may begin anew by itself.

    Raises:
        CheckpointError: a run was there and has saved, or what is there cannot be read.
    """
    folder = options.experiment_folder
    signs = list(_signs(folder, options.tensorboard_folder))
    if signs:
        shown = printable("; ".join(signs[:_SHOWN]))
        raise CheckpointError(
            f"{folder} has no training state to go on from, but a run was there ({shown}): mount or put back what is"
            " missing; to begin anew, move away what is there, or start without --auto_resume, which renames it"
        )


def newer_that_are_gone(folder: Path, iteration: int) -> list[str]:
    """What to say where a run has saved after the checkpoint that it goes on from, and nothing of that is there."""
    content = _json(folder / STATUS)
    saved = re.fullmatch(r"([0-9]{1,17})\.state", str(content.get("checkpoint")) if isinstance(content, dict) else "")
    if saved is None or int(saved[1]) <= iteration:
        return []
    if {saved[0], f"{saved[1]}.json"} & set(names_in(folder / "training_states")):
        return []  # it was looked at
    return [
        f"{STATUS} says that {saved[0]} was saved, which is not there; using {iteration}.state;"
        f" {int(saved[1]) - iteration} iterations redone"
    ]


def _signs(folder: Path, curves: Path) -> Iterator[str]:
    """What shows that a run has saved."""
    names, lines = ([name for name in names_in(at) if not name.startswith(".")] for at in (folder, curves))
    if not names:  # but for our locks
        if lines:
            yield f"{curves} has its curves"
        return
    models = names_in(folder / "models")
    yield from (f"models/{name}" for name in models if is_network(name) or name == "net_g_latest.pth")
    yield from (name for name in names if name.startswith(SUPERSEDED))
    if STATUS in names:
        yield from _of_status(folder / STATUS)
        yield from (f"{name} is not there" for name in ("models", "training_states") if name not in names)
    else:
        if RECORD in names:
            yield from _of_record(folder / RECORD)
        yield from (f"{name} is there, {STATUS} is not" for name in _made_while_running(names, models))


def _made_while_running(names: Sequence[str], models: Sequence[str]) -> list[str]:
    """What only a run makes that has written its status."""
    logs = [name for name in names if name.endswith(".log") or name in ("history.jsonl", "visualization")]
    return logs + [f"models/{name}" for name in models if name.endswith(".pth") and not name.startswith(".")]


def _of_status(file: Path) -> Iterator[str]:
    content = _json(file)
    if not isinstance(content, dict):
        yield f"{file.name} cannot be read"
    elif content.get("checkpoint") is not None:
        yield f"{file.name} says that {str(content['checkpoint'])[:100]} was saved"
    elif content.get("state") == "finished" or content.get("iteration") != 0:
        yield f"{file.name} says that it was {str(content.get('state'))[:20]}"


def _of_record(file: Path) -> Iterator[str]:
    content = _json(file)
    try:
        iterations = [start["iteration"] for start in content["starts"]]
    except (KeyError, TypeError):
        yield f"{file.name} cannot be read"
    else:
        if any(iteration != 0 for iteration in iterations):
            yield f"{file.name} says that it went on from iteration {str(iterations[-1])[:20]}"


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
