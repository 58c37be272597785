"""upscale.py by the best backend, in float32 and int8, against PyTorch."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from basicsr.archs import build_network
from basicsr.latency.workers import environment
from basicsr.utils.errors import ForeignError
from basicsr.utils.timing import Spread, in_turn, ratios, spread
from benchmarks.bench import Bench
from benchmarks.images import picture
from benchmarks.options import ROOT
from benchmarks.table import Outcome, Report, Target, short

SIDES = ("pytorch", "float32", "int8")


def device_upscale(bench: Bench) -> Report:
    """Seconds and memory of a picture: PyTorch in float32, the best backend in float32, an int8 file."""
    side = 128 if bench.quick else 1024
    files = _files(bench)
    path, output = bench.folder / "upscaled.png", bench.folder / "upscaled" / "result.png"
    cv2.imwrite(str(path), picture(side, side, np.random.default_rng(0)))
    models = {"pytorch": files["checkpoint"], "float32": files["checkpoint"], "int8": files["int8"]}
    backends = {"pytorch": "pytorch", "float32": "auto", "int8": "auto"}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                bench.ours(
                    "upscaling",
                    model=str(models[name]),
                    picture=str(path),
                    output=str(output),
                    backend=backends[name],
                    threads=bench.threads,
                )
            )
            for name in SIDES
        }
        sides = {name: partial(worker.ask, "run") for name, worker in workers.items()}
        times = in_turn(sides, bench.rounds)
        memory = {name: worker.ask("memory")["peak"] for name, worker in workers.items()}
        told = {name: worker.ask("told") for name, worker in workers.items()}
    what = f"upscale.py, EDSR {_feat(bench)}x{_blocks(bench)} x2, {side}x{side}, tiles of 512"
    outcomes = [
        Outcome(
            row=f"device_upscale {name}",
            what=what,
            reference=f"{short(spread(times['pytorch']).median)} s",
            ours=f"{short(spread(times[name]).median)} s",
            figure=ratios(times["pytorch"], times[name]),
            target=Target("at least", limit, " x"),
            remark=f"by {told[name]}; against our build by {told['pytorch']}",
        )
        for name, limit in (("float32", 2.5), ("int8", 5.0))
    ]
    shares = [memory[name] / memory["pytorch"] for name in ("float32", "int8")]
    outcomes.append(
        Outcome(
            row="device_upscale memory",
            what=f"{what}: peak memory, the larger of float32 and int8",
            reference=f"{memory['pytorch'] / 1e6:.0f} MB",
            ours=f"{memory['float32'] / 1e6:.0f} and {memory['int8'] / 1e6:.0f} MB",
            figure=Spread(max(shares), max(shares), max(shares)),
            target=Target("at most", 1.0, " x"),
        )
    )
    return Report(tuple(outcomes))


def _feat(bench: Bench) -> int:
    return 8 if bench.quick else 32


def _blocks(bench: Bench) -> int:
    return 1 if bench.quick else 8


def _files(bench: Bench) -> dict[str, Path]:
    """The student's checkpoint, random weights, and its file in int8, made once."""
    folder = bench.folder / "device"
    files = {"checkpoint": folder / "student.pth", "int8": folder / "student_openvino_int8.xml"}
    if folder.exists():
        return files
    folder.mkdir()
    block = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2}
    block |= {"num_feat": _feat(bench), "num_block": _blocks(bench)}
    torch.manual_seed(0)
    torch.save({"params": build_network(block).state_dict(), "network": block}, files["checkpoint"])
    images = bench.pairs("device_images", 4, (192, 192), 2)
    command = [sys.executable, str(ROOT / "scripts/export.py"), "--model", str(files["checkpoint"])]
    command += ["--output", str(folder), "--name", "student", "--target", "openvino", "--precision", "int8"]
    command += ["--calibration", str(images / "LR"), "--validation", str(images / "HR"), str(images / "LR")]
    command += ["--max-drop", "100"]  # of random weights PSNR says nothing
    done = subprocess.run(command, capture_output=True, text=True, env=environment(bench.threads), check=False)
    if done.returncode:
        raise ForeignError(f"export.py: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    command = [sys.executable, str(ROOT / "scripts/upscale.py"), "--model", str(files["checkpoint"])]
    small = images / "LR" / "000000.png"
    command += [str(small), "--output", str(folder / "graph"), "--device", "cpu", "--backend"]
    for backend in ("openvino", "auto"):  # the graph and the choice, both kept
        subprocess.run([*command, backend], capture_output=True, env=environment(bench.threads), check=False)
    return files


ROWS = {"device_upscale": device_upscale}
