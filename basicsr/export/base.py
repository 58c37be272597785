"""What an export format or target must provide, and what it is given: a network to write, and how to check the file."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

import basicsr
from basicsr.archs.traits import Trait
from basicsr.export import descriptors
from basicsr.export.checks import TOLERANCES, Check, Size, measured, shape_text, sizes_for
from basicsr.export.tracing import Precision, smallest_side, trace, trace_at, traceable
from basicsr.files.atomic_files import sha256_of
from basicsr.quantization.lowering import LoweredForm, simplify
from basicsr.quantization.network import in_float
from basicsr.runtimes.base import LoadedFile, runtimes
from basicsr.utils.errors import CheckpointError, MachineError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.text import first_line
from basicsr.weights.recognise import Pretrained, check_scale, load_pretrained
from basicsr.weights.spandrel_networks import SpandrelNetwork

Layout = Literal["ours", "spandrel"]
Run = Callable[[Tensor], Tensor]  # (B, C, H, W) in [0, 1] to (B, C, sH, sW), float32

_SMALL_ENOUGH = 16  # pixels a side that networks need not take


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
    precision: Precision  # of weights and inside; input and output are float32. In int8 the student is quantised
    opset: int  # of ONNX
    layout: Layout  # of the safetensors file
    size: tuple[int, int] | None = None  # height and width that graphs are for; None: any
    nhwc: bool = False  # images with channels last, for targets that know both
    remarks: list[str] = field(default_factory=list)  # sentences for the user; formats append to them
    _programs: dict[LoweredForm | None, ExportedProgram] = field(default_factory=dict, init=False, repr=False)

    @property
    def program(self) -> ExportedProgram:
        """The network's graph in this precision, for images of any size or of `size`; traced once for all formats."""
        return self.program_of(None)

    def program_of(self, form: LoweredForm | None) -> ExportedProgram:
        """`program`; in int8 with integers of this form."""
        if form not in self._programs:
            network = self.student.pretrained
            wrapped = traceable(network.network, self.precision, any_size=self.size is None, form=form)
            if self.size is None:
                program = trace(wrapped, network.in_channels)
            else:
                program = trace_at(wrapped, (network.in_channels, *self.size))
            self._programs[form] = simplify(program) if self.precision == "int8" else program
        return self._programs[form]

    def in_float(self) -> ExportJob:
        """The same in float32, for targets that round what is written themselves."""
        return replace(self, precision="float32")

    def changed(self, change: Callable[[nn.Module], None]) -> ExportJob:
        """The same for a copy of the network that `change` has changed; it is what files are compared with."""
        network = copy.deepcopy(self.student.pretrained.network)
        change(network)
        student = replace(self.student, pretrained=replace(self.student.pretrained, network=network))
        return replace(self, student=student)

    @cached_property
    def takes_batches(self) -> bool:
        """Whether the graph takes any number of images, not one at a time."""
        program = next(iter(self._programs.values()), None) or self.program
        example = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
        return not isinstance(example.meta["val"].shape[0], int)

    @property
    def smallest(self) -> int:
        """Smallest side that graphs take where spandrel's code extends no image; 1 for our own networks."""
        network = self.student.pretrained.network
        return network.sizes.minimum if isinstance(network, SpandrelNetwork) and self.size is None else 1

    def of_graph(self, run: Run) -> Run:
        """`run`, for `compare`, of a file with the graph; image by image where that takes one at a time."""
        return run if self.takes_batches else self._one_by_one(run)

    def _one_by_one(self, run: Run) -> Run:
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

    def compare(self, kind: str, run: Run, *, tolerance: float | None = None, smallest: int = 1) -> list[Check]:
        """Runs a written file on the examples of at least `smallest` pixels a side; raises CheckpointError if it fails.

        `kind` names the format and what runs it, and `tolerance` is the largest difference allowed, the precision's
        where None. In int8 the network is the one with fake quantisation: kernels in integers round some values to the
        other side, and layer by layer more, up to about what quantisation itself changes; twice that is allowed.
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
            if self.precision == "int8":
                with torch.no_grad(), in_float(student.pretrained.network):
                    in_floats = student.pretrained.network(lq)
                allowed = max(TOLERANCES["int8"], 2 * measured(in_floats - expected, "int8"))
            if output.shape == expected.shape:
                difference = measured(output.float() - expected, self.precision)
            checks.append(Check(kind, shape, difference, allowed))
        return checks

    def compare_loaded(self, kind: str, loaded: LoadedFile, *, smallest: int = 1) -> list[Check]:
        """As `compare`, for a file in its runtime; raises CheckpointError if its facts are not the network's."""
        network, facts = self.student.pretrained, loaded.facts
        told, expected = (facts.scale, facts.channels, facts.size), (network.scale, network.in_channels, self.size)
        if told != expected:
            raise CheckpointError(f"{kind} says of the file scale, channels, size {told}, expected {expected}")

        def run(lq: Tensor) -> Tensor:
            return torch.from_numpy(loaded(lq.numpy()))

        return self.compare(kind, run if facts.batches else self._one_by_one(run), smallest=smallest)


