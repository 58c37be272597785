"""The last steps: the student in int8, and its files for all targets, judged by their runtimes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from subprocesses import StepFailed

from basicsr.config.quantization import QuantizationSettings
from basicsr.data.calibration_images import calibration_images
from basicsr.export.base import Student, load_student
from basicsr.export.int8 import Int8
from basicsr.export.tracing import Precision
from basicsr.files.atomic_files import sha256_of
from basicsr.latency.figures import Figure
from basicsr.metrics.evaluator import Evaluation
from basicsr.quantization.sensitivity import sensitivity
from basicsr.utils.errors import UserError
from basicsr.utils.text import first_line
from basicsr.weights.recognise import load_pretrained
from compression.candidates import Candidate
from compression.figures import Judged, of_file
from compression.files import version_of, written
from compression.latencies import TEACHER
from compression.pipeline import Pipeline
from compression.trainings import Training, plain

CALIBRATED, DISTILLED = "student, calibrated", "student, quantised"
_FOLDER, _SHIPPED = "exported", "shipped"


@dataclass(frozen=True)
class ShippedFile:
    """A file for a target, or why there is none.

    Attributes:
        target, precision: what it is.
        source: 'float', or of int8 'calibrated' or 'quantised' with distillation.
        facts: as of `files.written`, or `refused` with the reason.
        path: of the file; None where there is none.
        evaluations: figures of its outputs by its runtime, by set.
        latency: of an image; None where it was not timed.
    """

    target: str
    precision: str
    source: str
    facts: Mapping[str, Any]
    path: Path | None = None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    latency: Figure | None = None

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.target} {self.precision}" + ("" if self.source == "float" else f", {self.source}")


class Shipping:
    """Quantises and writes a student.

    Args:
        pipeline: of the run.
        candidate: which student.
        weights: its checkpoint, in float.
    """

    def __init__(self, pipeline: Pipeline, candidate: Candidate, weights: Path) -> None:
        self.pipeline, self.candidate, self.weights = pipeline, candidate, weights
        self.compress = pipeline.compress
        self.quantised: Path | None = None
        self.failure = ""
        self.teacher_latency: Figure | None = None

    @property
    def wants_int8(self) -> bool:
        """Whether any target has int8."""
        return any("int8" in entry.precisions for entry in self.compress.targets)

    @cached_property
    def student(self) -> Student:
        """The float student."""
        return load_student(self.weights)

    def train_quantised(self) -> None:
        """Quantisation-aware distillation; where it fails, int8 files are calibrated only, and it is said why."""
        quantize = self.compress.quantize
        if quantize is None or not quantize.iterations or not self.wants_int8:
            return
        pipeline = self.pipeline
        content = pipeline.stages.quantise(self.candidate, self.weights)
        label = f"quantising {self.candidate.label}"
        training = Training(content["name"], label, content, pipeline.inputs(self.weights))
        pipeline.say(f"{label}: {quantize.iterations} iterations")
        try:
            pipeline.trainer.run([training], "quantising")
            self.quantised = pipeline.trainer.weights(training)
        except StepFailed as error:
            self.failure = first_line(error)
            pipeline.say(f"{self.failure}; int8 files are calibrated only")

    def judge_quantised(self) -> dict[str, dict[str, Evaluation]]:
        """Figures of the student with fake quantisation, after calibration and after distillation, in PyTorch."""
        if not self.wants_int8:
            return {}
        figures = self.pipeline.figures
        judged = Judged(CALIBRATED, self._calibration_key(), lambda: self.calibrated.pretrained.network)
        found = {CALIBRATED: figures.judge(judged)}
        if (weights := self.quantised) is not None:
            judged = Judged(DISTILLED, sha256_of(weights), lambda: load_pretrained(weights).network)
            found[DISTILLED] = figures.judge(judged)
        return found

    def sensitivity(self) -> dict[str, float]:
        """By layer, how much worse the calibrated student's first figure is where that layer alone is quantised."""
        if not self.wants_int8:
            return {}
        figures = self.pipeline.figures
        made_from = {"version": 1, "calibration": self._calibration_key(), "set": figures.digest(figures.first)}

        def work() -> tuple[Mapping[str, Any], Sequence[Path]]:
            found = sensitivity(self.calibrated.pretrained.network, figures.value_of, report=self._each_layer)
            return {name: found.unquantized - figure for name, figure in found.alone.items()}, []

        return {name: float(value) for name, value in self.pipeline.steps.do("sensitivity", made_from, work).items()}

    def _each_layer(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            self.pipeline.progress.show(f"sensitivity: {name}")
            yield name

    def ship(self, student: Mapping[str, Evaluation]) -> list[ShippedFile]:
        """All files, judged and timed; of each target and precision the one that loses least is copied to `shipped`.

        Args:
            student: figures of the float student, from which int8 files may fall by `max_drop`.
        """
        found: list[ShippedFile] = []
        shipped: list[ShippedFile] = []
        for entry in self.compress.targets:
            for precision in entry.precisions:
                made = [self._made(entry.target, precision, source, entry.size) for source in self._sources(precision)]
                made = sorted((self._within(file, student) for file in made), key=self._rank)
                shipped += [file for file in made if file.path is not None][:1]
                found += made
        for file in found:
            if file.path is None:
                self.pipeline.say(f"  {file.name}: not shipped: {file.facts['refused']}")
        self._copy(shipped)
        return self._timed(found)

    def _within(self, file: ShippedFile, student: Mapping[str, Evaluation]) -> ShippedFile:
        """The file; without it where it loses more than `max_drop`."""
        figures, allowed = self.pipeline.figures, self.compress.max_drop
        if file.path is None or file.precision != "int8":
            return file
        lost = self.pipeline.sign * (figures.value(student) - figures.value(file.evaluations))
        if lost <= allowed:
            return file
        what = (
            f"{figures.metric} on {figures.first} is {lost:.3f} worse than the float student's, allowed is {allowed:g}"
        )
        return replace(file, path=None, facts={**file.facts, "refused": f"{what} (compress: max_drop)"})

    def _copy(self, files: Sequence[ShippedFile]) -> None:
        """Puts files of all targets into one folder, for their user, in the place of what lay there."""
        folder = self.pipeline.folder / _SHIPPED
        fresh = folder.with_name(f".{_SHIPPED}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for file in files:
            assert file.path is not None
            for name in file.facts["files"]:
                source = file.path.parent / name
                copy: Callable[..., object] = shutil.copytree if source.is_dir() else shutil.copy2
                copy(source, fresh / name)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)

    def _sources(self, precision: str) -> list[str]:
        if precision != "int8":
            return ["float"]
        return ["calibrated", *(["quantised"] if self.quantised is not None else [])]

    def _rank(self, file: ShippedFile) -> tuple[bool, float]:
        worst = -self.pipeline.sign * self.pipeline.figures.value(file.evaluations) if file.evaluations else 0.0
        return file.path is None, worst

    def _made(self, target: str, precision: Precision, source: str, size: tuple[int, int] | None) -> ShippedFile:
        facts, path = self._written(target, precision, source, size)
        if path is None:
            return ShippedFile(target, precision, source, facts)
        name = f"{target} {precision}" + ("" if source == "float" else f", {source}")
        judged = of_file(name, path, facts["sha256"], self.compress.latency.threads, pictures=precision == "int8")
        try:
            evaluations = self.pipeline.figures.judge(judged)
        except UserError as error:
            return ShippedFile(target, precision, source, {**facts, "refused": first_line(error)})
        self.pipeline.say(f"  {name}: {self.pipeline.told(evaluations)}")
        return ShippedFile(target, precision, source, facts, path, evaluations)

    def _written(
        self, target: str, precision: Precision, source: str, size: tuple[int, int] | None
    ) -> tuple[Mapping[str, Any], Path | None]:
        pipeline, compress = self.pipeline, self.compress
        made_from: dict[str, Any] = {"version": 2, "target": target, "precision": precision, "size": plain(size)}
        made_from |= {"runtime": version_of(target), "torch": torch.__version__}
        weights = self.quantised if source == "quantised" and self.quantised is not None else self.weights
        made_from["weights"] = sha256_of(weights)
        if precision == "int8":
            made_from |= {"calibration": self._calibration_key(), "max_drop": compress.max_drop}
            made_from |= {"set": pipeline.figures.digest(pipeline.figures.first)}
        ending = f"_x{pipeline.options.scale}"
        name = f"{pipeline.options.name.removesuffix(ending)}{ending}"
        folder = pipeline.folder / _FOLDER / (f"int8_{source}" if precision == "int8" else "float")

        def work() -> tuple[Mapping[str, Any], Sequence[Path]]:
            pipeline.progress.show(f"writing {target}, {precision}")
            try:
                int8 = self._int8(quantised=source == "quantised") if precision == "int8" else None
                facts, paths = written(load_student(weights), folder, name, target, precision, size, int8)
            except UserError as error:
                return {"refused": first_line(error)}, []
            return {"path": str(paths[0].relative_to(pipeline.folder)), **facts}, paths

        facts = pipeline.steps.do(f"file {target} {precision} {source}", made_from, work)
        return facts, pipeline.folder / str(facts["path"]) if "path" in facts else None

    def _timed(self, files: Sequence[ShippedFile]) -> list[ShippedFile]:
        there = {file.name: file for file in files if file.path is not None}
        if not there:
            return list(files)
        times = self.pipeline.latencies.of_files({name: file.path for name, file in there.items() if file.path})
        self.teacher_latency = times.get(TEACHER)
        return [replace(file, latency=times.get(file.name)) for file in files]

    @cached_property
    def calibrated(self) -> Student:
        """The float student with fake quantisers, their ranges from the training images."""
        self.pipeline.progress.show("calibrating")
        return self._int8(quantised=False).quantized(self.student)

    def _int8(self, *, quantised: bool) -> Int8:
        options, settings = self.pipeline.options, self._settings
        images = None
        if not quantised:
            images = calibration_images(list(options.datasets_of("train").values()), settings.images)
        metric = next(iter(self.pipeline.settings.judging.val.metrics.values()))
        return Int8(
            images,
            self.pipeline.figures.datasets[self.pipeline.figures.first],
            self.compress.max_drop,
            settings,
            metric.get("crop_border"),
            metric.get("test_y_channel", False),
        )

    @cached_property
    def _settings(self) -> QuantizationSettings:
        assert self.compress.quantize is not None
        return self.compress.quantize.settings

    def _calibration_key(self) -> str:
        settings = plain(self._settings.to_data())
        return f"{sha256_of(self.weights)} {settings} {self.pipeline.image_digests['train']}"
