"""The export of one checkpoint: files are written, checked against PyTorch, and only then moved to their places."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from basicsr.export.base import Check, ExportFormat, ExportJob, Layout, Student, export_formats, require
from basicsr.export.tracing import Precision, first_line
from basicsr.files.atomic_files import sha256_of
from basicsr.utils.errors import CheckpointError, MachineError, OptionsError
from basicsr.weights.recognise import load_pretrained

# ONNX: the exporter writes 18 and converts to newer ones.
OPSETS = range(18, 24)
_NAME = r"\w[\w.+-]*"  # of a file, without its folder
_LONGEST_NAME = 200  # bytes; file systems allow 255, and scale, precision and ending may be added


@dataclass(frozen=True)
class Exported:
    """What was written: the files in the order of the formats, runs of them, all passed, and remarks for the user."""

    files: tuple[Path, ...]
    checks: tuple[Check, ...]
    remarks: tuple[str, ...] = ()


def load_student(path: str | os.PathLike[str], *, param_key: str | None = None) -> Student:
    """Reads a checkpoint's `param_key`, else `params_ema` or `params`; CheckpointError if it cannot be exported."""
    path = Path(path)
    pretrained = load_pretrained(path, param_key=param_key, only_this=True)
    if pretrained.block is None:
        raise CheckpointError(
            f"{path} is {pretrained.architecture}, spandrel's own network: ours are exported, EDSR, NAFNet,"
            " RCAN, Restormer, SwinIR"
        )
    if pretrained.only_size is not None:
        raise CheckpointError(
            f"{path} has an absolute position embedding, so it works at one size only; train with ape: false"
        )
    return Student(pretrained, path, sha256_of(path))


def export(
    student: Student,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    precision: Precision = "float32",
    opset: int = OPSETS[0],
    layout: Layout = "ours",
    name: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Writes a network in the given formats: either all files, each checked by running it, or none.

    Args:
        student: from `load_student`.
        folder: made if there is none; files of the same name are replaced.
        formats: names of registered formats; None writes all.
        precision: 'fp16' halves the files: weights and the inside of the network are in half precision, its input
            and output in float32.
        opset: of ONNX.
        layout: of the safetensors file; 'spandrel' makes it one that spandrel loads.
        name: of the files, without ending; None makes it of the run's name and the scale.
        report: gets a line at the start of each format.

    Raises:
        OptionsError: an argument is not allowed.
        MachineError: a package that a format needs is missing.
        CheckpointError: a file differs from PyTorch by more than `TOLERANCES`, or cannot be made or saved.
    """
    chosen = _chosen(formats, opset, layout, name)
    folder, job = Path(folder), ExportJob(student, precision, opset, layout)
    stem = name or _stem(student, precision)
    targets = [folder / f"{stem}{entry.ending}" for entry in chosen]
    checks: list[Check] = []
    with _all_or_none(folder, targets) as staging:
        for entry, target in zip(chosen, targets, strict=True):
            report(f"{entry.name}: writing and checking")
            with _saving(target):
                done = entry.write(job, staging / target.name)
            require(done, target)
            checks += done
    return Exported(tuple(targets), tuple(checks), tuple(job.remarks))


def _chosen(formats: Sequence[str] | None, opset: int, layout: Layout, name: str | None) -> list[ExportFormat]:
    """The formats to write; raises for arguments that are not allowed."""
    known = export_formats()
    formats = list(known) if formats is None else formats
    unknown = [kind for kind in formats if kind not in known] if formats else ["nothing"]
    if unknown:
        raise OptionsError(f"--formats {unknown[0]} is not supported: give some of {', '.join(known)}")
    if opset not in OPSETS:
        raise OptionsError(f"--opset {opset} is not supported: give {OPSETS[0]} to {OPSETS[-1]}")
    if layout != "ours" and "safetensors" not in formats:
        raise OptionsError(f"--layout {layout} is about the safetensors file: add safetensors to --formats")
    if name is not None and not _is_short(name):
        raise OptionsError(f"--name is too long, {len(os.fsencode(name))} bytes: give at most {_LONGEST_NAME}")
    if name is not None and not re.fullmatch(_NAME, name):
        raise OptionsError(f"--name '{name}': give letters, digits and any of . _ + - only, without an ending")
    for entry in (known[kind] for kind in formats):
        if missing := [package for package in entry.packages if importlib.util.find_spec(package) is None]:
            raise MachineError(
                f"--formats {entry.name} needs {', '.join(missing)}, not installed here: pip install -e '.[export]',"
                f" or leave {entry.name} out of --formats"
            )
    return [known[kind] for kind in dict.fromkeys(formats)]


def _stem(student: Student, precision: Precision) -> str:
    """Name of the files: the run's, else the checkpoint's, and the scale, such as mcadkd_edsr_x4."""
    training = student.pretrained.metadata.get("training")
    run = training.get("name") if isinstance(training, Mapping) else None
    names = [run] if isinstance(run, str) and re.fullmatch(_NAME, run) else []
    stem = next(filter(_is_short, (*names, student.source.stem)), student.pretrained.architecture)
    scale = f"x{student.pretrained.scale}"
    stem = stem if re.search(rf"(?i){scale}(?!\d)", stem) else f"{stem}_{scale}"
    return f"{stem}_fp16" if precision == "fp16" else stem


def _is_short(name: str) -> bool:
    return len(os.fsencode(name)) <= _LONGEST_NAME


@contextmanager
def _all_or_none(folder: Path, targets: Sequence[Path]) -> Iterator[Path]:
    """Yields a new folder for files that are moved to the targets at its end; if anything fails all stays as it was."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        raise CheckpointError(f"cannot make the folder --output {folder}: {reason}; choose another") from error
    for target in targets:
        with _saving(target):
            _refuse_folder(target)
    try:
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise CheckpointError(f"cannot write into the folder --output {folder}: {error.strerror}") from error
    replaced = staging / "replaced"
    try:
        yield staging
        with _saving(folder):
            replaced.mkdir()
        with ExitStack() as undo:
            for target in targets:
                with _saving(target):
                    _refuse_folder(target)  # again: it may have been made meanwhile
                    undo.callback(_put_back, target, replaced / target.name, staging / target.name)
                    if os.path.lexists(target):
                        os.replace(target, replaced / target.name)
                    os.replace(staging / target.name, target)
            undo.pop_all()
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        if not any(replaced.glob("*")):  # else an earlier file could not be put back, and lies here
            shutil.rmtree(staging, ignore_errors=True)


def _put_back(target: Path, earlier: Path, new: Path) -> None:
    """Undoes the move of `new` to `target`, where `earlier` was, if it has been made."""
    with suppress(OSError):
        if os.path.lexists(earlier):
            os.replace(earlier, target)
        elif not os.path.lexists(new):
            target.unlink()


@contextmanager
def _saving(target: Path) -> Iterator[None]:
    """Turns an OSError, such as a full disk, into a CheckpointError that names the target."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot save {target}: {error.strerror or first_line(error)}") from error


def _refuse_folder(target: Path) -> None:
    if target.is_dir():
        raise CheckpointError(f"cannot save {target}: there is a folder of this name; choose another --name")
