"""Trains a tiny MCAD-KD run for very many iterations and watches from outside whether it grows.

    python scripts/soak.py --iterations 20000 --workers 1 --out soak

Logging (TensorBoard too), validation and checkpoints go on all the while. OUT/soak.csv gets a line for every `--every`
iterations: resident memory of the training process, memory of its data workers, open files, threads, and
what lies in the experiment's folder. At the end stands, for each, the slope over the second half, by least squares,
with its standard error; the exit code is 1 where memory grows faster than `--limit`, or files and threads grow at all.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

import cv2
import numpy as np
import yaml

from basicsr.utils.errors import CheckpointError, MachineError, OptionsError

TRAIN = Path(__file__).resolve().parents[1] / "basicsr/train.py"
NAME = "soak"
LIMIT = 65536.0
"""Bytes for 1,000 iterations: 64 MiB in a million."""

_MAY_RISE = {"folder": "logs and curves", "workers_share": "what is no longer shared"}
_EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}


@dataclass(frozen=True)
class Sample:
    """What was seen after an iteration.

    Attributes:
        iteration: from 1.
        seconds: since the start.
        memory: resident bytes of the training process.
        workers_memory: resident bytes of its data workers.
        workers_share: likewise without files, shared pages in equal parts (Pss_Anon). It rises for long without any
            growth, as a worker and the training process that it was forked from write to pages that they shared.
        files: open file descriptors of the training process.
        threads: of the training process.
        folder: bytes in the experiment's folder and TensorBoard's.
        checkpoints: complete ones that are kept.
    """

    iteration: int
    seconds: float
    memory: int
    workers_memory: int
    workers_share: int
    files: int
    threads: int
    folder: int
    checkpoints: int


@dataclass(frozen=True)
class Slope:
    """A straight line's rise for 1,000 iterations, and its standard error."""

    rise: float
    error: float


def slope(iterations: Sequence[float], values: Sequence[float]) -> Slope:
    """Fits a line to the second half of a series by least squares.

    The standard error allows for residuals that follow each other (their correlation at one step), as memory's do: it
    rises slowly and falls when Python collects garbage.

    Args:
        iterations: rising.
        values: as many, at least 6.
    """
    first = len(iterations) // 2
    x = np.asarray(iterations[first:], dtype=np.float64) / 1000
    y = np.asarray(values[first:], dtype=np.float64)
    x = x - x.mean()
    rise = float((x * y).sum() / (x * x).sum())
    residuals = y - y.mean() - rise * x
    error = float(np.sqrt((residuals**2).sum() / (len(x) - 2) / (x * x).sum()))
    power = float((residuals**2).sum())
    correlation = float((residuals[1:] * residuals[:-1]).sum()) / power if power > 0 else 0.0
    correlation = min(max(correlation, 0.0), 0.98)
    return Slope(rise, error * float(np.sqrt((1 + correlation) / (1 - correlation))))


