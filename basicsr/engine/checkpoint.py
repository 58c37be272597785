"""Checkpoints of a run: what is saved, how it is committed, and which one a resume takes.

    experiments/NAME/models/net_g_ITER.pth              student: params, and params_ema with EMA
    experiments/NAME/models/net_d_ITER.pth              discriminator: params
    experiments/NAME/training_states/ITER.state         all else that training needs
    experiments/NAME/training_states/ITER.json          sizes and SHA-256 of these files

The JSON file is written last: a checkpoint exists once it is there, and files without one are remains of a crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from basicsr.utils.errors import CheckpointError
from basicsr.utils.safe_files import load_tensors, sha256_of, write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint as read from disk.

    Attributes:
        iteration: after which it was saved.
        networks: content of net_LABEL_ITER.pth by label ('g', 'd').
        state: content of ITER.state.
        path: of the state file.
    """

    iteration: int
    networks: dict[str, Any]
    state: dict[str, Any]
    path: Path


class CheckpointFolder:
    """Writes and finds the checkpoints of one run.

    Args:
        root: experiments/NAME.
        keep: how many to keep; the oldest are deleted. None keeps all.
    """

    def __init__(self, root: Path, keep: int | None = None) -> None:
        self.models, self.states, self._keep = root / "models", root / "training_states", keep

    def save(self, iteration: int, networks: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and returns the path of its state file.

        Args:
            iteration: number of finished iterations.
            networks: for each label the content of its net_LABEL file.
            state: tensors and plain values only.

        Raises:
            CheckpointError: a file cannot be written. Earlier checkpoints are untouched.
        """
        files: dict[str, dict[str, Any]] = {}
        for label, content in networks.items():
            self._write(self.models / f"net_{label}_{iteration}.pth", content, files)
        path = self.states / f"{iteration}.state"
        self._write(path, {"format": FORMAT, "iteration": iteration, **state}, files)
        manifest = json.dumps({"format": FORMAT, "iteration": iteration, "files": files}, indent=1).encode()
        write_atomically(path.with_suffix(".json"), lambda file: _write_all(file, manifest))
        self._prune()
        return path

    def save_named(self, name: str, content: Mapping[str, Any]) -> Path:
        """Writes models/net_g_NAME.pth ('best', 'latest') and returns its path."""
        path = self.models / f"net_g_{name}.pth"
        self._write(path, content, {})
        return path

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is intact, and a line for each newer one that is not."""
        remarks: list[str] = []
        for path in sorted(self.states.glob("*.state"), key=_iteration_of, reverse=True):
            if _iteration_of(path) < 0:
                continue
            try:
                return self.load(path), remarks
            except CheckpointError as error:
                remarks.append(str(error))
        return None, remarks

    def load(self, path: Path) -> Checkpoint:
        """Reads the checkpoint of a state file, its networks from the `models` folder beside it.

        Raises:
            CheckpointError: a file is missing, damaged, or was not written by this framework.
        """
        if not path.is_file():
            raise CheckpointError(f"resume_state {path} does not exist; saved states: {self._saved()}")
        manifest_path = path.with_suffix(".json")
        if not manifest_path.is_file():
            raise CheckpointError(
                f"{path} has no {manifest_path.name} beside it: it was not saved completely, or by BasicSR itself;"
                " to start from a network's weights use path: pretrain_network_g"
            )
        files = self._check(manifest_path, path.parent.parent)
        state = load_tensors(path)
        labels = {name: Path(name).stem.split("_")[1] for name in files if name.startswith("models/")}
        networks = {label: load_tensors(path.parent.parent / name) for name, label in labels.items()}
        return Checkpoint(int(state["iteration"]), networks, state, path)

    def _check(self, manifest_path: Path, root: Path) -> dict[str, Any]:
        """Compares the files with the manifest's checksums."""
        try:
            manifest = json.loads(manifest_path.read_text("utf-8"))
            files: dict[str, Any] = manifest["files"]
            wanted = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{manifest_path} is damaged") from error
        if manifest.get("format") != FORMAT:
            raise CheckpointError(f"{manifest_path} has format {manifest.get('format')}, this version reads {FORMAT}")
        for name, (size, digest) in wanted.items():
            file = root / name
            if not _is_ours(name):
                raise CheckpointError(f"{manifest_path} names the file '{name}', which is none of a checkpoint's")
            if not file.is_file():
                raise CheckpointError(f"{file} is missing, {manifest_path.name} lists it")
            if file.stat().st_size != size or sha256_of(file) != digest:
                raise CheckpointError(f"{file} is damaged (SHA-256 differs from {manifest_path.name})")
        return files

    def _write(self, path: Path, content: Mapping[str, Any], files: dict[str, dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, size = write_atomically(path, lambda file: torch.save(dict(content), file))
        files[f"{path.parent.name}/{path.name}"] = {"sha256": digest, "bytes": size}

    def _prune(self) -> None:
        if self._keep is None:
            return
        complete = sorted((p for p in self.states.glob("*.json") if _iteration_of(p) >= 0), key=_iteration_of)
        for manifest in complete[: -self._keep]:
            iteration = _iteration_of(manifest)
            manifest.unlink()
            manifest.with_suffix(".state").unlink(missing_ok=True)
            for network in self.models.glob(f"net_*_{iteration}.pth"):
                network.unlink()

    def _saved(self) -> str:
        names = [path.name for path in sorted(self.states.glob("*.state"), key=_iteration_of)]
        return ", ".join(names[-5:]) or "none"


def _write_all(file: Any, content: bytes) -> None:
    file.write(content)


def _iteration_of(path: Path) -> int:
    return int(path.stem) if path.stem.isdigit() else -1


def _is_ours(name: str) -> bool:
    folder, _, file = name.partition("/")
    return folder in ("models", "training_states") and "/" not in file and file not in ("", ".", "..")
