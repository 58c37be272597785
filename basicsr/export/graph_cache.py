"""Graphs of checkpoints, made once and kept: ONNX files that runtimes load, and what tiles must know of the network.

A graph lies in the cache folder (`BASICSR_CACHE`, by default ${XDG_CACHE_HOME:-~/.cache}/basicsr), under `graphs`, in a
folder named by what it was made from: the checkpoint's bytes, the scale and weights chosen, the code, the versions of
the exporter. It may be deleted at any time. Graphs are made in a process of their own, which frees its memory and can
be ended, and appear whole; of processes that want the same graph one makes it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from basicsr.export.base import Student
    from basicsr.export.tracing import Precision
    from basicsr.weights.recognise import Pretrained

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from filelock import FileLock, Timeout

from basicsr.data.checks.notes import cache_folder
from basicsr.files.atomic_files import sha256_of
from basicsr.utils.errors import CheckpointError, MachineError, UserError
from basicsr.utils.process_settings import end_with_parent, shorten_spinning
from basicsr.utils.text import first_line

_FORMAT = 1  # of an entry; another number makes all graphs anew
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
_ABOUT, _REFUSED = "about.json", "refused.txt"
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class GraphKey:
    """What a graph is made from; `param_key` and `scale` as of `load_pretrained`."""

    checkpoint: Path
    param_key: str | None = None
    scale: int | None = None
    precision: str = "float32"

    def digest(self) -> str:
        """Another one wherever the graph may be another one."""
        made_of = {
            "format": _FORMAT,
            "checkpoint": sha256_of(self.checkpoint),
            "code": _digest_of_code(),
            **{"param_key": self.param_key, "scale": self.scale, "precision": self.precision},
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        }
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Graph:
    """A graph in the cache.

    Attributes:
        path: of the ONNX file.
        folder: of the entry, where others may keep what follows from the graph.
        overlap, multiple: what its tiles need, as `ImageRunner` measures it on the network.
        pools: whether the network averages over its whole input, which tiles follow in PyTorch only.
    """

    path: Path
    folder: Path
    overlap: int
    multiple: int
    pools: bool


def precision_of(pretrained: Pretrained) -> Precision:
    """In which a checkpoint's graph is written: int8 of a network with fake quantisation."""
    from basicsr.quantization.network import quantization_of

    return "float32" if quantization_of(pretrained.network) is None else "int8"


def can_make() -> bool:
    """Whether what writes graphs is installed."""
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


def find_graph(key: GraphKey) -> Graph | None:
    """The graph if it is there."""
    return _read(_folder_of(key))


def refusal_of(key: GraphKey) -> str | None:
    """Why an earlier try failed, if there was one."""
    with suppress(OSError):
        return (_folder_of(key) / _REFUSED).read_text(encoding="utf-8")
    return None


def make_graph(
    key: GraphKey, report: Callable[[str], object] = lambda line: None, most_seconds: float | None = None
) -> Graph:
    """The graph, made if it is not there; `report` gets a line before something that takes seconds.

    Raises:
        CheckpointError: the network has no graph, or not within `most_seconds`; noted for `refusal_of`.
        MachineError: something else is in the way: packages, memory, room on the disk.
    """
    folder = _folder_of(key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, report):
            if (found := _read(folder)) is not None:
                return found
            shutil.rmtree(folder, ignore_errors=True)
            report(f"making the graph of {key.checkpoint.name}, once for later runs")
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", suffix=".tmp", dir=folder.parent) as staging:
                _make(key, Path(staging), most_seconds)
                made = Path(staging) / "entry"
                made.rename(folder)
    except OSError as error:
        raise MachineError(f"cannot keep a graph in {folder.parent}: {error.strerror or first_line(error)}") from error
    if (found := _read(folder)) is None:
        raise CheckpointError((folder / _REFUSED).read_text(encoding="utf-8"))
    return found


