"""The options of scripts/compress.py: those of a training, and a section `compress`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from basicsr.config.component_blocks import Component, FrozenMapping, Named, Section, validated
from basicsr.config.load import load_options, no_warning
from basicsr.config.quantization import QuantizationSettings
from basicsr.config.schema import MODEL_TYPES, Options
from basicsr.config.yaml_files import Document, apply_overrides, lines_of, load_yaml
from basicsr.config.yaml_reader import Entry, LocatedProblem, Position
from basicsr.utils.errors import OptionsError
from basicsr.utils.ranges import BelowOne, Few, Iterations, IterationsOrNone, Side
from basicsr.utils.registry import ARCH_REGISTRY, REQUIRED, Key, Problem, raise_problems
from basicsr.utils.text import nearest

SECTION = "compress"
_NAME = re.compile(r"[A-Za-z0-9][\w+-]*\Z")
_SET_HERE = {
    "network_g": "the student is chosen: say in compress: families what to choose from",
    "path.pretrain_network_g": "students start untrained; remove it",
    "path.resume_state": "the same command goes on by itself; remove it",
    "train.quantize": "the quantised training's settings stand in compress: quantize: settings",
}
_OF_JUDGING = ("name", "scale", "num_gpu", "crop_border", "datasets", "val")
FilePrecision = Literal["float32", "fp16", "int8"]
Rate = Annotated[float, Field(gt=0, le=100)]


class _PartOfNetwork(Component):
    """A network's block in which arguments may be missing: ranges give them."""

    def problems(self, block: Mapping[str, Any]) -> list[Problem]:
        """See `Component`."""
        return [found for found in super().problems(block) if found.what != REQUIRED]


NetworkPart = Annotated[Mapping[str, Any], _PartOfNetwork("network", ARCH_REGISTRY)]


class Budget(Section):
    """`compress: budget`: what a student may cost; one of the three."""

    ms: Annotated[float, Field(gt=0, le=1e7)] | None = Field(
        default=None, description="milliseconds of an image, measured as `latency` says"
    )
    parameters: Annotated[int, Field(ge=1, le=10**12)] | None = Field(
        default=None, description="parameters of the network as it is shipped, its branches merged"
    )
    multiply_adds: Annotated[int, Field(ge=1, le=10**18)] | None = Field(
        default=None, description="multiply-adds of an image of latency: size, of the network as it is shipped"
    )
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.2, description="students that cost between (1 - tolerance) budgets and one are tried"
    )

    @model_validator(mode="after")
    def _one_of_three(self) -> Budget:
        given = [name for name in ("ms", "parameters", "multiply_adds") if getattr(self, name) is not None]
        if len(given) != 1:
            has = f"has {' and '.join(given)}" if given else "has none of them"
            raise_problems([Problem((), f"must give one of ms, parameters, multiply_adds; it {has}")])
        return self

    @property
    def kind(self) -> str:
        """'ms', 'parameters' or 'multiply_adds'."""
        return next(name for name in ("ms", "parameters", "multiply_adds") if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """The budget itself."""
        return float(getattr(self, self.kind))


class LatencyOptions(Section):
    """`compress: latency`: how latency is measured, for the budget and for the report."""

    target: str = Field(default="onnxruntime", description="one of export.py's targets, whose runtime runs the files")
    precision: FilePrecision = Field(default="float32", description="of the files that are timed")
    size: tuple[Side, Side] = Field(default=(256, 256), description="height and width of the LR image")
    threads: Few = Field(default=1, description="threads of the runtime")
    seconds: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=3.0, description="that each candidate is timed for, in turns with the others"
    )


class MeasurementsOptions(Section):
    """`compress: measurements`: figures of another device; precision, size and threads are those of `latency`."""

    file: str = Field(description="JSON as of scripts/measure_latency.py, also written by hand: docs/latency.md")
    device: str = Field(description="the device's name in the file")
    runtime: str = Field(description="the runtime's name in the file")


class FamilyOptions(Section):
    """An entry of `compress: families`: students of one architecture."""

    network: NetworkPart = Field(description="type, and arguments that all of them have; `upscale` is filled in")
    ranges: Named[tuple[Any, ...]] = Field(
        default=FrozenMapping(), description="lists of values of other arguments; each combination is a candidate"
    )
    lr_factor: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0,
        description="of `optim_g: lr`, `search: lr` and `quantize: lr` here; PlainSR with branches wants less",
    )


