"""Students on devices: speed and loss in int8, a student against its teacher, runs of compress.py.

Speed is measured on untrained students. Figures of trained ones need their checkpoints: `--students` names a folder
with NAME.pth, a float student, and NAME_int8.pth, the same after training with quantisation; `--teacher` names their
teacher's file, `--compressed` folders of finished runs of scripts/compress.py.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basicsr.archs import build_network
from basicsr.config.quantization import QuantizationSettings
from basicsr.config.schema import DatasetOptions
from basicsr.data.calibration_images import calibration_images
from basicsr.data.loading import build_eval_dataset
from basicsr.export.base import Student, load_student
from basicsr.export.exporting import export
from basicsr.export.image_sources import int8_images
from basicsr.export.int8 import Int8, Judge, Pairs
from basicsr.latency.candidates import Candidate
from basicsr.latency.figures import Figure
from basicsr.latency.measuring import Limits, measure
from basicsr.quantization.network import quantization_of
from basicsr.runtimes.base import runtimes
from basicsr.utils.errors import ForeignError
from basicsr.utils.timing import Spread, spread
from benchmarks.bench import Bench
from benchmarks.rows.numbers import benchmark_set
from benchmarks.table import Detail, Outcome, Report, Target

SCALE, SIDE = 2, 256
RUNTIMES = ("onnxruntime", "openvino")
SETS = ("Set5", "Set14")
STUDENTS: Mapping[str, Mapping[str, Any]] = {
    "SRVGGNetCompact 32x8": {"type": "SRVGGNetCompact", "num_feat": 32, "num_conv": 8},
    "PlainSR 32x8": {"type": "PlainSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_conv": 8},
    "EDSR 32x8": {
        **{"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 32, "num_block": 8},
        **{"img_range": 1.0, "rgb_mean": (0.0, 0.0, 0.0)},
    },
}
_ANY_DROP = 1e9  # of an untrained student, whose PSNR says nothing
_MEASURED = Limits(seconds=20)
_QUICK = Limits(rounds=3, seconds=1)
_NO_STUDENTS = "not run: --students names no folder"


def int8_speed(bench: Bench) -> Report:
    """Every student in float32 and int8 by both runtimes, all in turn."""
    side = 48 if bench.quick else SIDE
    images = bench.pairs("int8", 2, (2 * side, 2 * side), SCALE)
    outcomes, lines = [], []
    for name, block in STUDENTS.items():
        student = _untrained(bench.folder / f"{block['type']}.pth", block)
        int8 = int8_images(
            student,
            calibration=str(images / "LR"),
            validation=[str(images / "HR"), str(images / "LR")],
            max_drop=_ANY_DROP,
        )
        files = _files(student, bench.folder / block["type"], int8)
        figures = _timed(bench, [_candidate(bench, label, path, side) for label, path in files.items()])
        gains = {
            runtime: _times(figures[runtime, "float32"], figures[runtime, "int8"])
            for runtime in RUNTIMES
            if (runtime, "int8") in figures
        }
        best = max(gains, key=lambda runtime: gains[runtime].median)
        for runtime, gain in gains.items():
            of_both = [_shown(figures[runtime, precision]) for precision in ("float32", "int8")]
            lines.append((name, runtime, *of_both, f"{gain.median:.2f}"))
        outcomes.append(
            Outcome(
                row="device_int8",
                what=f"int8 against float32, {name} x{SCALE}, {side}x{side}, {best}",
                reference=_shown(figures[best, "float32"]),
                ours=_shown(figures[best, "int8"]),
                figure=gains[best],
                target=Target("at least", 2, "x"),
                remark=figures[best, "int8"].doubt,
            )
        )
    header = ("student", "runtime", "float32", "int8", "times as fast")
    return Report(tuple(outcomes), (Detail(f"int8 against float32, {bench.threads} threads:", header, tuple(lines)),))


def int8_psnr(bench: Bench) -> Report:
    """What trained students lose by int8 in every runtime, calibrated only, and after training with quantisation.

    A student is calibrated with the settings that it was trained on with, if it was.
    """
    outcomes, lines = [], []
    for path in _float_students(bench):
        student, trained = load_student(path), path.with_name(f"{path.stem}_int8{path.suffix}")
        ways: dict[str, tuple[float, Student, QuantizationSettings]] = {}
        settings = QuantizationSettings()
        if trained.is_file():
            quantized = load_student(trained)
            if (quantization := quantization_of(quantized.pretrained.network)) is None:
                raise ForeignError(
                    f"{trained} is not quantised; it must be {path.name} after training with quantisation"
                )
            settings = quantization.settings
            ways["trained with quantisation"] = 0.03, quantized, settings
        ways = {"calibrated": (0.10, student, settings), **ways}
        for way, (limit, network, chosen) in ways.items():
            floating, int8 = _psnrs(bench, student, network, chosen)
            for runtime in RUNTIMES:
                lost = [floating[name] - int8[runtime, name] for name in SETS]
                cells = [text for name in SETS for text in (f"{floating[name]:.3f}", f"{int8[runtime, name]:.3f}")]
                lines.append((path.stem, way, runtime, *cells))
                outcomes.append(
                    Outcome(
                        row="device_psnr",
                        what=f"PSNR lost by int8, {path.stem}, {way}, {runtime}: the larger of {' and '.join(SETS)}",
                        figure=Spread(max(lost), min(lost), max(lost)),
                        target=Target("at most", limit, " dB"),
                    )
                )
    if not outcomes:
        targets = {"calibrated": 0.10, "trained with quantisation": 0.03}
        what = "PSNR lost by int8, {}"
        outcomes = [
            Outcome("device_psnr", what.format(way), target=Target("at most", limit, " dB"), remark=_NO_STUDENTS)
            for way, limit in targets.items()
        ]
    header = ("student", "int8", "runtime", *(f"{name}, {kind}" for name in SETS for kind in ("float32", "int8")))
    details = (Detail("PSNR on Y of files as they are run, dB:", header, tuple(lines)),) if lines else ()
    return Report(tuple(outcomes), details)


def against_teacher(bench: Bench) -> Report:
    """The teacher and the students in PyTorch, float32; the students' int8 files in onnxruntime beside them."""
    faster, near = Target("at least", 20, "x"), Target("at most", 1, " dB")
    what = "student against its teacher, both in PyTorch, float32"
    students = list(_float_students(bench))
    if bench.teacher is None or not students:
        remark = _NO_STUDENTS if bench.teacher is not None else "not run: --teacher names no file"
        return Report((Outcome("device_teacher", what, target=faster, remark=remark),))
    side = 48 if bench.quick else SIDE
    candidates = {path.stem: Candidate(path.stem, path, (side, side), bench.threads) for path in students}
    candidates["teacher"] = Candidate("teacher", bench.teacher, (side, side), bench.threads)
    figures = _timed(bench, [((label,), candidate) for label, candidate in candidates.items()])
    teacher = _psnr(bench, load_student(bench.teacher), "Set5")
    outcomes: list[Outcome] = []
    for path in students:
        psnr, times = _psnr(bench, load_student(path), "Set5"), _times(figures[("teacher",)], figures[(path.stem,)])
        shown = {"reference": _shown(figures[("teacher",)]), "ours": _shown(figures[(path.stem,)])}
        outcomes.append(Outcome("device_teacher", f"{what}: {path.stem}", **shown, figure=times, target=faster))
        loss = Spread(teacher - psnr, teacher - psnr, teacher - psnr)
        shown = {"reference": f"{teacher:.2f} dB", "ours": f"{psnr:.2f} dB"}
        outcomes.append(Outcome("device_teacher", f"PSNR on Set5: {path.stem}", **shown, figure=loss, target=near))
    return Report(tuple(outcomes))


