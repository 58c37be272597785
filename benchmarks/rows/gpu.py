"""A large batch on a GPU: how much of it is used, and how much faster than float32."""

from __future__ import annotations

from functools import partial

import torch

from basicsr.utils.timing import in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.machine import measure_peaks
from benchmarks.options import FAST, PLAIN
from benchmarks.rows.step import step_options
from benchmarks.table import Detail, Outcome, Report, Target, short

BATCH = 32


def gpu(bench: Bench) -> Report:
    """The EDSR pair's step in bf16: its share of the measured peak, and against our float32 step without TF32."""
    speed, share = Target("at least", 3.0, " x"), Target("at least", 45.0, " %")
    what = f"MCAD-KD step, EDSR x4, batch {BATCH}, on the GPU, against float32 without TF32"
    if not torch.cuda.is_available():
        missing = "not run: no GPU"
        return Report(
            (
                Outcome("gpu_step", what, target=speed, remark=missing),
                Outcome("gpu_peak", "share of the measured bf16 peak over the step", target=share, remark=missing),
            )
        )
    peaks = measure_peaks(bench.threads, device="cuda", quick=bench.quick)
    options = {}
    for name, changes in (("reference", PLAIN), ("ours", FAST)):
        options[name] = step_options(bench, "edsr", **changes, num_gpu=1)
        options[name]["datasets"]["train"].update(batch_size_per_gpu=2 if bench.quick else BATCH)
    with (
        bench.ours("step", options=options["reference"], threads=bench.threads) as plain,
        bench.ours("step", options=options["ours"], threads=bench.threads) as fast,
    ):
        flops = plain.ask("flops")
        sides = {"reference": partial(plain.ask, "run"), "ours": partial(fast.ask, "run")}
        times = in_turn(sides, 4 * bench.rounds, warm_up=5)
    reached = [100 * flops / seconds / 1e9 / peaks.best("bf16") for seconds in times["ours"]]
    took = {name: spread(values) for name, values in times.items()}
    return Report(
        (
            Outcome(
                "gpu_step",
                what,
                f"{short(1e3 * took['reference'].median)} ms",
                f"{short(1e3 * took['ours'].median)} ms",
                ratios(times["reference"], times["ours"]),
                speed,
            ),
            Outcome(
                "gpu_peak",
                "share of the measured bf16 peak over the step",
                f"{short(peaks.best('bf16') / 1e3)} TFLOP/s",
                f"{short(flops / took['ours'].median / 1e12)} TFLOP/s",
                spread(reached),
                share,
            ),
        ),
        (Detail("Peaks of the GPU:", ("peak", "measured"), tuple(_lines(peaks.matmul, peaks.convolution))),),
    )


def _lines(matmul: dict[str, float], convolution: dict[str, float]) -> list[tuple[str, str]]:
    kinds = {"matrix product": matmul, "convolution 3x3": convolution}
    return [
        (f"{name}, {kind}", f"{short(value / 1e3)} TFLOP/s")
        for name, peak in kinds.items()
        for kind, value in peak.items()
    ]


ROWS = {"gpu": gpu}
