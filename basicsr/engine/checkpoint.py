"""Checkpoints of a run: what is saved, how it is committed, and which one a resume takes.

    experiments/NAME/models/net_g_ITER.pth              student: params, and params_ema with EMA
    experiments/NAME/models/net_d_ITER.pth              discriminator: params
    experiments/NAME/training_states/ITER.state         all else that training needs
    experiments/NAME/training_states/ITER.json          sizes and SHA-256 of these files

Files are first written under temporary names; the checkpoint exists once its JSON file has its own name, and then the
others get theirs. Wherever a process is killed, the checkpoint that was there is whole: the files that the JSON file
describes are found under one name or the other.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basicsr.engine.state_checks import StateMismatch, check_records
from basicsr.files.atomic_files import TEMPORARY, NoSpaceError, Staged, sha256_of, stage, sync_folder, write_atomically
from basicsr.files.torch_files import load_tensors
from basicsr.utils.errors import CheckpointError, LostRankError, NonFiniteError
from basicsr.utils.misc import size_of
from basicsr.utils.text import readable

FORMAT = 1
SUPERSEDED = "superseded"
_NETWORK = re.compile(r"net_[A-Za-z0-9]+_\d+\.pth")
_OURS = re.compile(r"\..+\.(pth|state|json|jsonl|yml)(\.\d+)?\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint as read from disk: the content of net_LABEL_ITER.pth by label, and of ITER.state."""

    iteration: int
    networks: dict[str, Any]
    state: dict[str, Any]
    path: Path


class DamagedCheckpointError(CheckpointError):
    """A checkpoint cannot be used; until `CheckpointFolder.load` names it, the message follows its name."""


class UnfitCheckpointError(CheckpointError):
    """A checkpoint is as it was written, but holds what no run writes; no older one is taken instead."""


class UnreadableFolderError(CheckpointError):
    """A folder exists but cannot be read, or a link leads nowhere, so that its content is unknown."""