class SearchOptions(Section):
    """`compress: search`: brief trainings with successive halving."""

    candidates: Few = Field(default=8, description="at most so many of those on the budget's edge are trained")
    iterations: Iterations = Field(default=500, description="of the first rung; rung r ends after iterations * eta^r")
    rungs: Annotated[int, Field(ge=1, le=20)] = Field(default=3, description="after each but the last, 1/eta go on")
    eta: Annotated[int, Field(ge=2, le=16)] = Field(default=2, description="what is kept: one of so many")
    lr: Rate | None = Field(default=None, description="constant learning rate; ~: half of train: optim_g: lr")
    ema_decay: BelowOne = Field(default=0.99, description="decay of the averaged weights that are judged")
    jobs: Annotated[int, Field(ge=1, le=256)] = Field(default=1, description="trainings at a time")


class QuantizeOptions(Section):
    """`compress: quantize`: quantisation-aware distillation of the chosen student."""

    iterations: IterationsOrNone = Field(default=1000, description="0: int8 files are calibrated only")
    lr: Rate | None = Field(default=None, description="learning rate at its start; ~: a tenth of train: optim_g: lr")
    settings: QuantizationSettings = Field(
        default=QuantizationSettings(), description="how layers are quantised, as train: quantize"
    )


class TargetOptions(Section):
    """An entry of `compress: targets`: files for one runtime."""

    target: str = Field(description="one of export.py's targets")
    precisions: Annotated[tuple[FilePrecision, ...], Field(min_length=1)] = Field(
        default=("float32",), description="a file each"
    )
    size: tuple[Side, Side] | None = Field(default=None, description="height and width of a file of one size; ~: any")


