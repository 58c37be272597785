"""Two processes on two cores against one that computes on both."""

from __future__ import annotations

from functools import partial
from typing import Any

from basicsr.utils.timing import in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.options import FAST, shipped_options
from benchmarks.table import Outcome, Report, Target, short
from benchmarks.training import seconds_an_iteration, train, write_options

BATCH = 8


def ranks(bench: Bench, kind: str) -> Report:
    """Samples a second of real training, of equal batches in all."""
    cores = bench.threads
    if cores < 2:
        outcome = Outcome(f"ranks_{kind}", "two ranks against one", remark="not run: one core", target=_TARGET)
        return Report((outcome,))
    rates = in_turn(
        {str(count): partial(_rate, bench, kind, count, cores // count) for count in (1, 2)},
        min(bench.rounds, 3),
        warm_up=0,
    )
    outcome = Outcome(
        row=f"ranks_{kind}",
        what=f"samples a second of training, {_WHAT[kind]}, batch {BATCH} in all: two ranks against one",
        reference=f"{short(spread(rates['1']).median)} (1 rank, {cores} threads)",
        ours=f"{short(spread(rates['2']).median)} (2 ranks, {cores // 2} each)",
        figure=ratios(rates["2"], rates["1"]),
        target=_TARGET,
    )
    return Report((outcome,))


_TARGET = Target("at least", 1.0, " x")
_WHAT = {"edsr": "EDSR student alone", "mcadkd": "MCAD-KD of the quickstart's size"}


def _rate(bench: Bench, kind: str, count: int, threads: int) -> float:
    """Samples a second of a run with `count` ranks."""
    options = _options(bench, kind)
    options["datasets"]["train"]["batch_size_per_gpu"] = BATCH // count
    path = write_options(bench.folder / f"ranks_{kind}_{count}", options)
    train(path, threads, count)
    return BATCH / spread(seconds_an_iteration(path, options["name"])).median


def _options(bench: Bench, kind: str) -> dict[str, Any]:
    stretch = (1 if bench.quick else 3) if kind == "edsr" else (5 if bench.quick else 50)
    file, scale = ("scratch_edsr_x4", 4) if kind == "edsr" else ("quickstart_mcadkd", 2)
    images = bench.pairs(f"photographs_x{scale}", 8, (384, 384), scale)
    options = shipped_options(file, images, BATCH, num_gpu=0, **FAST)
    if bench.quick:
        options["network_g"]["num_block"] = 1
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    options["logger"].update(print_freq=stretch, save_checkpoint_freq=5000, use_tb_logger=False)
    options["train"]["total_iter"] = 5 * stretch
    options["dist_params"] = {"backend": "gloo"}
    return options


ROWS = {f"ranks_{kind}": partial(ranks, kind=kind) for kind in _WHAT}
