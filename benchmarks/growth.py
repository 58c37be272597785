"""How time and memory grow with the work: images of a dataset, their size, the batch, the ranks; in Markdown.

    python benchmarks/growth.py
    python benchmarks/growth.py --parts images batch --json growth.json

Beside every figure stands the exponent p of its growth since the line above: it grew as (input)^p. More than 1.1 is
faster than the input, and the last column says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

from basicsr.files.lmdb_databases import LmdbMaker
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.timing import spread
from benchmarks.bench import Bench
from benchmarks.machine import describe
from benchmarks.options import FAST, shipped_options
from benchmarks.table import markdown, short
from benchmarks.training import train, write_options

FASTER = 1.1  # the exponent from which on a figure counts as growing faster than its input; below it lies the noise
_LINKS = 16  # files that all names stand for; a file system allows some ten thousand names to a file


@dataclass(frozen=True)
class Series:
    """Figures over an input that grows.

    Attributes:
        title: what grows.
        inputs: ascending.
        figures: by name, one for each input.
    """

    title: str
    inputs: tuple[float, ...]
    figures: Mapping[str, tuple[float, ...]]

    def exponents(self, name: str) -> list[float]:
        """Of a figure's growth from each input to the next; NaN where it is not positive."""
        values = self.figures[name]
        return [
            math.log(after / before) / math.log(larger / smaller) if before > 0 and after > 0 else math.nan
            for before, after, smaller, larger in zip(values, values[1:], self.inputs, self.inputs[1:], strict=False)
        ]

    def verdict(self, name: str) -> str:
        """Whether a figure grows faster than its input, by its growth over the larger half of the inputs."""
        half = len(self.inputs) // 2 if len(self.inputs) > 2 else 0
        values, inputs = self.figures[name], self.inputs
        if values[half] <= 0 or values[-1] <= 0 or inputs[half] == inputs[-1]:
            return "too small to tell"
        exponent = math.log(values[-1] / values[half]) / math.log(inputs[-1] / inputs[half])
        if exponent > FASTER:
            return f"faster than its input ({exponent:.2f})"
        return f"no faster than its input ({exponent:.2f})"

    def table(self) -> str:
        """In Markdown: a line for each figure."""
        header = [self.title, *(f"{value:g}" for value in self.inputs), "grows"]
        lines = []
        for name, values in self.figures.items():
            exponents = ["", *(f" ({exponent:+.2f})" for exponent in self.exponents(name))]
            cells = [f"{short(value)}{exponent}" for value, exponent in zip(values, exponents, strict=True)]
            lines.append([name, *cells, self.verdict(name)])
        return markdown(header, lines, "l" + "r" * len(self.inputs) + "l")


def by_images(bench: Bench) -> list[Series]:
    """Number of images: time to build and check the dataset, time of a sample, memory; by folders and by LMDB."""
    counts = (10, 100) if bench.quick else (10, 100, 1_000, 10_000, 100_000)
    series = []
    for storage in ("disk", "lmdb"):
        found: dict[str, list[float]] = {}
        for count in counts:
            folder = bench.folder / f"{storage}_{count}"
            options = _many_on_disk(bench, folder, count) if storage == "disk" else _many_in_lmdb(bench, folder, count)
            os.environ["BASICSR_CACHE"] = str(folder / "cache")  # nothing is known of these images yet
            with bench.ours("indexing", options=options) as worker:
                measured = worker.ask("measure", samples=20 if bench.quick else 200)
            for name, label, factor in _INDEXING:
                found.setdefault(label, []).append(measured[name] * factor)
        series.append(Series(f"pairs, {storage}", counts, _frozen(found)))
    return series


_INDEXING = (
    ("build", "build dataset and loader, ms", 1e3),
    ("check", "look at all images, ms", 1e3),
    ("check again", "look at them again, ms", 1e3),
    ("sample", "load one sample, ms", 1e3),
    ("memory", "memory, MiB", 2**-20),
)


def by_size(bench: Bench) -> list[Series]:
    """Pixels of an LR patch: a step's time and memory; and of a whole image: the time of a sample."""
    patches = [24, 48] if bench.quick else [24, 48, 96, 192]
    steps = [_step_figures(bench, batch=4, lr_side=side) for side in patches]
    series = [Series("pixels of an LR patch, batch 4", _squares(patches), _columns(steps))]
    images = [128, 256] if bench.quick else [128, 256, 512, 1024, 2048]
    rates = []
    for side in images:
        folder = bench.pairs(f"whole_{side}", 2, (side, side), 2)
        options = shipped_options("quickstart_scratch", folder, 1, num_gpu=0)
        options["datasets"]["train"]["gt_size"] = 96
        with bench.ours("indexing", options=options) as worker:
            rates.append({"PNG: load one sample, ms": 1e3 * worker.ask("measure", samples=20)["sample"]})
    return [*series, Series("pixels of an HR image, crops of 96x96", _squares(images), _columns(rates))]


def by_batch(bench: Bench) -> list[Series]:
    """Images to a batch: a step's time and memory."""
    sizes = (1, 2) if bench.quick else (1, 2, 4, 8, 16, 32)
    steps = [_step_figures(bench, batch=size, lr_side=48) for size in sizes]
    return [Series("images to a batch, LR patches of 48x48", sizes, _columns(steps))]


