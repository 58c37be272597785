"""What a training step costs by each method, against the same student alone.

    python benchmarks/method_cost.py --network edsr --scale 4 --batch 4 --amp bf16

takes the options files of options/train as they are, but for random images, random teachers, a VGG and VQGAN of random
weights (the VQGAN small, unless --vqgan names one), and the batch. All methods are run in turn, a step each, in one
process; printed are medians in seconds, the ratio to `scratch`, and by how much the middle half of the ratios varies.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import cv2
import numpy as np
import torch
from option_files.super_resolution import methods_of

from basicsr.engine.command import run_command
from basicsr.engine.distributed import distributed
from basicsr.engine.training_run import TrainingRun
from basicsr.train import train_step
from basicsr.utils.options import load_options
from basicsr.utils.options_schema import Options, thaw


def options_of(piece: str, arguments: argparse.Namespace, folder: Path) -> Options:
    """The options of a method's shipped file, with random images and weights."""
    name = f"{piece}_{arguments.network}_x{arguments.scale}"
    data: dict[str, Any] = thaw(load_options(ROOT / f"options/train/{name}.yml", training=True, paths=False))
    train = data["datasets"]["train"]
    train.update(dataroot_gt=str(folder / "HR"), dataroot_lq=str(folder / "LR"), filename_tmpl="{}")
    train.update(batch_size_per_gpu=arguments.batch, num_worker_per_gpu=0)
    data["datasets"] = {"train": train}
    data["path"] = {"allow_random_teacher": True}
    data["val"] = {}
    data.update(amp=arguments.amp, channels_last=True)
    for method in data["train"].get("distill", {}).values():
        if "CSD" in method["type"]:
            method["vgg_weights"] = "random"
        if method["type"] == "DCKD":
            method["vqgan_weights"] = arguments.vqgan
    return load_options(data, training=True)


def write_images(folder: Path, scale: int) -> None:
    """A pair of random images, large enough for the patches."""
    rng = np.random.default_rng(0)
    for name, side in (("HR", 64 * scale), ("LR", 64)):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "0.png"), rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def steps(run: TrainingRun) -> Iterator[float]:
    """Does a training step each time it is asked; yields how long it took, in seconds."""
    for batches in run.loader:
        placed = [batch.to(run.place.device, channels_last=True) for batch in batches]
        started = time.perf_counter()
        train_step(run, placed)
        if run.place.device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("edsr", "rcan", "swinir"), default="edsr")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--amp", choices=("none", "bf16", "fp16"), default="none")
    parser.add_argument("--steps", type=int, default=5, help="of each method, after one that is not counted (5)")
    parser.add_argument("--methods", nargs="+", help="pieces of options/methods; all that the tables have by default")
    parser.add_argument("--vqgan", default="random", help="file of the VQGAN's weights")
    arguments = parser.parse_args(argv)
    chosen = arguments.methods or methods_of(arguments.network, arguments.scale)
    names = list(dict.fromkeys(["scratch", *chosen]))
    with tempfile.TemporaryDirectory() as temporary, distributed("none", "auto", "gloo", None) as place:
        write_images(Path(temporary), arguments.scale)
        running = {
            name: steps(TrainingRun(options_of(name, arguments, Path(temporary)), place, None)) for name in names
        }
        times: dict[str, list[float]] = {name: [] for name in names}
        for count in range(arguments.steps + 1):
            for name, step in running.items():
                times[name].append(next(step))
            print(f"step {count} of {arguments.steps}", file=sys.stderr, flush=True)
    print(f"{arguments.network} x{arguments.scale}, batch {arguments.batch}, {arguments.amp}, {place.device}")
    print("| method | s a step | to scratch | middle half |\n|---|---:|---:|---:|")
    alone = times["scratch"][1:]
    for name in names:
        ratios = sorted(mine / base for mine, base in zip(times[name][1:], alone, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        median = statistics.median(times[name][1:])
        print(f"| {name} | {median:.3f} | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