class ExportFormat(ABC):
    """A kind of file; subclasses are registered with `EXPORT_REGISTRY`, one in each file `*_format.py`.

    A format with a `runtime` is a target: it is made for devices and chosen by `--target`.

    Attributes:
        name: in `--formats` or `--target`.
        ending: of the file's name.
        further: endings of files beside it, of the same stem.
        packages: what must be installed beside the framework.
        extra: of pip, which installs them.
        order: formats with lower numbers are written and listed first.
        runtime: what runs the files; the one of this name in `RUNTIME_REGISTRY` checks them.
        precisions: in which it can be written.
        takes_nhwc: whether its files can be for images with channels last.
        limits: what of networks it does not take, see `basicsr.export.descriptors`.
        one_size: why its files are for images of one size only; '' where they need not be.
    """

    name: ClassVar[str]
    ending: ClassVar[str]
    further: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = "export"
    order: ClassVar[int] = 100
    runtime: ClassVar[str] = ""
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "fp16")
    takes_nhwc: ClassVar[bool] = False
    limits: ClassVar[Mapping[Trait, descriptors.Limit]] = {}
    one_size: ClassVar[str] = ""

    @abstractmethod
    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """Writes the file, and those beside it, loads it and returns `job.compare` of it.

        `path` has the name that users see. Raises CheckpointError or OSError.
        """

    def refusal(self, job: ExportJob) -> str | None:
        """One line on what of the job it cannot do, known before any work, and what to do instead; None if nothing.

        What follows from `limits` and `one_size`; a target that has more to say extends it. In int8 the job's network
        is not quantised yet.
        """
        network, others = job.student.pretrained, list(export_formats().values())
        return descriptors.refusal(network.architecture, network.network, self, job.size, others)

    @classmethod
    def require(cls) -> None:
        """Raises MachineError where its packages, or its runtime's, are not installed."""
        runtime = runtimes().get(cls.runtime)
        needed = dict.fromkeys((*cls.packages, *(runtime.packages if runtime is not None else ())))
        if missing := [package for package in needed if importlib.util.find_spec(package) is None]:
            option = "--target" if cls.runtime else "--formats"
            raise MachineError(
                f"{option} {cls.name} needs {', '.join(missing)}, not installed here: pip install -e '.[{cls.extra}]',"
                f" or leave {cls.name} out of {option}"
            )

    def load(self, path: Path) -> LoadedFile:
        """A written file in its runtime, on as many threads as PyTorch has; raises as `Runtime.load`."""
        return runtimes()[self.runtime].load(path, threads=torch.get_num_threads(), settings=self.settings())

    def settings(self) -> Mapping[str, Any] | None:
        """Of the runtime, for checks."""
        return None


def export_formats() -> dict[str, ExportFormat]:
    """All registered formats by name, in their order."""
    formats: list[ExportFormat] = [cls() for _, cls in EXPORT_REGISTRY]
    return {entry.name: entry for entry in sorted(formats, key=lambda entry: (entry.order, entry.name))}


def names_of(*, targets: bool) -> list[str]:
    """The registered targets, or the other formats, in their order."""
    return [name for name, entry in export_formats().items() if bool(entry.runtime) is targets]


def load_student(path: str | os.PathLike[str], *, param_key: str | None = None, scale: int | None = None) -> Student:
    """Reads a checkpoint's `param_key`, else `params_ema` or `params`; CheckpointError if it holds no network.

    `scale` chooses where the network is for several: OptionsError if it has to, or is none of them.
    """
    path = Path(path)
    pretrained = load_pretrained(path, param_key=param_key, only_this=True, scale=scale)
    check_scale(pretrained, path, scale)
    return Student(pretrained, path, sha256_of(path))


def _json(value: Any) -> str:
    """Data of unknown origin as valid JSON: null for numbers that are not finite, text for other types.

    'null' if it is nested without end, too deep, or has a number of thousands of digits.
    """
    try:
        text = json.dumps(value, default=str)
        return json.dumps(json.loads(text, parse_constant=lambda constant: None))
    except (RecursionError, TypeError, ValueError):
        return "null"
