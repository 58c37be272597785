"""What a run of compress.py has done: a manifest of its steps, each by a key of what it was made from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from basicsr.files.atomic_files import sha256_of
from basicsr.files.regular_files import read_regular
from basicsr.report.tables import write_text
from basicsr.utils.errors import DataError

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Step:
    """A step that is done.

    Attributes:
        key: SHA-256 of `made_from`.
        made_from: digests of its inputs, its options, the version of its code.
        result: its figures.
        files: SHA-256 of what it left, by paths in the folder.
        seconds: that it took, all attempts together.
        finished: date and time.
    """

    key: str
    made_from: Mapping[str, Any]
    result: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    finished: str = ""


@dataclass(frozen=True)
class Manifest:
    """All steps that are done, by name, the seconds of unfinished ones, and what trainings were begun with."""

    format: int = _FORMAT
    steps: Mapping[str, Step] = field(default_factory=dict)
    begun: Mapping[str, float] = field(default_factory=dict)
    courses: Mapping[str, str] = field(default_factory=dict)


class Steps:
    """The steps of a run.

    Args:
        folder: of the run; `manifest.json` lies there.

    Raises:
        DataError: the manifest is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / MANIFEST
        self._manifest = _read(self._file)
        self.used: list[str] = []

    def do(
        self,
        name: str,
        made_from: Mapping[str, Any],
        work: Callable[[], tuple[Mapping[str, Any], Sequence[Path]]],
        same: Callable[[Mapping[str, Any]], bool] = lambda before: False,
    ) -> Mapping[str, Any]:
        """The result of a step: what is kept of it where it was made from the same, else what `work` gives now.

        Args:
            name: of the step.
            made_from: JSON of all that the result depends on.
            work: does it, and returns its result as JSON, and the files in the folder that it left.
            same: as of `kept`.
        """
        if (kept := self.kept(name, made_from, same)) is not None:
            return kept
        started = time.monotonic()
        key = key_of(made_from)
        before = self._manifest.begun.get(f"{name} {key}", 0.0)
        try:
            result, files = work()
        except BaseException:
            self.spend(name, made_from, time.monotonic() - started)
            raise
        seconds = before + time.monotonic() - started
        digests = {str(path.relative_to(self.folder)): sha256_of(path) for path in files_in(files)}
        done = Step(key, made_from, result, digests, round(seconds, 1), time.strftime("%Y-%m-%d %H:%M:%S"))
        begun = {other: spent for other, spent in self._manifest.begun.items() if not other.startswith(f"{name} ")}
        self._write(replace(self._manifest, steps={**self._manifest.steps, name: done}, begun=begun))
        self.used.append(name)
        return result

    def kept(
        self, name: str, made_from: Mapping[str, Any], same: Callable[[Mapping[str, Any]], bool] = lambda before: False
    ) -> Mapping[str, Any] | None:
        """The result of a step that was made from the same and whose files are there unchanged; else None.

        `same` may find so of what it was made from then, where that differs.
        """
        step = self._manifest.steps.get(name)
        if step is None or (step.key != key_of(made_from) and not same(step.made_from)):
            return None
        for relative, digest in step.files.items():
            path = self.folder / relative
            if not path.is_file() or sha256_of(path) != digest:
                return None
        self.used.append(name)
        return step.result

    def spend(self, name: str, made_from: Mapping[str, Any], seconds: float) -> None:
        """Adds to the time that a step has taken so far."""
        attempt = f"{name} {key_of(made_from)}"
        spent = self._manifest.begun.get(attempt, 0.0) + seconds
        self._write(replace(self._manifest, begun={**self._manifest.begun, attempt: round(spent, 1)}))

    def __getitem__(self, name: str) -> Step:
        return self._manifest.steps[name]

    def course(self, training: str) -> str:
        """What a training was begun with, as JSON; empty where it never was."""
        return self._manifest.courses.get(training, "")

    def begin(self, training: str, course: str) -> None:
        """Notes what a training begins with, as JSON, before it does."""
        if self.course(training) != course:
            self._write(replace(self._manifest, courses={**self._manifest.courses, training: course}))

    def _write(self, manifest: Manifest) -> None:
        write_text(self._file, json.dumps(asdict(manifest), indent=1) + "\n")
        self._manifest = manifest


def key_of(made_from: Mapping[str, Any]) -> str:
    """SHA-256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def files_in(paths: Sequence[Path]) -> list[Path]:
    """Files, and those in folders."""
    inside = (sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths)
    return [file for found in inside for file in found if file.is_file()]


def _read(file: Path) -> Manifest:
    try:
        found = TypeAdapter(Manifest).validate_python(json.loads(read_regular(file)))
    except FileNotFoundError:
        return Manifest()
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file} cannot be read; remove it, and all steps are done anew") from error
    if found.format != _FORMAT:
        raise DataError(f"{file} is of another version of this command; give the run another name")
    return found