def verdict(samples: Sequence[Sample], limit: float) -> tuple[list[str], bool]:
    """Lines to print, and whether nothing grows that should not.

    Memory must not rise faster than `limit` bytes for 1,000 iterations by more than twice the standard error; files and
    threads must not be more at the end of the second half than at its beginning; what is open for a moment only, as
    while a checkpoint is written, does not count.
    """
    iterations = [sample.iteration for sample in samples]
    lines, sound = [], True
    for name in ("memory", "workers_memory", "workers_share", "files", "threads", "folder"):
        values = [float(getattr(sample, name)) for sample in samples]
        found = slope(iterations, values)
        if name.endswith("memory"):
            good = found.rise - 2 * found.error <= limit
            remark = f"limit {limit:,.0f}"
        elif name in _MAY_RISE:
            good, remark = True, _MAY_RISE[name]
        else:
            half = values[len(values) // 2 :]
            some = max(2, len(half) // 4)
            good, remark = min(half[-some:]) <= min(half[:some]), "must not rise"
        sound &= good
        lines.append(
            f"{name:15s} {values[0]:13,.0f} -> {values[-1]:13,.0f}   {found.rise:+12,.1f} +- {found.error:,.1f}"
            f" for 1,000 iterations ({remark}){'' if good else '   GROWS'}"
        )
    return lines, sound


def write_images(root: Path, count: int, seed: int) -> tuple[Path, Path]:
    """Writes `count` smooth random HR images (48x48) and their averages at half the size; returns both folders."""
    generator = np.random.default_rng(seed)
    gt_root, lq_root = root / "HR", root / "LR_X2"
    for folder in (gt_root, lq_root):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        coarse = generator.uniform(0, 255, (6, 6, 3)).astype(np.float32)
        gt = np.clip(cv2.resize(coarse, (48, 48), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
        lq = cv2.resize(gt, (24, 24), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(gt_root / f"image{index}.png"), gt)
        cv2.imwrite(str(lq_root / f"image{index}x2.png"), lq)
    return gt_root, lq_root


def options_of(out: Path, iterations: int, workers: int, every: int) -> dict[str, Any]:
    """Options of the run: MCAD-KD with all its parts, a few milliseconds an iteration."""
    common = {"type": "PairedImageDataset", "filename_tmpl": "{}x2", "io_backend": {"type": "disk"}}
    (gt, lq), (val_gt, val_lq) = write_images(out / "data", 16, 0), write_images(out / "val", 2, 1)
    train = {**common, "name": "train", "dataroot_gt": str(gt), "dataroot_lq": str(lq), "gt_size": 32}
    train |= {"use_hflip": True, "use_rot": True, "num_worker_per_gpu": workers, "batch_size_per_gpu": 2}
    psnr = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}
    optimizer = {"type": "Adam", "lr": 1e-4, "betas": [0.9, 0.99]}
    return {
        "name": NAME,
        "model_type": "MCADKD",
        "scale": 2,
        "num_gpu": 0,
        "manual_seed": 0,
        "datasets": {
            "train": train,
            "val": {**common, "name": "val", "dataroot_gt": str(val_gt), "dataroot_lq": str(val_lq)},
        },
        "network_g": dict(_EDSR),
        "network_t": {**_EDSR, "num_feat": 12, "num_block": 3},
        "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
        "path": {"allow_random_teacher": True},
        "train": {
            "ema_decay": 0.999,
            "optim_g": optimizer,
            "optim_d": dict(optimizer),
            "total_iter": iterations,
            "pixel_opt": {"type": "L1Loss", "loss_weight": 3.0},
            "resp_kd_opt": {"type": "L1Loss", "loss_weight": 0.5},
            "contrastive_opt": {"type": "hybrid", "patch_size": 12, "num_patches": 4, "embed_dim": 16},
            "adversarial_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.01},
        },
        "val": {"val_freq": 2 * every, "metrics": {"psnr": psnr}},
        "logger": {
            "print_freq": max(1, every // 5),
            "save_checkpoint_freq": 2 * every + every // 2,
            "keep_checkpoints": 2,
            "use_tb_logger": True,
        },
    }


class Watched:
    """A training process, looked at through /proc.

    Args:
        process: it.
        out: folder of `experiments` and `tb_logger`.
    """

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self._process, self._out, self._began = process, out, time.monotonic()

    def sample(self, iteration: int) -> Sample:
        """What it takes up now.

        Raises:
            OSError: it has ended.
        """
        number = self._process.pid
        children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
        states = self._out / "experiments" / NAME / "training_states"
        return Sample(
            iteration=iteration,
            seconds=round(time.monotonic() - self._began, 1),
            memory=_memory(number, "Rss"),
            workers_memory=sum(_memory(int(child), "Rss") for child in children),
            workers_share=sum(_memory(int(child), "Pss_Anon") for child in children),
            files=len(os.listdir(f"/proc/{number}/fd")),
            threads=len(os.listdir(f"/proc/{number}/task")),
            folder=_size(self._out / "experiments") + _size(self._out / "tb_logger"),
            checkpoints=len(list(states.glob("*.json"))),
        )


def _memory(process: int, kind: str) -> int:
    """Bytes of a process, 'Rss' or 'Pss_Anon'."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {process} has ended")


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # an old checkpoint that has just been deleted
            continue
    return total


def iterations_of(process: subprocess.Popen[bytes], history: Path) -> Iterator[int]:
    """The iterations as the run writes them down, until it ends."""
    file: TextIO | None = None
    try:
        rest = ""
        while True:
            running = process.poll() is None
            if file is None and history.exists():
                file = history.open(encoding="utf-8")
            *lines, rest = (rest + (file.read() if file is not None else "")).split("\n")
            yield from (json.loads(line)["iter"] for line in lines)
            if not running:
                return
            time.sleep(0.05)
    finally:
        if file is not None:
            file.close()


def soak(out: Path, iterations: int, workers: int, every: int) -> list[Sample]:
    """Runs the training and returns its samples, which are also written to OUT/soak.csv.

    Raises:
        MachineError: the training failed, or the system has no /proc.
    """
    options = out / "soak.yml"
    options.write_text(yaml.safe_dump(options_of(out.resolve(), iterations, workers, every), sort_keys=False))
    samples: list[Sample] = []
    with (out / "soak.csv").open("w", newline="") as table, (out / "output.txt").open("wb") as output:
        writer = csv.DictWriter(table, [field.name for field in fields(Sample)])
        writer.writeheader()
        command = [sys.executable, str(TRAIN), "-opt", str(options.resolve())]
        process = subprocess.Popen(command, cwd=out, stdout=output, stderr=subprocess.STDOUT)
        try:
            watched = Watched(process, out)
            for iteration in iterations_of(process, out / "experiments" / NAME / "history.jsonl"):
                known = samples[-1].iteration if samples else 0
                if iteration % every or not known < iteration < iterations:  # with the last one the process ends
                    continue
                try:
                    samples.append(watched.sample(iteration))
                except OSError:  # it ended meanwhile
                    continue
                writer.writerow(asdict(samples[-1]))
                table.flush()
        finally:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        raise MachineError(f"the training ended with exit code {process.returncode}; see {out / 'output.txt'}")
    return samples


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--iterations", type=int, default=20000, metavar="N", help="of the training (20000)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="data workers (1)")
    parser.add_argument("--every", type=int, default=100, metavar="N", help="iterations between samples (100)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder for all it writes")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, metavar="BYTES", help=f"of memory for 1,000 iterations ({LIMIT:,.0f})"
    )
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.every < 5 or arguments.iterations < 16 * arguments.every:
        raise OptionsError(
            f"--iterations {arguments.iterations} --every {arguments.every}: a slope needs 16 samples or more, of 5"
            " iterations or more each; raise --iterations or lower --every"
        )
    if arguments.workers < 0:
        raise OptionsError(f"--workers {arguments.workers}: must be 0 or more")
    if arguments.out.exists() and any(arguments.out.iterdir()):
        raise OptionsError(f"--out {arguments.out} is not empty; name a new folder")
    summary = Path("/proc/self/smaps_rollup")
    if not summary.exists() or "Pss_Anon" not in summary.read_text():
        raise MachineError("no Pss_Anon in /proc/PID/smaps_rollup: soak.py needs Linux 5.3 or later")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make {arguments.out}: {error.strerror}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 where nothing grows, 1 where something does."""
    arguments = parse(argv)
    _check(arguments)
    samples = soak(arguments.out, arguments.iterations, arguments.workers, arguments.every)
    lines, sound = verdict(samples, arguments.limit)
    print(f"{arguments.iterations:,d} iterations, {len(samples)} samples in {arguments.out / 'soak.csv'}; second half:")
    print("\n".join(lines))
    kept = max(sample.checkpoints for sample in samples)
    print(f"{'checkpoints':15s} at most {kept}")
    return 0 if sound and kept <= 3 else 1  # for a moment there is one more than is kept


if __name__ == "__main__":
    sys.exit(run_command(main))