def forget_graph(graph: Graph) -> None:
    """Removes an entry, such as one that a runtime does not load."""
    shutil.rmtree(graph.folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path, report: Callable[[str], object]) -> Iterator[None]:
    """Holds the entry's lock, and removes what killed processes left of it."""
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("another process makes the same graph: waiting for it")
        lock.acquire()
    try:
        for left in folder.parent.glob(f"{folder.name}-*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


def _make(key: GraphKey, staging: Path, most_seconds: float | None) -> None:
    """Has a process write the entry; of a network without a graph it holds the reason alone."""
    request = {**asdict(key), "checkpoint": str(key.checkpoint.absolute()), "staging": str(staging)}
    environment = dict(os.environ)
    shorten_spinning(environment)
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps({**request, "parent": os.getpid()})]
    entry = staging / "entry"
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=most_seconds,
            check=False,
        )
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
        refused = done.returncode > 0 and done.returncode != MachineError.exit_code
        if done.returncode and not refused:
            raise MachineError(f"the graph of {key.checkpoint.name} could not be made: {reason}")
    except subprocess.TimeoutExpired:
        refused, reason = True, f"its graph was not finished within {most_seconds:.0f} s"
    if refused:
        shutil.rmtree(entry, ignore_errors=True)
        entry.mkdir()
        (entry / _REFUSED).write_text(reason, encoding="utf-8")


def _folder_of(key: GraphKey) -> Path:
    return cache_folder() / "graphs" / key.digest()


def _read(folder: Path) -> Graph | None:
    """The entry; None where there is none, or none that is whole."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        about = json.loads((folder / _ABOUT).read_bytes())
        path = folder / about.pop("file")
        if path.is_file():
            return Graph(path, folder, **about)
    return None


def _digest_of_code() -> str:
    """Of what decides how networks compute and how they are written."""
    total = hashlib.sha256()
    for room in ("archs", "export", "quantization", "inference/tiling.py"):
        path = _ROOT / room
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            total.update(file.read_bytes())
    return total.hexdigest()


def _write_entry(request: dict[str, Any]) -> None:
    """In the process of its own: the file, checked against PyTorch, and what is known of the network."""
    import torch

    from basicsr.export.base import load_student
    from basicsr.inference.tiling import PoolingOverImage, Region, measure_context, multiple_of

    student = load_student(request["checkpoint"], param_key=request["param_key"], scale=request["scale"])
    pretrained = student.pretrained
    entry = Path(request["staging"]) / "entry"
    file = _write_graph(student, request["precision"], entry)
    side, whole = 64, Region(0, 0, 64, 64)
    multiple = multiple_of(pretrained.network)
    with torch.no_grad():
        with PoolingOverImage(whole, whole, (side, side), multiple) as pooling:
            pretrained.network(torch.rand(1, pretrained.in_channels, side, side))
        found = measure_context(
            pretrained.network, pretrained.in_channels, pretrained.scale, torch.device("cpu"), multiple
        )
    pools = bool(pooling.gathered.sums) or not pooling.gathered.followed
    about = {"file": file.name, "overlap": found.overlap, "multiple": found.multiple, "pools": pools}
    (entry / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _write_graph(student: Student, precision: Precision, entry: Path) -> Path:
    """The ONNX file. What int8 costs was measured when the checkpoint was quantised."""
    from basicsr.export.base import ExportJob, export_formats
    from basicsr.export.checks import require
    from basicsr.export.exporting import OPSETS, export

    if precision != "int8":
        return export(student, entry, targets=("onnxruntime",), precision=precision, name="graph").files[0]
    path = entry / "graph.onnx"
    entry.mkdir()
    require(export_formats()["onnxruntime"].write(ExportJob(student, precision, OPSETS[0], "ours"), path), path)
    return path


def main() -> int:
    """The process: 0, or the exit code of the error that the last line tells."""
    request = json.loads(sys.argv[1])
    end_with_parent(request.pop("parent"))
    try:
        _write_entry(request)
    except UserError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return error.exit_code
    except Exception as error:  # whatever exporters raise
        print(f"{type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
