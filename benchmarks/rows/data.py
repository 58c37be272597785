"""Training samples a second: crops of 192x192 by one worker."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from basicsr.utils.errors import ForeignError
from basicsr.utils.timing import in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.options import ROOT, shipped_options
from benchmarks.table import Outcome, Report, Target, short
from benchmarks.workers import environment

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


ROWS = {
    "data_sub": partial(samples, row="data_sub", size=(480, 480), count=64, limit=20.0),
    "data_2k": partial(samples, row="data_2k", size=(1356, 2040), count=12, limit=100.0),
}
