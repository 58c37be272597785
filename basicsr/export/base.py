"""The export of one checkpoint: what a format must provide, what it is given, and how its file is checked and saved.

Files are written, checked against PyTorch, and only then moved to their places: see docs/shipping.md.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn import functional as F

import basicsr
from basicsr.export.tracing import Precision, smallest_side, trace, trace_at, traceable
from basicsr.files.atomic_files import sha256_of
from basicsr.utils.errors import CheckpointError, MachineError, OptionsError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.text import first_line
from basicsr.weights.recognise import Pretrained, check_scale, load_pretrained
from basicsr.weights.spandrel_networks import SpandrelNetwork

Layout = Literal["ours", "spandrel"]
Size = tuple[int, int, int]  # batch, height, width
# Square and not, odd, above and below multiples of usual windows, smaller than a window.
SIZES: tuple[Size, ...] = ((1, 24, 24), (2, 17, 31), (1, 64, 40), (1, 33, 80), (1, 48, 48), (1, 5, 7))
# Largest difference between values in [0, 1]. Of fp16: one and a half steps of 8 bits, so that no rounded pixel is off
# by more than two; published networks reach 1.2 at single pixels (docs/shipping.md).
TOLERANCES = {"float32": 1e-4, "fp16": 1.5 / 255}
# ONNX: the exporter writes 18 and converts to newer ones.
OPSETS = range(18, 24)

_SMALL_ENOUGH = 16  # pixels a side that networks need not take
_LONGEST_SIDE = 4096  # of a graph for one size, in pixels
_NAME = r"\w[\w.+-]*"  # of a file, without its folder
_LONGEST_NAME = 200  # bytes; file systems allow 255, and scale, precision and ending may be added


@dataclass(frozen=True)
class Check:
    """One run of an exported file."""

    kind: str  # the format and what ran it
    shape: tuple[int, ...]  # of the input, (B, C, H, W)
    difference: float  # largest one from the network's output in float32
    tolerance: float  # largest difference allowed

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for nan."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Student:
    """A network to export, in float32, the checkpoint it comes from, and the checkpoint's SHA-256."""

    pretrained: Pretrained
    source: Path
    sha256: str

    @property
    def weights(self) -> str:
        """Which of the checkpoint's state dicts: 'params_ema', 'params', or '' where it is one itself."""
        return self.pretrained.weights or ""

    @property
    def colours(self) -> str:
        """The network's channels."""
        return {1: "gray", 3: "RGB"}.get(self.pretrained.in_channels, f"{self.pretrained.in_channels}-channel")

    @cached_property
    def examples(self) -> list[tuple[Tensor, Tensor]]:
        """As `examples_of`, of the sizes that every exported file is run on."""
        return self.examples_of(sizes_for(smallest_side(self.pretrained.network)))

    def examples_of(self, sizes: Sequence[Size]) -> list[tuple[Tensor, Tensor]]:
        """Inputs (B, C, H, W) in [0, 1], and the network's outputs in float32.

        Smooth images with some noise. Sizes that are too small for the network itself are left out; CheckpointError if
        an output is not finite or of another size than expected.
        """
        network, channels, scale = self.pretrained.network, self.pretrained.in_channels, self.pretrained.scale
        generator = torch.Generator().manual_seed(0)
        made = []
        for batch, height, width in sizes:
            coarse = torch.rand(batch, channels, height // 8 + 2, width // 8 + 2, generator=generator)
            smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
            noise = torch.randn(smooth.shape, generator=generator) * 0.05
            lq = (smooth * 1.4 - 0.2 + noise).clamp(0, 1)  # black and white are reached
            try:
                with torch.no_grad():
                    expected = network(lq)
            except Exception as error:  # whatever the code of a network raises on an image that it cannot take
                if min(height, width) < _SMALL_ENOUGH:
                    continue
                raise CheckpointError(
                    f"{self.pretrained.architecture} fails on an image of {height}x{width} ({first_line(error)})"
                ) from error
            if expected.shape[0] != batch or expected.shape[-2:] != (height * scale, width * scale):
                raise CheckpointError(
                    f"{self.pretrained.architecture} makes {tuple(expected.shape)} of {tuple(lq.shape)}, expected"
                    f" x{scale}: no super-resolution network"
                )
            if not expected.isfinite().all():
                raise CheckpointError(
                    "the network's own outputs are not finite: its weights are broken; export another"
                )
            made.append((lq, expected))
        return made


@dataclass
class ExportJob:
    """What a format is to write."""

    student: Student
    precision: Precision  # of weights and inside; input and output are float32
    opset: int  # of ONNX
    layout: Layout  # of the safetensors file
    size: tuple[int, int] | None = None  # height and width that graphs are for; None: any
    remarks: list[str] = field(default_factory=list)  # sentences for the user; formats append to them

    @cached_property
    def program(self) -> ExportedProgram:
        """The network's graph in this precision, for images of any size or of `size`; traced once for all formats."""
        network = self.student.pretrained
        wrapped = traceable(network.network, self.precision, any_size=self.size is None)
        if self.size is None:
            return trace(wrapped, network.in_channels)
        return trace_at(wrapped, (network.in_channels, *self.size))

    @cached_property
    def takes_batches(self) -> bool:
        """Whether the graph takes any number of images, not one at a time."""
        example = next(
            node for node in self.program.graph.nodes if node.name in self.program.graph_signature.user_inputs
        )
        return not isinstance(example.meta["val"].shape[0], int)

    @property
    def smallest(self) -> int:
        """Smallest side that graphs take where spandrel's code extends no image; 1 for our own networks."""
        network = self.student.pretrained.network
        return network.sizes.minimum if isinstance(network, SpandrelNetwork) and self.size is None else 1

    def of_graph(self, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`run`, for `compare`, of a file with the graph; image by image where that takes one at a time."""
        if self.takes_batches:
            return run
        if (line := "the graph takes one image at a time") not in self.remarks:
            self.remarks.append(line)
        return lambda lq: torch.cat([run(image.contiguous()) for image in lq.split(1)])

    def metadata(self, changed: Mapping[str, Any] | None = None) -> dict[str, str]:
        """What every file says of itself; values that are not plain text are JSON. `changed` overrides options."""
        student, network = self.student, self.student.pretrained
        is_spandrels = isinstance(network.network, SpandrelNetwork)
        about = {
            "architecture": network.architecture,
            "network": _json({**(network.block or {}), "scale": network.scale, **(changed or {})}),
            "scale": str(network.scale),
            "channels": f"{network.in_channels}",
            "colour_order": student.colours,
            "range": f"input in [0, 1]; output in [0, 1] {'and' if is_spandrels else 'but not'} clipped",
            "axes": "batch, channel, height, width",
            "precision": self.precision,
            "framework": f"mcadkd {basicsr.__version__}, PyTorch {torch.__version__}",
            "source": _json({"file": student.source.name, "weights": student.weights, "sha256": student.sha256}),
        }
        training = _json(network.metadata.get("training"))
        return about if training in ("null", "{}") else {**about, "training": training}

    def compare(
        self, kind: str, run: Callable[[Tensor], Tensor], *, tolerance: float | None = None, smallest: int = 1
    ) -> list[Check]:
        """Runs a written file on the examples of at least `smallest` pixels a side; raises CheckpointError if it fails.

        `kind` names the format and what runs it, `run` maps (B, C, H, W) in [0, 1] to (B, C, sH, sW) in float32, and
        `tolerance` is the largest difference allowed, the precision's where None.
        """
        allowed = TOLERANCES[self.precision] if tolerance is None else tolerance
        checks = []
        student = self.student
        for lq, expected in student.examples if self.size is None else student.examples_of([(1, *self.size)] * 2):
            if min(lq.shape[-2:]) < smallest:
                continue
            shape, difference = tuple(lq.shape), math.inf
            try:
                with torch.no_grad():
                    output = run(lq.clone())  # spandrel's RCAN changes its input in place
            except Exception as error:  # each runtime has exceptions of its own
                reason = f"{kind} fails on an input of {shape_text(shape)} ({first_line(error)})"
                raise CheckpointError(f"{reason}; nothing was written") from error
            if output.shape == expected.shape:
                difference = (output.float() - expected).abs().max().item()  # nan stays nan
            checks.append(Check(kind, shape, difference, allowed))
        return checks


class ExportFormat(ABC):
    """A kind of file; subclasses are registered with `EXPORT_REGISTRY`, one in each file `*_format.py`.

    Attributes:
        name: in `--formats`.
        ending: of the files' names.
        packages: what must be installed beside the framework.
        order: formats with lower numbers are written and listed first.
    """

    name: ClassVar[str]
    ending: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 100

    @abstractmethod
    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """Writes the file, loads it and returns `job.compare` of it; raises CheckpointError or OSError."""


@dataclass(frozen=True)
class Exported:
    """What was written: the files in the order of the formats, runs of them, all passed, and remarks for the user."""

    files: tuple[Path, ...]
    checks: tuple[Check, ...]
    remarks: tuple[str, ...] = ()


def sizes_for(smallest: int) -> tuple[Size, ...]:
    """`SIZES`, and larger ones where none of them with several images reaches `smallest` pixels a side."""
    if any(batch > 1 and min(height, width) >= smallest for batch, height, width in SIZES):
        return SIZES
    return (*SIZES, (2, smallest, smallest + 9), (1, 2 * smallest + 1, smallest))


def export_formats() -> dict[str, ExportFormat]:
    """All registered formats by name, in their order."""
    formats: list[ExportFormat] = [cls() for _, cls in EXPORT_REGISTRY]
    return {entry.name: entry for entry in sorted(formats, key=lambda entry: (entry.order, entry.name))}


def load_student(path: str | os.PathLike[str], *, param_key: str | None = None, scale: int | None = None) -> Student:
    """Reads a checkpoint's `param_key`, else `params_ema` or `params`; CheckpointError if it holds no network.

    `scale` chooses where the network is for several: OptionsError if it has to, or is none of them.
    """
    path = Path(path)
    pretrained = load_pretrained(path, param_key=param_key, only_this=True, scale=scale)
    check_scale(pretrained, path, scale)
    return Student(pretrained, path, sha256_of(path))


def export(
    student: Student,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] | None = None,
    precision: Precision = "float32",
    opset: int = OPSETS[0],
    layout: Layout = "ours",
    size: tuple[int, int] | None = None,
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
        size: height and width of the one size that the ONNX and torch.export files are for; None: any.
        name: of the files, without ending; None makes it of the run's name and the scale.
        report: gets a line at the start of each format.

    Raises:
        OptionsError: an argument is not allowed.
        MachineError: a package that a format needs is missing.
        CheckpointError: a file differs from PyTorch by more than `TOLERANCES`, or cannot be made or saved.
    """
    chosen = _chosen(formats, opset, layout, name)
    _check_size(student, size)
    folder, job = Path(folder), ExportJob(student, precision, opset, layout, size)
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
    chosen = [known[kind] for kind in dict.fromkeys(formats)]
    for entry in chosen:
        if missing := [package for package in entry.packages if importlib.util.find_spec(package) is None]:
            raise MachineError(
                f"--formats {entry.name} needs {', '.join(missing)}, not installed here: pip install -e '.[export]',"
                f" or leave {entry.name} out of --formats"
            )
    return chosen


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
        with _saving(target):  # before any work, and again when it is moved
            pass
    try:
        staging = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    except OSError as error:
        raise CheckpointError(f"cannot write into the folder --output {folder}: {error.strerror}") from error
    replaced = staging / "replaced"
    try:
        yield staging
        with ExitStack() as undo:
            for target in targets:
                with _saving(target):
                    replaced.mkdir(exist_ok=True)
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
    """Raises CheckpointError, naming the target, if there is a folder or for an OSError, such as a full disk."""
    try:
        if target.is_dir():
            raise CheckpointError(f"cannot save {target}: there is a folder of this name; choose another --name")
        yield
    except OSError as error:
        raise CheckpointError(f"cannot save {target}: {error.strerror or first_line(error)}") from error


def require(checks: Sequence[Check], path: Path) -> None:
    """Raises CheckpointError, naming the worst check, unless there are checks and all passed."""
    if not checks:
        raise CheckpointError(f"{path.name} was not written: there was no image to check it with")
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = max(failed, key=lambda check: math.inf if math.isnan(check.difference) else check.difference)
        raise CheckpointError(
            f"{path.name} was not written: {worst.kind} differs from PyTorch by {worst.difference:.2g} at"
            f" {shape_text(worst.shape)}, allowed is {worst.tolerance:.2g}{_remedy(worst)}"
        )


def _remedy(check: Check) -> str:
    """What to do where half precision is at fault."""
    if check.tolerance != TOLERANCES["fp16"]:
        return ""
    too_large = not math.isfinite(check.difference)
    reason = "its features have values beyond fp16's 65504" if too_large else "its features need more than 11 bits"
    return f": {reason}; export it in float32"


def shape_text(shape: Sequence[int]) -> str:
    """Such as 1x3x24x24."""
    return "x".join(map(str, shape))


def _json(value: Any) -> str:
    """Data of unknown origin as valid JSON: null for numbers that are not finite, text for other types.

    'null' if it is nested without end, too deep, or has a number of thousands of digits.
    """
    try:
        text = json.dumps(value, default=str)
        return json.dumps(json.loads(text, parse_constant=lambda constant: None))
    except (RecursionError, TypeError, ValueError):
        return "null"
