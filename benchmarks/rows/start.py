"""How long it takes from the command to the first iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from basicsr.utils.timing import spread
from benchmarks.bench import Bench
from benchmarks.options import shipped_options
from benchmarks.table import Outcome, Report, Target, short
from benchmarks.training import seconds_to_first_iteration, write_options

PAIRS_OF_IMAGES = 800


def start(bench: Bench) -> Report:
    """Seconds to the first iteration on 800 pairs: on images never seen, and on those of the last start."""
    copies, scale = (1 if bench.quick else 20), 2
    count = PAIRS_OF_IMAGES // 20
    images = bench.pairs("start", count, (480, 480), scale, copies)
    measured: dict[str, list[float]] = {"first": [], "again": []}
    for number in range(min(bench.rounds, 3)):
        options = write_options(bench.folder / f"start_{number}", _options(images))
        measured["first"].append(seconds_to_first_iteration(options, bench.threads))
        measured["again"].append(seconds_to_first_iteration(options, bench.threads))
    first, again = (spread(values) for values in measured.values())
    outcome = Outcome(
        row="start",
        what=f"train.py to its first iteration, {count * copies} pairs of PNG",
        ours=f"{short(first.median)} s",
        figure=first,
        target=Target("at most", 6.0, " s"),
        remark=f"started again, with what was noted of the images: {short(again.median)} s",
    )
    return Report((outcome,))


def _options(images: Path) -> dict[str, Any]:
    options = shipped_options("quickstart_scratch", images, 8, num_gpu=0)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    options["logger"].update(print_freq=1, save_checkpoint_freq=5000)
    options["train"]["total_iter"] = 10_000
    return options


ROWS = {"start": start}
