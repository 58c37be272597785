"""Whether `amp: auto` chooses well: the quickstart's MCAD-KD step against the faster of float32 and bf16."""

from __future__ import annotations

import statistics

import torch

from basicsr.utils.timing import ratios, spread
from benchmarks.bench import Bench
from benchmarks.options import shipped_options
from benchmarks.table import Outcome, Report, Target, short

_SIDE, _SCALE, _BATCH = 48, 2, 8  # as options/base/quickstart.yml has it
_STEPS = 5  # in a round of this row, whose steps are short
_WITHIN = 1.05  # two equal steps differ by as much


def auto(bench: Bench) -> Report:
    """Times the step in all three in one process."""
    return Report((_outcome(bench, "auto", num_gpu=0),))


def auto_gpu(bench: Bench) -> Report:
    """The same on a GPU."""
    return Report((_outcome(bench, "auto_gpu", num_gpu=1),))


def _outcome(bench: Bench, row: str, num_gpu: int) -> Outcome:
    what = "the quickstart's MCAD-KD step under amp: auto, to the faster of float32 and bf16"
    what += " on the GPU" if num_gpu else ""
    target = Target("at most", _WITHIN)
    if num_gpu and not torch.cuda.is_available():
        return Outcome(row, what, target=target, remark="not run: no GPU")
    images = bench.pairs("quickstart", 2 * _BATCH, (_SIDE, _SIDE), _SCALE)
    options = shipped_options("quickstart_mcadkd", images, _BATCH, num_gpu=num_gpu)
    with bench.ours("precisions", options=options, threads=bench.threads) as worker:
        times = worker.ask("run", rounds=_STEPS * bench.rounds)
        chosen = worker.ask("chosen")
    faster = min(("none", "bf16"), key=lambda amp: statistics.median(times[amp]))
    names = {"none": "float32", "bf16": "bf16"}
    took = ", ".join(f"{names[amp]} {short(spread(times[amp]).median)} s" for amp in names)
    return Outcome(
        row=row,
        what=what,
        reference=took,
        ours=f"{short(spread(times['auto']).median)} s",
        figure=ratios(times["auto"], times[faster]),
        target=target,
        remark=chosen,
    )


ROWS = {"auto": auto, "auto_gpu": auto_gpu}
