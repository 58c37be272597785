"""Training samples a second of one worker: against the reference, and with LR images made instead of read."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from basicsr.files.images import imfrombytes
from basicsr.latency.workers import environment
from basicsr.utils.errors import ForeignError
from basicsr.utils.timing import in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.options import ROOT, shipped_options
from benchmarks.table import Outcome, Report, Target, short

SCALE, GT_SIZE, BATCH = 4, 192, 8


def samples(bench: Bench, row: str, size: tuple[int, int], count: int, limit: float) -> Report:
    """Samples a second from PNG files by the reference, and by us from an uncompressed LMDB of the same images."""
    if bench.quick:
        size, count = (240, 240), 2
    folder = bench.pairs(f"png_{size[0]}x{size[1]}", count, size, SCALE)
    bytes_of_png = sum(path.stat().st_size for path in (folder / "HR").iterdir())
    databases = {name: _packed(folder, name) for name in ("HR", "LR")}
    plain = shipped_options("scratch_edsr_x4", folder, BATCH, num_gpu=0)
    packed = shipped_options("scratch_edsr_x4", folder, BATCH, num_gpu=0)
    packed["datasets"]["train"].update(
        dataroot_gt=str(databases["HR"]), dataroot_lq=str(databases["LR"]), io_backend={"type": "lmdb"}
    )
    reference: dict[str, Any] = {
        "type": "PairedImageDataset",
        "name": row,
        "dataroot_gt": str(folder / "HR"),
        "dataroot_lq": str(folder / "LR"),
        "io_backend": {"type": "disk"},
        "gt_size": GT_SIZE,
        "use_hflip": True,
        "use_rot": True,
        "scale": SCALE,
    }
    with bench.against_reference(
        "data",
        ours={"options": packed, "batch": BATCH},
        reference={"block": reference, "batch": BATCH},
        fallback={"options": plain, "batch": BATCH},
    ) as workers:
        seconds = 0.2 if bench.quick else 2.0
        rates = in_turn(
            {name: partial(worker.ask, "run", seconds=seconds) for name, worker in workers.items()}, bench.rounds
        )
    share = bytes_of_png / (count * size[0] * size[1] * 3)
    outcome = Outcome(
        row=row,
        what=f"samples a second of one worker, {GT_SIZE}x{GT_SIZE} of {size[1]}x{size[0]}",
        reference=f"{short(spread(rates['reference']).median)} (PNG)",
        ours=f"{short(spread(rates['ours']).median)} (LMDB, uncompressed)",
        figure=ratios(rates["ours"], rates["reference"]),
        target=Target("at least", limit, " x"),
        remark=f"{count} made-up images, as PNG {share:.0%} of their pixels' size; files in the page cache",
    )
    return Report((outcome,))


def _packed(folder: Path, name: str) -> Path:
    """The images of FOLDER/NAME in an uncompressed LMDB."""
    target = folder / f"{name}.lmdb"
    command = [sys.executable, str(ROOT / "scripts/data/create_lmdb.py"), "--uncompressed"]
    command += ["--input", str(folder / name), "--output", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(1))
    if result.returncode:
        raise ForeignError(f"create_lmdb.py: {result.stderr.strip().splitlines()[-1][:300]}")
    return target


def made_lr(bench: Bench, scale: int, gt_size: int) -> Report:
    """Samples a second with LR images that are made, MATLAB's bicubic, and with LR images of the same files' format."""
    size, count = ((240, 240), 2) if bench.quick else ((480, 480), 64)
    folder = bench.pairs(f"png_{size[0]}x{size[1]}_x{scale}", count, size, scale)
    outcomes = []
    for ending in ("png", "ppm"):
        read = shipped_options(f"scratch_edsr_x{scale}", _written_as(folder, ending), BATCH, num_gpu=0)
        read["datasets"]["train"]["gt_size"] = gt_size
        made = copy.deepcopy(read)
        del made["datasets"]["train"]["dataroot_lq"]
        seconds = 0.2 if bench.quick else 2.0
        with (
            bench.ours("data", options=read, batch=BATCH) as reading,
            bench.ours("data", options=made, batch=BATCH) as making,
        ):
            sides = {
                name: partial(worker.ask, "run", seconds=seconds)
                for name, worker in (("read", reading), ("made", making))
            }
            rates = in_turn(sides, 2 * bench.rounds, warm_up=1)
        outcomes.append(
            Outcome(
                row=f"data_made_x{scale}",
                what=f"samples a second of one worker, {gt_size}x{gt_size} at x{scale} of {ending.upper()}, LR made",
                reference=f"{short(spread(rates['read']).median)} (LR read)",
                ours=f"{short(spread(rates['made']).median)}",
                figure=ratios(rates["made"], rates["read"]),
                target=Target("at least", 0.8, " x"),
            )
        )
    return Report(tuple(outcomes))


def _written_as(folder: Path, ending: str) -> Path:
    """The pairs in a folder, or such of another format beside it."""
    if ending == "png":
        return folder
    target = folder.with_name(f"{folder.name}_{ending}")
    for file in () if target.exists() else sorted(folder.glob("*/*.png")):
        written = (target / file.relative_to(folder)).with_suffix(f".{ending}")
        written.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(written), imfrombytes(file.read_bytes()))
    return target


ROWS = {
    "data_sub": partial(samples, row="data_sub", size=(480, 480), count=64, limit=20.0),
    "data_made_x4": partial(made_lr, scale=4, gt_size=192),
    "data_made_x2": partial(made_lr, scale=2, gt_size=96),
    "data_2k": partial(samples, row="data_2k", size=(1356, 2040), count=12, limit=100.0),
}
