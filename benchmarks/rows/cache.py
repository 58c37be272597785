"""What a step costs with the teacher's outputs in the batch, against the same student without a teacher."""

from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from basicsr.archs import build_network
from basicsr.utils.errors import ForeignError
from basicsr.utils.timing import in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.options import FAST, PAIRS, ROOT
from benchmarks.rows.step import NAMES, step_options
from benchmarks.table import Outcome, Report, Target, short
from benchmarks.training import variables, write_options


def cache(bench: Bench, pair: str) -> Report:
    """Seconds of a step with stored teacher's outputs and of one without a teacher; both without the adversary."""
    taught = step_options(bench, pair, **FAST)
    taught.pop("network_d")
    taught["train"] = {
        key: value for key, value in taught["train"].items() if key not in ("optim_d", "adversarial_opt")
    }
    alone = copy.deepcopy(taught)
    alone["model_type"] = "SRModel"
    del alone["network_t"], alone["path"]
    del alone["train"]["distill"]
    folder = bench.folder / f"cache_{pair}"
    _store_outputs(bench, folder, taught)
    taught["datasets"]["train"]["teacher_cache"] = str(folder / "outputs")
    settings = {"without": alone, "cached": taught}
    with (
        bench.ours("step", options=settings["without"], threads=bench.threads) as without,
        bench.ours("step", options=settings["cached"], threads=bench.threads) as cached,
    ):
        sides = {"without": partial(without.ask, "run"), "cached": partial(cached.ask, "run")}
        times = in_turn(sides, 2 * bench.rounds, warm_up=2)
    outcome = Outcome(
        row=f"cache_{pair}",
        what=f"MCAD-KD step without adversary, stored teacher's outputs (loaded before), to the {NAMES[pair]} student",
        reference=f"{short(spread(times['without']).median)} s",
        ours=f"{short(spread(times['cached']).median)} s",
        figure=ratios(times["cached"], times["without"]),
        target=Target("at most", 1.15, " x"),
    )
    return Report((outcome,))


def _store_outputs(bench: Bench, folder: Path, options: dict[str, Any]) -> None:
    """Runs scripts/cache_teacher.py with a teacher of random weights."""
    options = copy.deepcopy(options)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "teacher.pth"
    torch.manual_seed(0)
    torch.save({"params": build_network(options["network_t"]).state_dict()}, weights)
    options["path"] = {"pretrain_network_t": str(weights)}
    file = write_options(folder, options)
    program = [sys.executable, str(ROOT / "scripts/cache_teacher.py"), "-opt", str(file), "--device", "cpu"]
    result = subprocess.run(
        [*program, "--output", str(folder / "outputs")],
        cwd=folder,
        env=variables(folder, bench.threads),
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise ForeignError(f"cache_teacher.py: {(result.stderr.strip().splitlines() or ['no word'])[-1][:300]}")


ROWS = {f"cache_{pair}": partial(cache, pair=pair) for pair in PAIRS}
