"""Latency of untrained candidates, the teacher and files: measured in turns, or read from another device's file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from basicsr.data import build_eval_dataset
from basicsr.data.calibration_images import calibration_images
from basicsr.export.base import load_student
from basicsr.export.int8 import Int8
from basicsr.latency.candidates import Candidate as Timed
from basicsr.latency.figures import Figure, find, read_figures
from basicsr.latency.machine import this_device
from basicsr.latency.measuring import Limits, measure
from basicsr.utils.errors import DataError, OptionsError, UserError
from basicsr.utils.text import first_line
from compression.candidates import Candidate
from compression.files import target_of, untrained, version_of, written
from compression.options import Settings
from compression.progress import Progress
from compression.steps import Steps
from compression.trainings import plain

TEACHER = "teacher"
_ROUNDS = 100
_CALIBRATED_ON = 2


class Latencies:
    """What is known of latencies in a run.

    Args:
        settings: of the run.
        steps: of the run.
        progress: where lines go.
        candidates: all, by name.
        teacher: SHA-256 of the teacher's file.
    """

    def __init__(
        self,
        settings: Settings,
        steps: Steps,
        progress: Progress,
        candidates: Mapping[str, Candidate],
        teacher: str,
    ) -> None:
        self._options, self._latency = settings.options, settings.compress.latency
        self._elsewhere = settings.compress.measurements
        self._steps, self._progress, self._candidates, self._teacher = steps, progress, candidates, teacher

    def of_candidates(self, names: Sequence[str]) -> dict[str, Figure]:
        """Figures of untrained candidates by name, and of the teacher where there is one.

        Raises:
            DataError: the other device's file has none of a candidate; the candidates' files are there by then.
            UserError: a candidate cannot be written or run.
        """
        if self._elsewhere is not None:
            return self._read(names)
        timed = [self._timed(name, self._file(name)) for name in names]
        return self.measure("latencies", [*timed, self._timed_teacher()])

    def of_rivals(self, chosen: str, others: Sequence[str]) -> dict[str, Figure]:
        """Figures of the chosen student and of those that it may be compared with, untrained, in turns."""
        if self._elsewhere is not None:
            return self._read([chosen, *others])
        return self.measure(
            "latencies of compared", [self._timed(name, self._file(name)) for name in (chosen, *others)]
        )

    def measure(self, step: str, timed: Sequence[Timed], *, may_fail: bool = False) -> dict[str, Figure]:
        """Times several in turns, as a step; DataError where one fails, which has no figure if it `may_fail`."""
        made_from: dict[str, Any] = {"version": 1, "device": this_device(), "seconds": self._latency.seconds}
        made_from["timed"] = [{**plain(one.to_json()), "source": one.digest()} for one in timed]
        made_from["runtimes"] = sorted({one.find_runtime().version() for one in timed})

        def work() -> tuple[Mapping[str, Any], Sequence[Path]]:
            limits = Limits(_ROUNDS, self._latency.seconds)
            found = measure(timed, limits, report=lambda line: self._progress.show(f"latency: {line}"))
            if found.failed and not may_fail:
                label, reason = next(iter(found.failed.items()))
                raise DataError(f"{label} does not run: {reason}")
            return {"figures": [figure.model_dump(mode="json") for figure in found.figures]}, []

        def same(before: Mapping[str, Any]) -> bool:
            """Whether these were timed then, perhaps beside others."""
            others = {**before, "timed": made_from["timed"], "runtimes": made_from["runtimes"]} == made_from
            return others and all(one in before["timed"] for one in made_from["timed"])

        figures = map(Figure.model_validate, self._steps.do(step, made_from, work, same)["figures"])
        names = {one.label for one in timed}
        return {figure.candidate: figure for figure in figures if figure.candidate in names}

    def of_files(self, files: Mapping[str, Path]) -> dict[str, Figure]:
        """Figures of exported files by name, timed in turns with the teacher; none of files for other sizes."""
        size, threads = self._latency.size, self._latency.threads
        timed = [Timed(name, path, size, threads) for name, path in files.items()]
        return self.measure("latencies of files", [*timed, self._timed_teacher()], may_fail=True)

    def _timed(self, name: str, path: Path) -> Timed:
        runtime = target_of(self._latency.target).runtime
        block = self._candidates[name].block
        return Timed(name, path, self._latency.size, self._latency.threads, runtime, network=block)

    def _timed_teacher(self) -> Timed:
        """The teacher's file for the target, in float32, else the teacher in PyTorch."""
        path = self._teacher_file()
        runtime = target_of(self._latency.target).runtime if path is not None else None
        source = path if path is not None else Path(str(self._options.path.pretrain_network_t))
        return Timed(TEACHER, source, self._latency.size, self._latency.threads, runtime)

    def _read(self, names: Sequence[str]) -> dict[str, Figure]:
        other, latency = self._elsewhere, self._latency
        assert other is not None
        figures = read_figures(Path(other.file))
        where: dict[str, Any] = {"device": other.device, "runtime": other.runtime, "precision": latency.precision}
        where |= {"size": latency.size, "threads": latency.threads}
        found = {TEACHER: figure} if (figure := find(figures, candidate=TEACHER, **where)) is not None else {}
        for name in names:
            figure = find(figures, candidate=name, network=plain(self._candidates[name].block), **where)
            if figure is not None:
                found[name] = figure
        if missing := [name for name in names if name not in found]:
            folder = {self._file(name).parent for name in missing}.pop()
            size = "x".join(map(str, latency.size))
            raise DataError(
                f"{other.file} has no figure of {len(missing)} of {len(names)} candidates, such as {missing[0]}, for"
                f" device {other.device}, runtime {other.runtime}, {latency.precision}, {size}, {latency.threads}"
                f" thread(s); their files are in {folder}: time them there and add the figures (docs/latency.md)"
            )
        return found

    def _file(self, name: str) -> Path:
        """An untrained candidate's file."""
        candidate, latency = self._candidates[name], self._latency
        made_from = {"version": 2, "block": plain(candidate.block), "target": latency.target}
        made_from |= {"precision": latency.precision, "runtime": version_of(latency.target), "torch": torch.__version__}
        folder = self._steps.folder / "candidates"

        def work() -> tuple[Mapping[str, Any], Sequence[Path]]:
            self._progress.show(f"untrained candidates: exporting {candidate.label}")
            checkpoint = folder / f"{name}.pth"
            untrained(candidate, self._options.scale, checkpoint)
            int8 = self._int8 if latency.precision == "int8" else None
            student = load_student(checkpoint)
            result, paths = written(student, folder, name, latency.target, latency.precision, int8=int8)
            checkpoint.unlink()
            return {"path": str(paths[0].relative_to(self._steps.folder)), **result}, paths

        return self._steps.folder / str(self._steps.do(f"candidate {name}", made_from, work)["path"])

    @cached_property
    def _int8(self) -> Int8:
        """A few images: ranges of untrained networks decide nothing, and what they lose neither."""
        images = calibration_images(list(self._options.datasets_of("train").values()), _CALIBRATED_ON)
        first = build_eval_dataset(next(iter(self._options.datasets_of("val").values())))[0]
        return Int8(images, [first], max_drop=math.inf)

    def _teacher_file(self) -> Path | None:
        """The teacher's file for the same target, in float32; None where it cannot be made for any size."""
        target = self._latency.target
        made_from = {"version": 1, "teacher": self._teacher, "target": target, "runtime": version_of(target)}

        def work() -> tuple[Mapping[str, Any], Sequence[Path]]:
            self._progress.show("exporting the teacher")
            try:
                student = load_student(str(self._options.path.pretrain_network_t))
                if student.pretrained.block is None:
                    raise OptionsError(f"{student.pretrained.architecture}, of spandrel's, is run by PyTorch")
                result, paths = written(student, self._steps.folder / "candidates", TEACHER, target, "float32")
            except UserError as error:
                return {"refused": first_line(error)}, []
            return {"path": str(paths[0].relative_to(self._steps.folder)), **result}, paths

        result = self._steps.do("teacher's file", made_from, work)
        return self._steps.folder / str(result["path"]) if "path" in result else None
