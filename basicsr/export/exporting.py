"""The export of one checkpoint to formats and targets, in several precisions: all files, each checked, or none.

Files are written, checked against PyTorch, and only then moved to their places: see docs/shipping.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from basicsr.export.base import ExportFormat, ExportJob, Layout, Student, export_formats, names_of
from basicsr.export.checks import Check, require
from basicsr.export.int8 import Int8, Judge, Loss, Progress
from basicsr.export.staging import all_or_none, saving
from basicsr.export.tracing import Precision
from basicsr.quantization.network import quantization_of
from basicsr.utils.errors import CheckpointError, OptionsError

# ONNX: the exporter writes 18 and converts to newer ones.
OPSETS = range(18, 24)

_LONGEST_SIDE = 4096  # of a graph for one size, in pixels
_NAME = r"\w[\w.+-]*"  # of a file, without its folder
_LONGEST_NAME = 200  # bytes; file systems allow 255, and scale, target, precision and ending may be added


@dataclass(frozen=True)
class Exported:
    """What was written: the files in the order of the formats, runs of them, all passed, and remarks for the user.

    `losses` says what files in int8 lost.
    """

    files: tuple[Path, ...]
    checks: tuple[Check, ...]
    remarks: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class _Work:
    """One format in one precision, and the path of its file."""

    entry: ExportFormat
    job: ExportJob
    path: Path

    @property
    def files(self) -> list[Path]:
        return [self.path, *(self.path.with_name(self.path.stem + ending) for ending in self.entry.further)]

    def __str__(self) -> str:
        return f"{self.entry.name}, {self.job.precision}" if self.entry.runtime else self.entry.name


def export(
    student: Student,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    targets: Sequence[str] = (),
    precision: Precision | Sequence[Precision] = "float32",
    opset: int = OPSETS[0],
    layout: Layout = "ours",
    size: tuple[int, int] | None = None,
    nhwc: bool = False,
    name: str | None = None,
    int8: Int8 | None = None,
    report: Callable[[str], None] = lambda line: None,
    progress: Progress = iter,
) -> Exported:
    """Writes a network in formats and for targets: either all files, each checked by running it, or none.

    Args:
        student: from `load_student`.
        folder: made if there is none; files of the same name are replaced.
        formats: names of registered formats; None writes all if there are no targets.
        targets: names of registered targets, whose files are called NAME_TARGET.
        precision: one or several. 'fp16' halves the files: weights and the inside of the network are in half
            precision, its input and output in float32. 'int8' needs `int8`.
        opset: of ONNX.
        layout: of the safetensors file; 'spandrel' makes it one that spandrel loads.
        size: height and width of the one size that graphs are for; None: any.
        nhwc: whether the files of targets that know both take and give images with channels last.
        name: of the files, without ending; None makes it of the run's name and the scale.
        int8: images to quantise and to measure with.
        report: gets a line at the start of each file.
        progress: goes round what is iterated over images, as tqdm does.

    Raises:
        OptionsError: an argument is not allowed, or a target cannot take the network.
        MachineError: a package that a format needs, or the runtime of a target, is missing.
        CheckpointError: a file differs from PyTorch by more than `TOLERANCES`, loses more PSNR than `int8` allows, or
            cannot be made or saved.
        DataError, NonFiniteError: as `Int8.quantized` and `Judge.psnr`.
    """
    precisions = (precision,) if isinstance(precision, str) else tuple(dict.fromkeys(precision))
    _check_quantized(student, formats, targets, precisions)
    chosen = _chosen(formats, targets, precisions, opset, layout, name)
    _check_size(student, size)
    if nhwc and not any(entry.takes_nhwc for entry in chosen):
        able = ", ".join(kind for kind, entry in export_formats().items() if entry.takes_nhwc)
        raise OptionsError(f"--nhwc is about files that can have channels last: give --target {able}, or leave it out")
    jobs = [ExportJob(student, one, opset, layout, size, nhwc) for one in precisions]
    _check_refusals(chosen, jobs)
    judge = None
    if "int8" in precisions:
        if int8 is None:
            raise OptionsError("--precision int8 needs images to calibrate and to measure with; give them by `int8`")
        report("int8: quantising")
        quantized = int8.quantized(student, progress)
        judge = Judge(int8, quantized, size, progress)
        jobs = [replace(job, student=quantized) if job.precision == "int8" else job for job in jobs]
    several = name is None or len(jobs) > 1
    stem = name or _stem(student)
    work = [
        _Work(entry, job, Path(folder) / f"{stem}{_suffix(entry, job, several)}{entry.ending}")
        for job in jobs
        for entry in chosen
    ]
    checks: list[Check] = []
    losses: list[Loss] = []
    files = [file for one in work for file in one.files]
    with all_or_none(Path(folder), files) as staging:
        for one in work:
            report(f"{one}: writing and checking")
            with saving(one.path):
                done = one.entry.write(one.job, staging / one.path.name)
            require(done, one.path)
            checks += done
            if judge is not None and one.job.precision == "int8":
                losses.append(judge.measured(one.entry, one.job, staging / one.path.name))
    remarks = dict.fromkeys(remark for job in jobs for remark in job.remarks)
    return Exported(tuple(files), tuple(checks), tuple(remarks), tuple(losses))


def _suffix(entry: ExportFormat, job: ExportJob, several: bool) -> str:
    """What tells a file from others of its ending: its target and its precision."""
    target = f"_{entry.name}" if entry.runtime else ""
    return target + (f"_{job.precision}" if job.precision != "float32" and (several or target) else "")


def _chosen(
    formats: Sequence[str] | None,
    targets: Sequence[str],
    precisions: Sequence[Precision],
    opset: int,
    layout: Layout,
    name: str | None,
) -> list[ExportFormat]:
    """What is to be written; raises for arguments that are not allowed."""
    known, plain = export_formats(), names_of(targets=False)
    if formats is None:
        formats = () if targets else plain
    given = formats if formats or targets else ["nothing"]
    for option, kinds, allowed in (("--formats", given, plain), ("--target", targets, names_of(targets=True))):
        if unknown := [kind for kind in kinds if kind not in allowed]:
            raise OptionsError(f"{option} {unknown[0]} is not supported: give some of {', '.join(allowed)}")
    if opset not in OPSETS:
        raise OptionsError(f"--opset {opset} is not supported: give {OPSETS[0]} to {OPSETS[-1]}")
    if layout != "ours" and "safetensors" not in formats:
        raise OptionsError(f"--layout {layout} is about the safetensors file: add safetensors to --formats")
    if name is not None and not _is_short(name):
        raise OptionsError(f"--name is too long, {len(os.fsencode(name))} bytes: give at most {_LONGEST_NAME}")
    if name is not None and not re.fullmatch(_NAME, name):
        raise OptionsError(f"--name '{name}': give letters, digits and any of . _ + - only, without an ending")
    chosen = [known[kind] for kind in dict.fromkeys((*formats, *targets))]
    for entry in chosen:
        for precision in precisions:
            if precision not in entry.precisions:
                raise OptionsError(
                    f"--precision {precision}: {entry.name} is written in {' or '.join(entry.precisions)}; give that,"
                    f" or leave {entry.name} out"
                )
        entry.require()
    return chosen


def _check_refusals(chosen: Sequence[ExportFormat], jobs: Sequence[ExportJob]) -> None:
    """Raises OptionsError with a line for everything that a target says it cannot do."""
    refused = [(entry, entry.refusal(job)) for entry in chosen for job in jobs]
    lines = dict.fromkeys(f"{entry.name}: {reason}" for entry, reason in refused if reason is not None)
    if lines:
        raise OptionsError("\n".join(lines))


def _check_quantized(
    student: Student, formats: Sequence[str] | None, targets: Sequence[str], precisions: Sequence[Precision]
) -> None:
    """Raises OptionsError where a quantised network is to be written in floats, or by what has no int8."""
    if quantization_of(student.pretrained.network) is None:
        return
    able = [name for name, entry in export_formats().items() if "int8" in entry.precisions]
    plain = names_of(targets=False) if formats is None and not targets else formats or ()
    if (floats := set(precisions) - {"int8"}) or set(plain).union(targets) - set(able):
        raise OptionsError(
            f"{student.source} is quantised, so its files are in int8: give --target with some of {', '.join(able)},"
            f" or its float weights for {' and '.join(sorted(floats)) or 'others'}"
        )


def _check_size(student: Student, size: tuple[int, int] | None) -> None:
    """Raises for a size that is none, or that the network does not take."""
    if size is not None and not all(1 <= side <= _LONGEST_SIDE for side in size):
        raise OptionsError(f"--size {size[0]} {size[1]}: give a height and a width from 1 to {_LONGEST_SIDE}")
    only = student.pretrained.only_size
    if only is not None and size != only:
        raise CheckpointError(
            f"{student.source} has an absolute position embedding, so it works at one size only: give --size {only[0]}"
            f" {only[1]}, or train with ape: false"
        )


def _stem(student: Student) -> str:
    """Name of the files: the run's, else the checkpoint's, and the scale, such as mcadkd_edsr_x4."""
    training = student.pretrained.metadata.get("training")
    run = training.get("name") if isinstance(training, Mapping) else None
    names = [run] if isinstance(run, str) and re.fullmatch(_NAME, run) else []
    stem = next(filter(_is_short, (*names, student.source.stem)), student.pretrained.architecture)
    scale = f"x{student.pretrained.scale}"
    return stem if re.search(rf"(?i){scale}(?!\d)", stem) else f"{stem}_{scale}"


def _is_short(name: str) -> bool:
    return len(os.fsencode(name)) <= _LONGEST_NAME
