"""The export of one checkpoint: files are written beside their places, checked against PyTorch, and only then moved."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

import basicsr
from basicsr.archs.pretrained import Pretrained, load_pretrained
from basicsr.export import onnx_file
from basicsr.export.spandrel_layout import for_spandrel, spandrel_runner
from basicsr.export.tracing import Precision, first_line, quiet, smallest_side, trace, traceable
from basicsr.export.verification import TOLERANCES, Check, Example, compare, examples, require
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.safe_files import load_tensors, sha256_of

Layout = Literal["ours", "spandrel"]
ENDINGS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
_NAME = r"\w[\w.+-]*"  # of a file, without its folder


@dataclass(frozen=True)
class Student:
    """A network to export, and what is written beside it.

    Attributes:
        pretrained: the network, in float32.
        source: the checkpoint.
        weights: which of its state dicts: 'params_ema', 'params', or '' where it has but one.
        sha256: of the checkpoint.
    """

    pretrained: Pretrained
    source: Path
    weights: str
    sha256: str

    @property
    def block(self) -> dict[str, Any]:
        """Options of the network, and its scale."""
        return {**(self.pretrained.block or {}), "scale": self.pretrained.scale}

    @cached_property
    def examples(self) -> list[Example]:
        """What each exported file is compared with."""
        return examples(self.pretrained.network, self.pretrained.in_channels, self.pretrained.scale)

    def metadata(self, precision: Precision, changed: Mapping[str, Any] | None = None) -> dict[str, str]:
        """What every file says of itself; values that are not plain text are JSON."""
        network, training = self.pretrained, self.pretrained.metadata.get("training")
        about = {
            "architecture": network.architecture,
            "network": json.dumps({**self.block, **(changed or {})}),
            "scale": str(network.scale),
            "channels": f"{network.in_channels}",
            "colour_order": "RGB" if network.in_channels == 3 else "gray",
            "range": "input in [0, 1]; output in [0, 1] but not clipped",
            "axes": "batch, channel, height, width",
            "precision": precision,
            "framework": f"mcadkd {basicsr.__version__}, PyTorch {torch.__version__}",
            "source": json.dumps({"file": self.source.name, "weights": self.weights, "sha256": self.sha256}),
        }
        return {**about, "training": json.dumps(training)} if training else about


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the files, in the order of the formats.
        checks: runs of them, all passed.
        remarks: what the user is to know.
    """

    files: tuple[Path, ...]
    checks: tuple[Check, ...]
    remarks: tuple[str, ...] = ()


@dataclass
class _Job:
    """An export under way."""

    student: Student
    precision: Precision
    opset: int
    layout: Layout
    remarks: list[str] = field(default_factory=list)

    @cached_property
    def program(self) -> ExportedProgram:
        network = self.student.pretrained
        return trace(traceable(network.network, self.precision), network.in_channels)

    def safetensors(self, path: Path) -> list[Check]:
        from safetensors.torch import save

        network = self.student.pretrained
        state, changed = network.network.state_dict(), {}
        if self.layout == "spandrel":
            converted = for_spandrel(network.network, network.architecture)
            state, changed = converted.state, dict(converted.changed)
            self.remarks += [converted.remark] if converted.remark else []
        if self.precision == "fp16":
            state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        with _saving(path):
            header = {"format": "pt", **self.student.metadata(self.precision, changed)}
            path.write_bytes(save({key: value.contiguous() for key, value in state.items()}, header))
        unchanged = self.precision == "float32" and self.layout == "ours"
        tolerance = 0.0 if unchanged else TOLERANCES[self.precision]
        checks = compare("safetensors", load_pretrained(path).network, self.student.examples, tolerance)
        if self.layout == "spandrel":
            # spandrel's SwinIR pads by a single reflection, so it takes images of 16 pixels and more.
            runner, tolerance = spandrel_runner(path, network.architecture), TOLERANCES[self.precision]
            checks += compare("safetensors (spandrel)", runner, self.student.examples, tolerance, smallest=16)
        return checks

    def onnx(self, path: Path) -> list[Check]:
        network = self.student.pretrained
        onnx_file.write_onnx(
            self.program,
            path,
            opset=self.opset,
            scale=network.scale,
            metadata=self.student.metadata(self.precision),
            description=f"{network.architecture} x{network.scale}: RGB images in [0, 1], {self.precision} inside",
        )
        runner = onnx_file.onnx_runner(path)
        return compare("onnx (onnxruntime)", runner, self.student.examples, TOLERANCES[self.precision])

    def torch_export(self, path: Path) -> list[Check]:
        with _saving(path), quiet():
            extra = {"metadata.json": json.dumps(self.student.metadata(self.precision))}
            torch.export.save(self.program, path, extra_files=extra)
            module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
        smallest, tolerance = smallest_side(self.student.pretrained.network), TOLERANCES[self.precision]
        if smallest > 1:
            self.remarks.append(f"the torch-export file takes images of at least {smallest}x{smallest} pixels")
        return compare("torch-export", module, self.student.examples, tolerance, smallest=smallest)

    def write(self, kind: str, path: Path) -> list[Check]:
        writers = {"safetensors": self.safetensors, "onnx": self.onnx, "torch-export": self.torch_export}
        return writers[kind](path)