def by_ranks(bench: Bench) -> list[str]:
    """What two ranks send each other in a step, and what follows for more by the formula of the ring."""
    images = bench.pairs("photographs_x2", 8, (384, 384), 2)
    options = shipped_options("quickstart_mcadkd", images, 4, num_gpu=0)
    options["dist_params"] = {"backend": "gloo"}
    measured = {}
    for ranks in (1, 2):
        path = write_options(bench.folder / f"communication_{ranks}", options)
        result = path.with_name("result.json")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        train(path, 1, program=[*launcher, str(ROOT / "benchmarks/ours/communication.py"), str(path), str(result)])
        measured[ranks] = json.loads(result.read_text(encoding="utf-8"))
    lines = [
        [label, *(short(measured[ranks][name] * factor) for ranks in (1, 2))] for name, label, factor in _COMMUNICATION
    ]
    return [
        markdown(("MCAD-KD, quickstart's size, batch 4 a rank", "1 rank", "2 ranks"), lines, "lrr"),
        _ring(measured),
    ]


_COMMUNICATION = (
    ("step", "step, ms", 1e3),
    ("gradient_bytes", "gradients averaged, KiB", 2**-10),
    ("gradient_seconds", "in, ms", 1e3),
    ("other_calls", "other collectives", 1),
    ("other_bytes", "their bytes", 1),
    ("latency", "one float averaged, ms", 1e3),
    ("transfer", "as many bytes as the gradients, ms", 1e3),
)


def _ring(measured: Mapping[int, Mapping[str, float]]) -> str:
    """Bytes and seconds for more ranks: each sends 2 (n - 1) / n of the gradients, in 2 (n - 1) messages."""
    alone, two = measured[1]["step"], measured[2]
    hop = two["latency"] / 2
    seconds_a_byte = max(0.0, two["transfer"] - two["latency"]) / max(1, two["gradient_bytes"])
    lines = []
    for ranks in (2, 8, 64):
        sent = 2 * (ranks - 1) / ranks * two["gradient_bytes"]
        seconds = sent * seconds_a_byte + 2 * (ranks - 1) * hop
        share = seconds / (alone + seconds)
        lines.append([str(ranks), short(sent / 1024), short(1e3 * seconds), f"{100 * share:.0f} %"])
    header = ("ranks, by the ring's formula", "KiB sent by each", "ms", "of a step, if nothing overlaps")
    return markdown(header, lines, "rrrr")


def _step_figures(bench: Bench, batch: int, lr_side: int) -> dict[str, float]:
    """Seconds and memory of a step of a small MCAD-KD pair, in a process of its own."""
    images = bench.pairs(f"patch_{lr_side}", 2, (2 * lr_side, 2 * lr_side), 2)
    options = shipped_options("quickstart_mcadkd", images, batch, num_gpu=0, **FAST)
    options["datasets"]["train"]["gt_size"] = 2 * lr_side
    with bench.ours("step", options=options, threads=bench.threads) as worker:
        memory = worker.ask("peak_memory", steps=2)
        times = [worker.ask("run") for _ in range(2 * bench.rounds)]
    return {"step, ms": 1e3 * spread(times).median, "memory, MiB": memory / 2**20}


def _many_on_disk(bench: Bench, folder: Path, count: int) -> dict[str, Any]:
    """Folders of so many names, which a few files stand for."""
    few = bench.pairs("few", _LINKS, (96, 96), 2)
    for name in ("HR", "LR"):
        sources = sorted((few / name).iterdir())
        (folder / name).mkdir(parents=True)
        for number in range(count):
            os.link(sources[number % _LINKS], folder / name / f"{number:06d}.png")
    return _many_options(folder, "disk")


def _many_in_lmdb(bench: Bench, folder: Path, count: int) -> dict[str, Any]:
    """Databases of so many keys, whose values are small PNG files."""
    few = bench.pairs("few", _LINKS, (96, 96), 2)
    for name, side in (("HR", 96), ("LR", 48)):
        contents = [path.read_bytes() for path in sorted((few / name).iterdir())]
        with LmdbMaker(folder / f"{name}.lmdb") as maker:
            for number in range(count):
                maker.put(contents[number % _LINKS], f"{number:06d}", (side, side, 3))
    return _many_options(folder, "lmdb")


def _many_options(folder: Path, storage: str) -> dict[str, Any]:
    options = shipped_options("quickstart_scratch", folder, 4, num_gpu=0)
    train = options["datasets"]["train"]
    train.update(io_backend={"type": storage}, gt_size=48)
    if storage == "lmdb":
        train.update(dataroot_gt=str(folder / "HR.lmdb"), dataroot_lq=str(folder / "LR.lmdb"))
    return options


def _frozen(columns: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(values) for name, values in columns.items()}


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def _squares(sides: Sequence[int]) -> tuple[float, ...]:
    return tuple(float(side * side) for side in sides)


PARTS: Mapping[str, Callable[[Bench], list[Series] | list[str]]] = {
    "images": by_images,
    "size": by_size,
    "batch": by_batch,
    "ranks": by_ranks,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", metavar="PART", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="two steps are timed in each (default: 5)")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), metavar="N", help="default: 2")
    parser.add_argument("--quick", action="store_true", help="see whether everything runs, on few images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there, too")
    arguments = parser.parse_args(argv)
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        raise OptionsError(f"--parts: there is no part '{unknown[0]}'; there are: {', '.join(PARTS)}")
    started, tables = time.monotonic(), []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # removes the folder
    with tempfile.TemporaryDirectory(prefix="growth-") as folder:
        rounds = 1 if arguments.quick else arguments.rounds
        bench = Bench(rounds, arguments.quick, arguments.threads, None, Path(folder))
        print(f"{describe(bench.threads)}\n", flush=True)
        for part in arguments.parts:
            for found in PARTS[part](bench):
                tables.append(found if isinstance(found, str) else found.table())
                print(f"{tables[-1]}\n", flush=True)
    print(f"{time.monotonic() - started:.0f} s in all.", flush=True)
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps({"machine": describe(bench.threads), "tables": tables}, indent=1))
        except OSError as error:
            raise DataError(f"--json: cannot write {arguments.json}: {error.strerror}") from error
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