def _untrained(path: Path, block: Mapping[str, Any]) -> Student:
    """A checkpoint of random weights, seed 0."""
    torch.manual_seed(0)
    options = {**block, "upscale": SCALE}
    torch.save({"params": build_network(options).state_dict(), "network": {**options, "scale": SCALE}}, path)
    return load_student(path)


def _files(student: Student, folder: Path, int8: Int8) -> dict[tuple[str, str], Path]:
    """Files in float32 and int8, by runtime and precision."""
    files = {}
    for runtime in RUNTIMES:
        for precision in ("float32", "int8"):
            made = export(student, folder / precision, targets=[runtime], precision=precision, int8=int8)
            files[runtime, precision] = made.files[0]
    return files


def _candidate(bench: Bench, label: tuple[str, ...], path: Path, side: int) -> tuple[tuple[str, ...], Candidate]:
    return label, Candidate(", ".join(label), path, (side, side), bench.threads)


def _timed(bench: Bench, candidates: Sequence[tuple[tuple[str, ...], Candidate]]) -> dict[tuple[str, ...], Figure]:
    """Figures by label; raises the first failure."""
    limits = _QUICK if bench.quick else replace(_MEASURED, rounds=max(3, 3 * bench.rounds))
    measured = measure([candidate for _, candidate in candidates], limits)
    if measured.failed:
        raise RuntimeError("; ".join(f"{label}: {why}" for label, why in measured.failed.items()))
    return dict(zip((label for label, _ in candidates), measured.figures, strict=True))