def load_student(path: str | os.PathLike[str], *, param_key: str | None = None) -> Student:
    """Reads a checkpoint to be exported.

    Args:
        path: file of torch.save or safetensors.
        param_key: which state dict; None prefers `params_ema`, then `params`.

    Raises:
        CheckpointError: the file is not read or recognised, lacks `param_key`, or is not one of our networks for
            images of any size.
    """
    path = Path(path)
    pretrained = load_pretrained(path, param_key=param_key)
    weights = _weights_taken(path, param_key)
    if pretrained.block is None:
        raise CheckpointError(
            f"{path} is {pretrained.architecture}, spandrel's own network: ours are exported, EDSR, RCAN, SwinIR"
        )
    if getattr(pretrained.network, "absolute_pos_embed", None) is not None:
        raise CheckpointError(
            f"{path} has an absolute position embedding, so it works at one size only; train with ape: false"
        )
    return Student(pretrained, path, weights, sha256_of(path))


def _weights_taken(path: Path, param_key: str | None) -> str:
    """Name of the state dict that `load_pretrained` takes, '' if the file is one itself."""
    with open(path, "rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or head[8:] == b"{":
        names: list[str] = []
    else:
        content = load_tensors(path)
        names = [key for key, value in content.items() if isinstance(value, Mapping)]
    if param_key is not None and param_key not in names:
        held = [name for name in names if name not in ("network", "training")]
        there = f"it has {', '.join(held)}" if held else "it has but one state dict"
        raise CheckpointError(f"--param_key {param_key}: {path} has no such weights, {there}; leave --param_key out")
    return param_key or next((name for name in ("params_ema", "params") if name in names), "")


def export(
    student: Student,
    folder: str | os.PathLike[str],
    *,
    formats: Sequence[str] = tuple(ENDINGS),
    precision: Precision = "float32",
    opset: int = onnx_file.DEFAULT_OPSET,
    layout: Layout = "ours",
    name: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Writes a network in the given formats. Either all files come to be, each checked by running it, or none.

    Args:
        student: from `load_student`.
        folder: made if there is none; files of the same name are replaced.
        formats: some of 'safetensors', 'onnx', 'torch-export'.
        precision: 'fp16' halves the files: weights and the inside of the network are in half precision, its input
            and output in float32.
        opset: of ONNX.
        layout: of the safetensors file; 'spandrel' makes it one that spandrel loads.
        name: of the files, without ending; None makes it of the run's name and the scale.
        report: gets a line at the start of each format.

    Raises:
        OptionsError: an argument is not allowed.
        MachineError: a package for ONNX is missing.
        CheckpointError: a file differs from PyTorch by more than `TOLERANCES`, or cannot be made or saved.
    """
    _check_arguments(formats, opset, name)
    folder, job = Path(folder), _Job(student, precision, opset, layout)
    stem = name or _stem(student, precision)
    checks: list[Check] = []
    with _all_or_none(folder) as place:
        for kind in dict.fromkeys(formats):
            report(f"{kind}: writing and checking")
            target = folder / f"{stem}{ENDINGS[kind]}"
            done = job.write(kind, place(target))
            require(done, target)
            checks += done
    files = tuple(folder / f"{stem}{ENDINGS[kind]}" for kind in dict.fromkeys(formats))
    return Exported(files, tuple(checks), tuple(job.remarks))


def _check_arguments(formats: Sequence[str], opset: int, name: str | None) -> None:
    unknown = [kind for kind in formats if kind not in ENDINGS]
    if unknown or not formats:
        given = unknown[0] if unknown else "nothing"
        raise OptionsError(f"--formats {given} is not supported: give some of {', '.join(ENDINGS)}")
    if opset not in onnx_file.OPSETS:
        allowed = f"{onnx_file.OPSETS[0]} to {onnx_file.OPSETS[-1]}"
        raise OptionsError(f"--opset {opset} is not supported: give {allowed}")
    if name is not None and not re.fullmatch(_NAME, name):
        raise OptionsError(f"--name '{name}': give letters, digits and any of . _ + - only, without an ending")
    if "onnx" in formats:
        onnx_file.require_packages()


def _stem(student: Student, precision: Precision) -> str:
    """Name of the files: the run's and the scale, such as mcadkd_edsr_x4."""
    training = student.pretrained.metadata.get("training")
    run = training.get("name") if isinstance(training, Mapping) else None
    stem = run if isinstance(run, str) and re.fullmatch(_NAME, run) else student.source.stem
    scale = f"x{student.pretrained.scale}"
    stem = stem if re.search(rf"(?i){scale}(?!\d)", stem) else f"{stem}_{scale}"
    return f"{stem}_fp16" if precision == "fp16" else stem


@contextmanager
def _all_or_none(folder: Path) -> Iterator[Callable[[Path], Path]]:
    """Yields a function that gives a file's temporary neighbour; all are moved to their places unless it raises."""
    temporary: dict[Path, Path] = {}

    def place(target: Path) -> Path:
        temporary[target] = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
        return temporary[target]

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file of this name" if isinstance(error, FileExistsError) else error.strerror
        raise CheckpointError(f"cannot make the folder --output {folder}: {reason}; choose another") from error
    try:
        yield place
        for target, written in temporary.items():
            with _saving(target):
                os.replace(written, target)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"cannot save {path}: {first_line(error)}") from error
