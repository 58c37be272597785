"""What a training step costs by each method, against the same student alone.

    python benchmarks/method_cost.py --network edsr --scale 4 --batch 4 --amp bf16

takes the options files of options/train as they are, but for random images, random teachers, a VGG and VQGAN of random
weights (the VQGAN small, unless --vqgan names one), and the batch. All methods are run in turn, a step each, in one
process; printed are medians in seconds, the ratio to `scratch`, and by how much the middle half of the ratios varies.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import torch
from option_files.super_resolution import methods_of

from basicsr.utils.registry import METHOD_REGISTRY
from basicsr.utils.timing import cpu_times, in_turn, load_between, ratios, spread
from benchmarks.images import write_pairs
from benchmarks.options import shipped_options
from benchmarks.ours.step import Step
from benchmarks.table import markdown


def options_of(piece: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The options of a method's shipped file, with random images and weights."""
    name = f"{piece}_{arguments.network}_x{arguments.scale}"
    data = shipped_options(name, folder, arguments.batch, amp=arguments.amp, channels_last=True)
    encoders = {"vgg_weights": "random", "vqgan_weights": arguments.vqgan}
    for method in data["train"].get("distill", {}).values():
        parameters = inspect.signature(METHOD_REGISTRY.get(method["type"])).parameters
        method.update({key: value for key, value in encoders.items() if key in parameters})
    return data


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
    before = cpu_times()
    with tempfile.TemporaryDirectory() as temporary:
        side = 64 * arguments.scale
        images = write_pairs(Path(temporary), 1, (side, side), arguments.scale)
        running = {name: Step(options_of(name, arguments, images), torch.get_num_threads()) for name in names}
        times = in_turn({name: step.run for name, step in running.items()}, arguments.steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{arguments.network} x{arguments.scale}, batch {arguments.batch}, {arguments.amp}, {device}")
    lines = []
    for name in names:
        ratio = ratios(times[name], times["scratch"])
        spent = f"{spread(times[name]).median:.3f}"
        lines.append((name, spent, f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"))
    print(markdown(("method", "s a step", "to scratch", "middle half"), lines, "lrrr"))
    if load := load_between(before, cpu_times(), torch.get_num_threads()):
        print(f"No figures to quote: {load}.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