class CheckpointFolder:
    """Writes and finds the checkpoints in experiments/NAME (`root`); keeps the `keep` newest, or all."""

    def __init__(self, root: Path, keep: int | None = None) -> None:
        self.models, self.states, self._keep = root / "models", root / "training_states", keep

    def save(self, iteration: int, networks: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, of tensors and plain values only, and returns the path of its state file.

        Raises CheckpointError where a file cannot be written; earlier checkpoints are untouched.
        """
        path = self.states / f"{iteration}.state"
        contents: dict[Path, Mapping[str, Any]] = {
            **{self.models / f"net_{label}_{iteration}.pth": content for label, content in networks.items()},
            path: {"format": FORMAT, "iteration": iteration, **state},
        }
        staged: list[Staged] = []  # the manifest last, once it is written
        try:
            for file, content in contents.items():
                staged.append(self._stage(file, content))
            named = {f"{entry.path.parent.name}/{entry.path.name}": entry for entry in staged}
            files = {name: {"sha256": entry.sha256, "bytes": entry.size} for name, entry in named.items()}
            manifest = json.dumps({"format": FORMAT, "iteration": iteration, "files": files}, indent=1).encode()
            at = self._manifest(iteration)
            staged.append(stage(at, _temporary(at), lambda file: file.write(manifest)))
            for entry in (staged[-1], *staged[:-1]):
                entry.commit()
            whole = [found for found in self._iterations() if self._manifest(found).exists()]
            too_old = [] if self._keep is None else whole[self._keep :]
            for old in too_old:
                for file in (*self._networks(old), self.states / f"{old}.state"):
                    file.unlink(missing_ok=True)
                self._manifest(old).unlink()  # last, so that what a killed process leaves is found the next time
        except BaseException as error:
            # Once the manifest has its name the checkpoint exists, and `tidy` completes what is left to do.
            if len(staged) <= len(contents) or staged[-1].temporary.exists():
                for entry in staged:
                    entry.discard()
            if isinstance(error, (CheckpointError, OSError)):
                raise self._cannot_save(path, size_of(contents), error) from error
            raise
        return path

    def save_named(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes models/net_g_NAME.pth ('best', 'latest') and returns its path."""
        path = self.models / f"net_g_{name}.pth"
        try:
            self._stage(path, content).commit()
        except (CheckpointError, OSError) as error:
            raise self._cannot_save(path, size_of(content), error) from error
        return path

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, or None where there is none at all, and a line for each newer damaged one.

        Raises CheckpointError where the folder cannot be read, none of its checkpoints is intact, or the newest intact
        one holds what no run writes.
        """
        faults: dict[int, str] = {}
        for iteration in self._iterations(strict=True):
            try:
                checkpoint = self._load(self.states / f"{iteration}.state")
            except UnfitCheckpointError:
                raise
            except CheckpointError as error:
                faults[iteration] = str(error)
                continue
            return checkpoint, [
                f"{damaged}.state {fault}; using {iteration}.state; {damaged - iteration} iterations redone"
                for damaged, fault in faults.items()
            ]
        if faults:
            newest, fault = next(iter(faults.items()))
            raise CheckpointError(
                f"no checkpoint in {self.states} is intact: {newest}.state {fault};"
                " start anew without --auto_resume, or from a network's weights by path: pretrain_network_g"
            )
        return None, []

    def load(self, path: Path) -> Checkpoint:
        """Reads a state file, and its networks from the `models` folder beside it.

        Raises CheckpointError where a file is missing, damaged, or was not written by this framework.
        """
        try:
            return self._load(path)
        except DamagedCheckpointError as error:
            advice = f"; saved states: {self._saved()}; --auto_resume takes the newest that is intact"
            if not os.path.isfile(path.with_suffix(".json")):
                advice = "; to start from a network's weights use path: pretrain_network_g"
            error.extend(before=f"{path} ", after=advice)
            raise

    def _load(self, path: Path) -> Checkpoint:
        manifest = path.with_suffix(".json")
        if not os.path.isfile(manifest):
            if not os.path.isfile(path):
                raise CheckpointError(f"resume_state {path} does not exist; saved states: {self._saved()}")
            raise DamagedCheckpointError(
                f"has no {manifest.name} beside it: not saved completely, or by BasicSR itself"
            )
        files = self._checked(path, manifest)
        try:  # SHA-256 was compared already
            read = {file: load_tensors(found, checksums=False) for file, found in files.items()}
        except (CheckpointError, OSError) as error:
            raise DamagedCheckpointError(f"cannot be read ({error})") from error
        state = read.pop(path)
        try:
            iteration = int(path.stem)
            check_records(state, iteration)
        except StateMismatch as error:
            raise UnfitCheckpointError(
                f"{path} cannot be used: {error}; put back the file that was saved, or remove it and go on from another"
            ) from error
        networks = {file.stem.split("_")[1]: content for file, content in read.items()}
        return Checkpoint(iteration, networks, state, path)

    def tidy(self, resumed: int | None) -> list[str]:
        """Completes what a killed process left, and moves what is later than iteration `resumed` to `superseded`.

        Later checkpoints are damaged, or of a course that the run leaves; left in place they would be taken for the
        run's newest. From `superseded` they can be resumed too. So can the best and latest weights of that course.
        Returns a line for each checkpoint that was moved; raises CheckpointError where files cannot be renamed.
        """
        remarks: list[str] = []
        try:
            for iteration in self._iterations(strict=True):
                self._complete(iteration)
                if resumed is not None and iteration > resumed:
                    manifest = self._manifest(iteration)
                    # The manifest last: with it goes the knowledge that there is something to move.
                    folder = self._set_aside(*self._networks(iteration), manifest.with_suffix(".state"), manifest)
                    remarks.append(f"{iteration}.state comes after {resumed}.state: moved to {folder}")
            for named in (self.models / f"net_g_{name}.pth" for name in ("best", "latest")):
                if resumed is not None and _trained_for(named) > resumed:
                    self._set_aside(named)
            for folder in (self.models.parent, self.models, self.states):
                for remains in folder.glob(TEMPORARY):
                    if remains.is_file() and _OURS.fullmatch(remains.name):
                        remains.unlink()
        except OSError as error:
            raise CheckpointError(f"cannot change {error.filename}: {error.strerror}") from error
        return remarks

    def restore_best(self, iteration: int) -> None:
        """Makes net_g_best.pth again from the checkpoint of the best iteration, where `tidy` moved it."""
        best, source = self.models / "net_g_best.pth", self.models / f"net_g_{iteration}.pth"
        if not best.exists() and source.is_file():
            content = source.read_bytes()
            write_atomically(best, lambda file: file.write(content))

    def holds(self, checkpoint: Checkpoint | None) -> bool:
        """Whether a checkpoint lies in this folder, by whatever path it was read."""
        return checkpoint is not None and os.path.realpath(checkpoint.path.parent) == os.path.realpath(self.states)

    def check_space(self, needed: int) -> None:
        """Raises NoSpaceError where a checkpoint of `needed` bytes has no room."""
        folder = self.states.absolute()
        free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
        if needed > free:
            raise NoSpaceError(self._no_room(f"a checkpoint in {self.states.parent}", needed, free))

    @contextmanager
    def named_in_failures(self) -> Iterator[None]:
        """Adds to errors within the block from which checkpoint the run can go on."""
        try:
            yield
        except (LostRankError, NonFiniteError) as error:
            error.extend(after=f"; last good: {self._last()}")
            raise

    def _stage(self, path: Path, content: Mapping[str, Any]) -> Staged:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot save {path}: {error.strerror}") from error
        return stage(path, _temporary(path), lambda file: torch.save(_shared(dict(content)), file))

    def _cannot_save(self, path: Path, needed: int, error: Exception) -> CheckpointError:
        if isinstance(error, NoSpaceError):
            return NoSpaceError(self._no_room(path.name, needed, shutil.disk_usage(path.parent).free))
        reason = error.strerror if isinstance(error, OSError) else str(error).rpartition(": ")[2]
        return CheckpointError(f"cannot save {path}: {reason}; last good: {self._last()}")

    def _no_room(self, what: str, needed: int, free: int) -> str:
        room = f"{readable(free)} free"
        if free >= needed:
            room += ", but a quota or a limit on the size of files is reached"
        return f"cannot save {what}: needs {readable(needed)}, {room}; last good: {self._last()}"

    def _checked(self, path: Path, manifest_path: Path) -> dict[Path, Path]:
        """Compares a checkpoint's files with the manifest's checksums; returns where each of them is found."""
        try:
            manifest = json.loads(manifest_path.read_text("utf-8"))
            files: dict[str, Any] = manifest["files"]
            wanted = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
        except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError, AttributeError) as error:
            raise DamagedCheckpointError(f"is damaged ({manifest_path.name} cannot be read)") from error
        if manifest.get("format") != FORMAT:
            raise DamagedCheckpointError(f"is of format {manifest.get('format')}, this version reads {FORMAT}")
        listed = f"{path.parent.name}/{path.name}" in wanted
        if str(manifest.get("iteration")) != path.stem or not path.stem.isdigit() or not listed:
            raise DamagedCheckpointError(f"is damaged ({manifest_path.name} is not of iteration {path.stem})")
        root, found = path.parent.parent, {}
        for name, (size, digest) in wanted.items():
            folder, _, file = name.partition("/")
            ours = _NETWORK.fullmatch(file) if folder == "models" else file.endswith(".state")
            if folder not in ("models", "training_states") or "/" in file or "\0" in file or not ours:
                raise DamagedCheckpointError(
                    f"is damaged ({manifest_path.name} names the file {name!r}, which is none of a checkpoint's)"
                )
            candidates = [file for file in (root / name, _temporary(root / name)) if os.path.isfile(file)]
            if not candidates:
                names_in((root / name).parent)  # a file is missing only where its folder can be read
                raise DamagedCheckpointError(f"is not complete ({name} is missing)")
            where = "" if root / name == path else f" of {name}"
            try:
                intact = next((file for file in candidates if _is_intact(file, size, digest)), None)
            except OSError as error:
                raise DamagedCheckpointError(f"cannot be read ({error.strerror}{where})") from error
            if intact is None:
                raise DamagedCheckpointError(f"is damaged (SHA-256{where})")
            found[root / name] = intact
        return found

    def _complete(self, iteration: int) -> None:
        """Gives the files of a committed checkpoint their names, where its process did not come to that."""
        path = self.states / f"{iteration}.state"
        if not any(_temporary(file).exists() for file in (path, *self._networks(iteration))):
            return
        with suppress(DamagedCheckpointError):
            for file, at in self._checked(path, path.with_suffix(".json")).items():
                if at != file:
                    at.replace(file)
            sync_folder(self.models)
            sync_folder(self.states)

    def _set_aside(self, *files: Path) -> Path:
        """Moves files to a folder where none of them is yet, and returns it."""
        there = [file for file in files if file.exists()]
        root = self.models.parent
        names = (f"{SUPERSEDED}{suffix}" for suffix in ("", *(f"_{number}" for number in range(2, 1000))))
        chosen = next(
            root / name
            for name in names
            if not any((root / name / file.parent.name / file.name).exists() for file in there)
        )
        for file in there:
            (chosen / file.parent.name).mkdir(parents=True, exist_ok=True)
            file.replace(chosen / file.parent.name / file.name)
        return chosen

    def _manifest(self, iteration: int) -> Path:
        return self.states / f"{iteration}.json"

    def _networks(self, iteration: int) -> list[Path]:
        """The network files of a checkpoint, also those that have their temporary names still."""
        named = {file.name for file in self.models.glob(f"net_*_{iteration}.pth")}
        staged = {file.name[1:].removesuffix(".tmp") for file in self.models.glob(f".net_*_{iteration}.pth.tmp")}
        return [self.models / name for name in sorted(named | staged) if _NETWORK.fullmatch(name)]

    def _iterations(self, *, strict: bool = False) -> list[int]:
        """Of all checkpoints, whole or not, the newest first; raises CheckpointError where `strict` and unreadable."""
        try:
            names = names_in(self.states)
        except CheckpointError:
            if strict:
                raise
            names = []
        stems = {Path(name).stem for name in names if name.endswith((".json", ".state"))}
        return sorted((int(stem) for stem in stems if stem.isascii() and stem.isdigit()), reverse=True)

    def _last(self) -> str:
        """The newest checkpoint whose files are there; they are not compared with their checksums."""
        for iteration in self._iterations():
            state = self.states / f"{iteration}.state"
            if self._manifest(iteration).exists() and (state.exists() or _temporary(state).exists()):
                return state.name
        return "none"

    def _saved(self) -> str:
        return ", ".join(f"{iteration}.state" for iteration in reversed(self._iterations()[:5])) or "none"


def names_in(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it is missing. Raises UnreadableFolderError."""
    try:
        names = sorted(os.listdir(folder))
        if not os.access(folder, os.X_OK):  # names can be read then, and nothing behind them
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return names
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(folder):
            return []
        what = f"it is a link to {os.readlink(folder)}: " if os.path.islink(folder) else ""
        raise UnreadableFolderError(
            f"cannot read {folder} ({what}{error.strerror}); mend that, or mount its disk"
        ) from error


def is_network(name: str) -> bool:
    """Whether a file name is that of a network in a checkpoint, such as net_g_20.pth."""
    return _NETWORK.fullmatch(name) is not None


def _shared(content: Any) -> Any:
    """The same content in which equal texts are one object, or a resumed run's pickles would differ in some bytes."""
    if type(content) is str:
        return sys.intern(content)
    if type(content) is dict:
        return {_shared(key): _shared(value) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(map(_shared, content))
    return content


def _trained_for(weights: Path) -> int:
    """After how many iterations a file of weights was written; 0 where that is unknown."""
    try:
        content = load_tensors(weights) if weights.is_file() else {}
        return int(content["training"]["iteration"])
    except (CheckpointError, OSError, KeyError, TypeError, ValueError):
        return 0


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _is_intact(file: Path, size: int, digest: str) -> bool:
    return file.stat().st_size == size and sha256_of(file) == digest
