"""The export of one checkpoint: files are written, checked against PyTorch, and only then moved to their places."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

import basicsr
from basicsr.export import onnx_file
from basicsr.export.placing import all_or_none, saving
from basicsr.export.spandrel_layout import for_spandrel, spandrel_runner
from basicsr.export.tracing import Precision, quiet, smallest_side, trace, traceable
from basicsr.export.verification import TOLERANCES, Check, Example, compare, examples, require
from basicsr.files.atomic_files import sha256_of
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.weights.recognise import Pretrained, load_pretrained

Layout = Literal["ours", "spandrel"]
ENDINGS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2"}
_NAME = r"\w[\w.+-]*"  # of a file, without its folder
_LONGEST_NAME = 200  # bytes; file systems allow 255, and scale, precision and ending may be added


@dataclass(frozen=True)
class Student:
    """A network to export, and what is written beside it.

    Attributes:
        pretrained: the network, in float32.
        source: the checkpoint.
        sha256: of the checkpoint.
    """

    pretrained: Pretrained
    source: Path
    sha256: str

    @property
    def weights(self) -> str:
        """Which of the checkpoint's state dicts: 'params_ema', 'params', or '' where it is one itself."""
        return self.pretrained.weights or ""

    @property
    def colours(self) -> str:
        """What the network's channels are."""
        channels = self.pretrained.in_channels
        return {1: "gray", 3: "RGB"}.get(channels, f"{channels}-channel")

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
        network, training = self.pretrained, _json(self.pretrained.metadata.get("training"))
        about = {
            "architecture": network.architecture,
            "network": _json({**self.block, **(changed or {})}),
            "scale": str(network.scale),
            "channels": f"{network.in_channels}",
            "colour_order": self.colours,
            "range": "input in [0, 1]; output in [0, 1] but not clipped",
            "axes": "batch, channel, height, width",
            "precision": precision,
            "framework": f"mcadkd {basicsr.__version__}, PyTorch {torch.__version__}",
            "source": _json({"file": self.source.name, "weights": self.weights, "sha256": self.sha256}),
        }
        return about if training in ("null", "{}") else {**about, "training": training}


def _json(value: Any) -> str:
    """Data of unknown origin as valid JSON; 'null' where it has no end or is too long."""
    try:
        return json.dumps(_plain(value), allow_nan=False)
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return "null"


def _plain(value: Any) -> Any:
    """What JSON has of a value: null for numbers that are not finite, text for what it does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


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
        header = {"format": "pt", **self.student.metadata(self.precision, changed)}
        separate = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()}
        path.write_bytes(save(separate, header))
        unchanged = self.precision == "float32" and self.layout == "ours"
        tolerance = 0.0 if unchanged else TOLERANCES[self.precision]
        checks = compare("safetensors", load_pretrained(path).network, self.student.examples, tolerance)
        if self.layout == "spandrel":
            # spandrel's SwinIR pads by a single reflection: a side must be longer than what it lacks to a window.
            runner, tolerance = spandrel_runner(path, network.architecture), TOLERANCES[self.precision]
            smallest = max(16, smallest_side(network.network) // 2 + 1)
            checks += compare("safetensors (spandrel)", runner, self.student.examples, tolerance, smallest=smallest)
        return checks

    def onnx(self, path: Path) -> list[Check]:
        network = self.student.pretrained
        onnx_file.write_onnx(
            self.program,
            path,
            opset=self.opset,
            scale=network.scale,
            metadata=self.student.metadata(self.precision),
            description=f"{network.architecture} x{network.scale}: {self.student.colours} images in [0, 1],"
            f" {self.precision} inside",
        )
        runner = onnx_file.onnx_runner(path)
        return compare("onnx (onnxruntime)", runner, self.student.examples, TOLERANCES[self.precision])

    def torch_export(self, path: Path) -> list[Check]:
        content = io.BytesIO()  # a disk that is full ends the process if PyTorch writes the file itself
        with quiet():
            extra = {"metadata.json": json.dumps(self.student.metadata(self.precision))}
            torch.export.save(self.program, content, extra_files=extra)
            path.write_bytes(content.getvalue())
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
    _check_arguments(formats, opset, layout, name)
    folder, job = Path(folder), _Job(student, precision, opset, layout)
    stem = name or _stem(student, precision)
    targets = {kind: folder / f"{stem}{ENDINGS[kind]}" for kind in formats}
    checks: list[Check] = []
    with all_or_none(folder, list(targets.values())) as staging:
        for kind, target in targets.items():
            report(f"{kind}: writing and checking")
            with saving(target):
                done = job.write(kind, staging / target.name)
            require(done, target)
            checks += done
    return Exported(tuple(targets.values()), tuple(checks), tuple(job.remarks))


def _check_arguments(formats: Sequence[str], opset: int, layout: Layout, name: str | None) -> None:
    unknown = [kind for kind in formats if kind not in ENDINGS]
    if unknown or not formats:
        given = unknown[0] if unknown else "nothing"
        raise OptionsError(f"--formats {given} is not supported: give some of {', '.join(ENDINGS)}")
    if opset not in onnx_file.OPSETS:
        allowed = f"{onnx_file.OPSETS[0]} to {onnx_file.OPSETS[-1]}"
        raise OptionsError(f"--opset {opset} is not supported: give {allowed}")
    if layout != "ours" and "safetensors" not in formats:
        raise OptionsError(f"--layout {layout} is about the safetensors file: add safetensors to --formats")
    if name is not None and not _short(name):
        raise OptionsError(f"--name is too long, {len(os.fsencode(name))} bytes: give at most {_LONGEST_NAME}")
    if name is not None and not re.fullmatch(_NAME, name):
        raise OptionsError(f"--name '{name}': give letters, digits and any of . _ + - only, without an ending")
    if "onnx" in formats:
        onnx_file.require_packages()


def _stem(student: Student, precision: Precision) -> str:
    """Name of the files: the run's, else the checkpoint's, and the scale, such as mcadkd_edsr_x4."""
    training = student.pretrained.metadata.get("training")
    run = training.get("name") if isinstance(training, Mapping) else None
    names = [run] if isinstance(run, str) and re.fullmatch(_NAME, run) else []
    stem = next(filter(_short, (*names, student.source.stem)), student.pretrained.architecture)
    scale = f"x{student.pretrained.scale}"
    stem = stem if re.search(rf"(?i){scale}(?!\d)", stem) else f"{stem}_{scale}"
    return f"{stem}_fp16" if precision == "fp16" else stem


def _short(name: str) -> bool:
    return len(os.fsencode(name)) <= _LONGEST_NAME
