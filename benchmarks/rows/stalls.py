"""Where the loop's time goes in a real run, from a profile."""

from __future__ import annotations

import pstats
import sys
from pathlib import Path
from typing import Any

from basicsr.utils.timing import Spread
from benchmarks.bench import Bench
from benchmarks.options import FAST, ROOT, shipped_options
from benchmarks.table import Detail, Outcome, Report, Target
from benchmarks.training import train, write_options

# What the loop does beside its step: the part, and the function that does it.
PARTS = {
    "logging": ("train.py", "_log_step"),
    "moving average": ("optim/optimizers.py", "update"),
    "waiting for data": ("data/loading.py", "fill"),
    "validation": ("engine/validation.py", "validate"),
    "checkpoints": ("train.py", "_save"),
}
_STEP, _LOOP = ("train.py", "train_step"), ("train.py", "fit")
_STALLS = 0.05  # from which share of the loop's time on a part would be felt
_USUAL_FREQUENCY = 5000  # of validation and checkpoints in the shipped files


def stalls(bench: Bench) -> Report:
    """The share of each part that is not the step, of a small MCAD-KD run with all that the loop can do."""
    iterations = 20 if bench.quick else 300
    options = _options(bench, iterations)
    path = write_options(bench.folder / "stalls", options)
    profile = path.with_name("profile")
    train(
        path,
        bench.threads,
        program=[sys.executable, str(ROOT / "benchmarks/ours/profiled.py"), str(path), str(profile)],
    )
    spent = seconds_in(profile, {**PARTS, "step": _STEP, "loop": _LOOP})
    times = iterations // options["val"]["val_freq"]
    rare = {name: spent.pop(name) / times for name in ("validation", "checkpoints")}
    loop = spent.pop("loop") - times * sum(rare.values())
    shares = {name: seconds / loop for name, seconds in spent.items()}
    shares["step"] -= shares["moving average"]  # which is a part of it
    shares["the rest"] = 1 - sum(shares.values())
    iteration = loop / iterations
    for name, seconds in rare.items():
        shares[f"{name}, {seconds:.2f} s each {_USUAL_FREQUENCY} iterations"] = seconds / _USUAL_FREQUENCY / iteration
    worst = max(share for name, share in shares.items() if name not in ("step", "the rest"))
    outcome = Outcome(
        row="stalls",
        what="largest share of the loop's time: log, moving average, waiting, validation (two small images), saving",
        ours=f"{1e3 * iteration:.1f} ms an iteration",
        figure=Spread(100 * worst, 100 * worst, 100 * worst),
        target=Target("at most", 100 * _STALLS, " %"),
    )
    lines = tuple((name, f"{100 * share:.2f} %") for name, share in shares.items())
    title = f"Shares of the loop's time in {iterations} iterations of a small MCAD-KD run, by the profiler:"
    return Report((outcome,), (Detail(title, ("part", "share"), lines),))


def _options(bench: Bench, iterations: int) -> dict[str, Any]:
    images = bench.pairs("photographs_x2", 8, (384, 384), 2)
    options = shipped_options("quickstart_mcadkd", images, 8, num_gpu=0, **FAST)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    validation = bench.pairs("validation_x2", 2, (256, 256), 2)
    options["datasets"]["val"] = {
        "name": "made up",
        "type": "PairedImageDataset",
        "dataroot_gt": str(validation / "HR"),
        "dataroot_lq": str(validation / "LR"),
        "io_backend": {"type": "disk"},
    }
    options["val"] = {
        "val_freq": iterations // 2,
        "metrics": {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}},
    }
    options["train"].update(total_iter=iterations, ema_decay=0.999)
    options["logger"].update(
        print_freq=max(1, min(100, iterations // 3)), save_checkpoint_freq=iterations // 2, use_tb_logger=True
    )
    return options


def seconds_in(profile: Path, functions: dict[str, tuple[str, str]]) -> dict[str, float]:
    """Seconds within each function and what it calls.

    Args:
        profile: file of the profiler.
        functions: by a name of the caller's, the end of the file's path and the function; 0 where it never ran.
    """
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(str(profile)).stats  # type: ignore[attr-defined]
    found = dict.fromkeys(functions, 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in stats.items():
        for name, (end, wanted) in functions.items():
            if function == wanted and file.endswith(f"basicsr/{end}"):
                found[name] += cumulative
    return found


ROWS = {"stalls": stalls}
