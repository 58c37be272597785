"""What an export format must provide, what it is given, and how its file is checked: see docs/shipping.md."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

import basicsr
from basicsr.export.tracing import Precision, first_line, smallest_side, trace, traceable
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.weights.recognise import Pretrained

Layout = Literal["ours", "spandrel"]
Size = tuple[int, int, int]  # batch, height, width
# Square and not, odd, above and below multiples of usual windows, smaller than a window.
SIZES: tuple[Size, ...] = ((1, 24, 24), (2, 17, 31), (1, 64, 40), (1, 33, 80), (1, 48, 48), (1, 5, 7))

# Largest difference between values in [0, 1]. Of fp16: half a step of 8 bits, so that no rounded pixel is off by
# more than one step; we measured up to two thirds of that (docs/shipping.md).
TOLERANCES = {"float32": 1e-4, "fp16": 0.5 / 255}


@dataclass(frozen=True)
class Example:
    """An input (B, C, H, W) in [0, 1] and the network's output in float32."""

    lq: Tensor
    expected: Tensor


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


def sizes_for(smallest: int) -> tuple[Size, ...]:
    """`SIZES`, and larger ones where none of them with several images reaches `smallest` pixels a side."""
    if any(batch > 1 and min(height, width) >= smallest for batch, height, width in SIZES):
        return SIZES
    return (*SIZES, (2, smallest, smallest + 9), (1, 2 * smallest + 1, smallest))


def _examples(network: nn.Module, channels: int, scale: int) -> list[Example]:
    """Smooth images with some noise, and the network's outputs, which must be finite and of the right size."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for batch, height, width in sizes_for(smallest_side(network)):
        coarse = torch.rand(batch, channels, height // 8 + 2, width // 8 + 2, generator=generator)
        smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
        noise = torch.randn(smooth.shape, generator=generator) * 0.05
        lq = (smooth * 1.4 - 0.2 + noise).clamp(0, 1)  # black and white are reached
        with torch.no_grad():
            expected = network(lq)
        if expected.shape[0] != batch or expected.shape[-2:] != (height * scale, width * scale):
            raise CheckpointError(
                f"{type(network).__name__} makes {tuple(expected.shape)} of {tuple(lq.shape)}, expected x{scale}: no"
                " super-resolution network"
            )
        if not expected.isfinite().all():
            raise CheckpointError("the network's own outputs are not finite: its weights are broken; export another")
        made.append(Example(lq, expected))
    return made


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
    def examples(self) -> list[Example]:
        """Images that each exported file is run on, with the network's outputs."""
        return _examples(self.pretrained.network, self.pretrained.in_channels, self.pretrained.scale)

    def metadata(self, precision: Precision, changed: Mapping[str, Any] | None = None) -> dict[str, str]:
        """Describes the network; values that are not plain text are JSON. `changed` overrides its options."""
        network, training = self.pretrained, _json(self.pretrained.metadata.get("training"))
        about = {
            "architecture": network.architecture,
            "network": _json({**(network.block or {}), "scale": network.scale, **(changed or {})}),
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


@dataclass
class ExportJob:
    """What a format is to write."""

    student: Student
    precision: Precision  # of weights and inside; input and output are float32
    opset: int  # of ONNX
    layout: Layout  # of the safetensors file
    remarks: list[str] = field(default_factory=list)  # sentences for the user; formats append to them

    @cached_property
    def program(self) -> ExportedProgram:
        """The network's graph in this precision, for images of any size; traced once for all formats."""
        network = self.student.pretrained
        return trace(traceable(network.network, self.precision), network.in_channels)

    def metadata(self, changed: Mapping[str, Any] | None = None) -> dict[str, str]:
        """What every file says of itself."""
        return self.student.metadata(self.precision, changed)

    def compare(
        self, kind: str, run: Callable[[Tensor], Tensor], *, tolerance: float | None = None, smallest: int = 1
    ) -> list[Check]:
        """Runs a written file on the examples of at least `smallest` pixels a side; raises CheckpointError if it fails.

        `kind` names the format and what runs it, `run` maps (B, C, H, W) in [0, 1] to (B, C, sH, sW) in float32, and
        `tolerance` is the largest difference allowed, the precision's where None.
        """
        allowed = TOLERANCES[self.precision] if tolerance is None else tolerance
        checks = []
        for example in (example for example in self.student.examples if min(example.lq.shape[-2:]) >= smallest):
            shape, difference = tuple(example.lq.shape), math.inf
            try:
                with torch.no_grad():
                    output = run(example.lq.clone())  # spandrel's RCAN changes its input in place
            except Exception as error:  # each runtime has exceptions of its own
                reason = f"{kind} fails on an input of {_size(shape)} ({first_line(error)})"
                raise CheckpointError(f"{reason}; nothing was written") from error
            if output.shape == example.expected.shape:
                difference = (output.float() - example.expected).abs().max().item()  # nan stays nan
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


def export_formats() -> dict[str, ExportFormat]:
    """All registered formats by name, in their order."""
    formats: list[ExportFormat] = [cls() for _, cls in EXPORT_REGISTRY]
    return {entry.name: entry for entry in sorted(formats, key=lambda entry: (entry.order, entry.name))}


def require(checks: Sequence[Check], path: Path) -> None:
    """Raises CheckpointError, naming the worst check, unless there are checks and all passed."""
    if not checks:
        raise CheckpointError(f"{path.name} was not written: there was no image to check it with")
    failed = [check for check in checks if not check.passed]
    if failed:
        worst = max(
            failed, key=lambda check: float("inf") if check.difference != check.difference else check.difference
        )
        raise CheckpointError(
            f"{path.name} was not written: {worst.kind} differs from PyTorch by {worst.difference:.2g} at"
            f" {_size(worst.shape)}, allowed is {worst.tolerance:.2g}"
        )


def table(checks: Sequence[Check]) -> str:
    """All checks as lines of text in columns."""
    rows = [("checked against PyTorch", "input", "max. difference", "allowed")]
    rows += [(c.kind, _size(c.shape), f"{c.difference:.1e}", f"{c.tolerance:.1e}") for c in checks]
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{kind:<{wide[0]}}  {size:<{wide[1]}}  {difference:>{wide[2]}}  {allowed:>{wide[3]}}"
        for kind, size, difference, allowed in rows
    )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _json(value: Any) -> str:
    """Data of unknown origin as valid JSON; 'null' if it is nested without end or too long."""
    try:
        return json.dumps(_plain(value), allow_nan=False)
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        return "null"


def _plain(value: Any) -> Any:
    """A value of JSON's types: null for numbers that are not finite, text for other types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