def _times(slow: Figure, fast: Figure) -> Spread:
    """How many times as fast."""
    low, high = ((figure.low_ms or figure.median_ms, figure.high_ms or figure.median_ms) for figure in (slow, fast))
    return Spread(slow.median_ms / fast.median_ms, low[0] / high[1], low[1] / high[0])


def _shown(figure: Figure) -> str:
    return f"{figure.median_ms:.1f} ms"


def _float_students(bench: Bench) -> Iterator[Path]:
    if bench.students is not None:
        for path in sorted(bench.students.glob("*.pth")):
            if not path.stem.endswith("_int8"):
                yield path


def _pairs(bench: Bench, name: str, scale: int) -> Pairs:
    """A benchmark set's images."""
    block = {**benchmark_set(bench.benchmark.absolute() / name, name, scale), "phase": "val", "scale": scale}
    return build_eval_dataset(DatasetOptions.model_validate(block))


def _psnr(bench: Bench, student: Student, name: str) -> float:
    """On Y, of a network in PyTorch, as it is."""
    judge = Judge(Int8(None, _pairs(bench, name, student.pretrained.scale)), student, None)
    with torch.no_grad():
        return judge.psnr(student.pretrained.network)


def _psnrs(
    bench: Bench, floating: Student, student: Student, settings: QuantizationSettings
) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """By set PSNR of `floating` in PyTorch; by runtime and set that of `student` in int8, calibrated if it is float."""
    scale = student.pretrained.scale
    sets = {name: _pairs(bench, name, scale) for name in SETS}
    calibration = None
    if quantization_of(student.pretrained.network) is None:
        calibration = calibration_images([_lr_made_of(bench.training_images, scale)], settings.images)
    int8 = Int8(calibration, sets[SETS[0]], max_drop=_ANY_DROP, settings=settings)
    files = {}
    for runtime in RUNTIMES:
        folder = bench.folder / f"{student.source.stem}_{runtime}"
        path = export(student, folder, targets=[runtime], precision="int8", int8=int8).files[0]
        loaded = runtimes()[runtime].load(path, threads=bench.threads)
        for name, pairs in sets.items():

            def run(lq: Tensor, loaded: Callable[[np.ndarray], np.ndarray] = loaded) -> Tensor:
                return torch.from_numpy(loaded(lq.numpy()))

            files[runtime, name] = Judge(Int8(None, pairs), student, None).psnr(run)
    return {name: _psnr(bench, floating, name) for name in SETS}, files


def _lr_made_of(folder: Path, scale: int) -> DatasetOptions:
    block = {"name": folder.name, "type": "PairedImageDataset", "dataroot_gt": str(folder.absolute())}
    return DatasetOptions.model_validate({**block, "phase": "val", "scale": scale})


def compressed(bench: Bench) -> Report:
    """How long runs of compress.py took, and what they chose against a narrow EDSR of equal latency."""
    outcomes: list[Outcome] = []
    for folder in bench.compressed:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        outcomes += _of_run(folder.name, report)
    if not outcomes:
        target, remark = Target("at most", 30, " minutes"), "not run: --compressed names no folder"
        outcomes = [Outcome("device_compress", "compress.py from start to end", target=target, remark=remark)]
    return Report(tuple(outcomes))


def _of_run(name: str, report: Mapping[str, Any]) -> Iterator[Outcome]:
    minutes = sum(step["seconds"] for step in report["steps"].values()) / 60
    target = Target("at most", 30, " minutes")
    taken = Spread(minutes, minutes, minutes)
    yield Outcome("device_compress", f"compress.py, {name}, all steps", figure=taken, target=target)
    if (found := report["compared"]) is None:
        return
    chosen, other = found["chosen"], found["other"]
    for dataset in SETS:
        figures = [of_seed for of_seed in found["figures"].values() if dataset in of_seed[chosen]]
        if not figures:
            continue
        values = {who: [of_seed[who][dataset]["psnr"] for of_seed in figures] for who in (chosen, other)}
        gain = spread([own - others for own, others in zip(values[chosen], values[other], strict=True)])
        texts = {who: f"{statistics.fmean(of):.2f} dB, {found['ms'][who]:.1f} ms" for who, of in values.items()}
        yield Outcome(
            row="device_compress",
            what=f"{name}: PSNR on {dataset} of {chosen} less that of {other}, {len(figures)} seeds",
            reference=texts[other],
            ours=texts[chosen],
            figure=gain,
            target=Target("at least", 0, " dB"),
        )


ROWS = {
    "device_int8": int8_speed,
    "device_psnr": int8_psnr,
    "device_teacher": against_teacher,
    "device_compress": compressed,
}