class CompareOptions(FamilyOptions):
    """`compress: compare`: a family whose student of the nearest latency is trained as the chosen one is."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = Field(
        default=(0, 1, 2), description="of both students' trainings"
    )


class CompressOptions(Section):
    """The section `compress`."""

    budget: Budget = Field(description="what a student may cost")
    latency: LatencyOptions = Field(default=LatencyOptions(), description="how latency is measured")
    measurements: MeasurementsOptions | None = Field(
        default=None, description="latencies of another device, from a file; ~: measured here"
    )
    families: Named[FamilyOptions] = Field(description="what to choose a student from, by names of your choice")
    search: SearchOptions = Field(default=SearchOptions(), description="brief trainings of those on the edge")
    quantize: QuantizeOptions | None = Field(
        default=QuantizeOptions(), description="the step to int8; ~: no int8 file is made"
    )
    targets: tuple[TargetOptions, ...] = Field(default=(), description="which files are made")
    max_drop: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.1, description="dB that an int8 file may lose on the first validation set"
    )
    cache: bool = Field(default=True, description="train from the teacher's outputs, which are stored first")
    cache_self_ensemble: bool = Field(default=False, description="these are averages over flips and rotations")
    compare: CompareOptions | None = Field(default=None, description="another student to compare with")
    images: Few = Field(default=4, description="images of each set that the report shows")

    @classmethod
    def gathered(cls, data: dict[str, Any]) -> dict[str, Any]:
        """See `Section`; names of families become names of files."""
        families = data.get("families")
        if isinstance(families, Mapping):
            wrong = [name for name in families if not _NAME.match(str(name))]
            raise_if(Problem(("families", name), "must be letters, digits, _, + and -") for name in wrong)
            raise_if([Problem(("families",), "must name at least one")] if not families else [])
        return data


def raise_if(problems: Any) -> None:
    """Raises problems where there are any."""
    if found := list(problems):
        raise_problems(found)


@dataclass(frozen=True)
class Settings:
    """An options file of compress.py, read and checked.

    Attributes:
        file: its path.
        content: what trains, without `compress`, as plain data.
        options: the same, typed, with any student.
        judging: how and on which sets students are judged: `val`, and the sets `val`, `test` and so on.
        compress: the section.
        warnings: lines on what looks like slips.
    """

    file: Path
    content: Mapping[str, Any]
    options: Options
    judging: Options
    compress: CompressOptions
    warnings: tuple[str, ...]


def read_settings(file: Path, overrides: Sequence[str] = (), *, paths: bool = True) -> Settings:
    """Reads an options file; looks at neither images nor weights, but for whether they are there if `paths`.

    Raises:
        OptionsError: one line for each mistake, with its place.
    """
    document = load_yaml(file, keep_going=True)
    apply_overrides(document, overrides)
    entry = document.root.value.pop(SECTION, None)
    if entry is None:
        raise OptionsError(f"{file}: has no section {SECTION}; docs/compress.md says what it holds")
    scale = document.data().get("scale")
    data = _filled(Document(Entry({SECTION: entry}, entry.position)).data()[SECTION], scale)
    problems, _, compress = validated(CompressOptions, data if isinstance(data, dict) else {}, lambda key: None)
    located = [_located(entry, problem) for problem in problems]
    if not isinstance(data, dict):
        located = [LocatedProblem(entry.position, (SECTION,), "must be a mapping")]
    here = document.positions()
    for key, remedy in _SET_HERE.items():
        if (parts := tuple(key.split("."))) in here:
            located.append(LocatedProblem(here[parts], parts, f"is not for this command: {remedy}"))
    if MODEL_TYPES.get(str(document.data().get("model_type", "KDModel"))) != "KDModel":
        what = "must be KDModel: students learn from a teacher; remove it"
        located.append(LocatedProblem(here["model_type",], ("model_type",), what))
    content = {"model_type": "KDModel", **document.data()}
    content.setdefault("network_t", {"type": "auto"})
    if ("path", "pretrain_network_t") not in here:
        what = "is required: the file of the teacher's weights"
        located.append(LocatedProblem(document.position(("path",)), ("path", "pretrain_network_t"), what))
    warnings: list[str] = []
    options = judging = None
    stand_in = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": "{scale}"}
    for key, value in (("model_type", "KDModel"), ("network_t", content["network_t"]), ("network_g", stand_in)):
        if key not in document.root.value:
            document.root.value[key] = _entry(value)
    lines: list[str] = []
    try:
        options = load_options(_with_sets(document, "train", "val"), training=True, paths=paths, warn=warnings.append)
    except OptionsError as error:
        lines = str(error).splitlines()[1:]
    try:
        judging = load_options(_with_sets(document, "val", "test"), training=False, paths=paths, warn=no_warning)
    except OptionsError as error:
        lines += [line for line in str(error).splitlines()[1:] if line not in lines]
    lines = [*lines_of(located), *lines]
    if options is not None and not options.datasets_of("val"):
        lines.append(f"{file}: datasets: has no validation set: give val, with HR images")
    if options is not None and not options.val.metrics:
        lines.append(f"{file}: val: metrics: is required: students are chosen by the first of them")
    if options is not None and "lr" not in options.train.optim_g:
        lines.append(f"{file}: train: optim_g: lr: is required: brief and quantised trainings take a part of it")
    if lines or compress is None or options is None or judging is None:
        count = "one mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise OptionsError("\n".join([f"{file}: {count}", *lines]))
    return Settings(file, content, options, judging, compress, tuple(warnings))


def _with_sets(document: Document, *phases: str) -> Document:
    """The options with the sets of these phases alone; without `train`, as test.py has them."""
    root = {**document.root.value}
    if isinstance(sets := root.get("datasets"), Entry) and isinstance(sets.value, dict):
        kept = {key: value for key, value in sets.value.items() if key.partition("_")[0] in phases}
        root["datasets"] = Entry(kept, sets.position)
    if "train" not in phases:
        root = {key: root[key] for key in _OF_JUDGING if key in root}
        root["networks"] = _entry({"bicubic": {"type": "bicubic"}})
    return Document(Entry(root, document.root.position), document.problems)


def _located(entry: Entry, problem: Problem) -> LocatedProblem:
    document = Document(Entry({SECTION: entry}, entry.position))
    key: Key = (SECTION, *problem.key)
    return LocatedProblem(document.position(key), key, problem.message)


def _filled(value: Any, scale: Any) -> Any:
    """The value with the scale in the place of `{scale}`."""
    if isinstance(value, dict):
        return {key: _filled(inner, scale) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, scale) for inner in value]
    if isinstance(value, str) and type(scale) is int:
        return scale if value == "{scale}" else value.replace("{scale}", str(scale))
    return value


def _entry(value: Any) -> Entry:
    nowhere = Position("compress.py")
    if isinstance(value, dict):
        return Entry({key: _entry(inner) for key, inner in value.items()}, nowhere)
    return Entry(value, nowhere)


def check_name(kind: str, name: str, known: Sequence[str], key: str) -> None:
    """Raises OptionsError for a name that is none of those known."""
    if name not in known:
        raise OptionsError(
            f"compress: {key}: no {kind} is called '{name}'{nearest(name, known)}; there are: {', '.join(known)}"
        )
