"""Counts how basicsr is put together: import circles, upward imports, lines, and the files of three walks.

    python scripts/structure.py [--json FILE]

The walks are traced: a tiny MCAD-KD run from the first sample to the saved checkpoint, options until one of their
losses is built, and a file of weights until it is in a network. A file counts if one of its functions is called. The
first walk leaves out the leaves (utils, files, config), and all leave out the networks (archs). In the second walk
the options name one loss: other losses, methods and schedules would each be asked whether their own options fit.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from basicsr.engine.process.command import quiet_start, run_command

if __name__ == "__main__":
    quiet_start()  # what is imported below takes seconds

PACKAGE = ROOT / "basicsr"


def layers() -> list[list[str]]:
    """Rooms from the highest to the lowest, as pyproject.toml states them for import-linter."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contract = tomllib.load(file)["tool"]["importlinter"]["contracts"][0]
    return [re.split(r" [:|] ", row) for row in contract["layers"]]


def import_graph() -> dict[str, set[str]]:
    """The modules of basicsr, each with those that it imports anywhere in its text, also inside functions."""
    files = {_module_of(file): file for file in PACKAGE.rglob("*.py")}
    return {module: _imports(file, set(files)) - {module} for module, file in files.items()}


def _module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path, known: set[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
    return found & known


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return found


def upward_imports(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports of a room that is not lower, such as 'basicsr.config.load -> basicsr.engine.status'."""
    level = {room: number for number, rooms in enumerate(reversed(layers())) for room in rooms}

    def room_of(module: str) -> str | None:
        return module.split(".")[1] if "." in module else None

    return sorted(
        f"{module} -> {other}"
        for module, others in graph.items()
        for other in others
        if (own := room_of(module)) and (their := room_of(other)) and own != their and level[their] >= level[own]
    )


def line_counts() -> dict[str, float]:
    """Lines of basicsr, those of docstrings and blank ones, and the mean length of the other lines in characters."""
    lines = docstrings = blank = 0
    lengths: list[int] = []
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text("utf-8")
        rows = text.splitlines()
        documented = {row for node in ast.walk(ast.parse(text)) for row in _docstring_rows(node)}
        lines += len(rows)
        docstrings += len(documented)
        for row, line in enumerate(rows, 1):
            if not line.strip():
                blank += row not in documented
            elif row not in documented and not line.lstrip().startswith(("#", "import ", "from ")):
                lengths.append(len(line))
    mean = round(sum(lengths) / len(lengths), 2)
    return {"lines": lines, "docstring lines": docstrings, "blank lines": blank, "mean length of a code line": mean}


def _docstring_rows(node: ast.AST) -> range:
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        return range(0)
    if ast.get_docstring(node, clean=False) is None:
        return range(0)
    first = node.body[0]
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


class Walk:
    """Notes the files of basicsr whose functions are entered; with `within`, only while that function runs."""

    def __init__(self, within: str | None = None) -> None:
        self._within, self._open = within, within is None
        self._files: set[str] = set()

    def __enter__(self) -> Walk:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(str(PACKAGE)):
            return
        if event in ("call", "return") and code.co_name == self._within:
            self._open = event == "call"
        if event == "call" and self._open and code.co_name != "<module>":
            self._files.add(os.path.relpath(code.co_filename, PACKAGE).replace(os.sep, "/"))

    def files(self, without: tuple[str, ...]) -> list[str]:
        """The files, but for those of the rooms in `without`."""
        return sorted(file for file in self._files if file.split("/")[0] not in without)


def walks(folder: Path) -> dict[str, list[str]]:
    """The files passed on each walk; see the module's docstring."""
    import torch

    from basicsr.archs import build_network
    from basicsr.config.load import load_options
    from basicsr.losses import build_loss
    from basicsr.train import train_pipeline
    from basicsr.weights.recognise import network_for

    options = _tiny_run(folder)
    with Walk(within="fit") as training:
        train_pipeline(options, root=folder)
    train = {name: options["train"][name] for name in ("total_iter", "optim_g", "pixel_opt")}
    one_loss = {**options, "model_type": "SRModel", "train": train}
    del one_loss["network_t"], one_loss["network_d"]
    load_options(one_loss, training=True, root=folder)  # what is imported on first use is not part of the walk
    with Walk() as option:
        loaded = load_options(one_loss, training=True, root=folder)
        assert loaded.train is not None and loaded.train.pixel_opt is not None and loaded.network_g is not None
        build_loss(loaded.train.pixel_opt)
    file = folder / "weights.pth"
    torch.save({"params": build_network(loaded.network_g).state_dict()}, file)
    with Walk() as weights:
        network_for(loaded.network_g, str(file), param_key="params", strict=True)
    return {
        "image to checkpoint": training.files(("archs", "utils", "files", "config")),
        "option to loss": option.files(("archs",)),
        "weights file to network": weights.files(("archs",)),
    }


def _tiny_run(folder: Path) -> dict[str, Any]:
    import cv2
    import numpy as np

    generator = np.random.default_rng(0)
    for name, side in (("HR", 48), ("LR", 24)):
        (folder / name).mkdir()
        for number in range(4):
            image = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / name / f"{number}.png"), image)
    network = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
    adam = {"type": "Adam", "lr": 1e-3}
    return {
        "name": "walk",
        "model_type": "MCADKD",
        "scale": 2,
        "num_gpu": 0,
        "datasets": {
            "train": {
                "name": "train",
                "type": "PairedImageDataset",
                "dataroot_gt": str(folder / "HR"),
                "dataroot_lq": str(folder / "LR"),
                "gt_size": 32,
                "batch_size_per_gpu": 2,
                "num_worker_per_gpu": 0,
            }
        },
        "network_g": network,
        "network_t": network,
        "network_d": {"type": "UNetDiscriminatorSN", "num_in_ch": 3, "num_feat": 4},
        "path": {"allow_random_teacher": True},
        "train": {
            "total_iter": 2,
            "optim_g": adam,
            "optim_d": adam,
            "scheduler": {"type": "MultiStepLR", "milestones": [1]},
            "pixel_opt": {"type": "L1Loss"},
            "resp_kd_opt": {"type": "L1Loss"},
            "contrastive_opt": {"type": "hybrid", "patch_size": 16, "num_patches": 2, "embed_dim": 16},
            "adversarial_opt": {"type": "GANLoss", "gan_type": "vanilla", "loss_weight": 0.01},
        },
        "logger": {"print_freq": 10**9, "save_checkpoint_freq": 10**9, "use_tb_logger": False},  # never
    }


def _report(graph: Mapping[str, set[str]], passed: Mapping[str, list[str]]) -> Iterator[tuple[str, Any]]:
    yield "import circles", circles(graph)
    yield "upward imports", upward_imports(graph)
    yield "files in utils", len(list((PACKAGE / "utils").glob("*.py")))
    yield from line_counts().items()
    for name, files in passed.items():
        yield f"files from {name}", files


def main(arguments: list[str] | None = None) -> int:
    """Prints the counts; 1 where there are circles or upward imports."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the counts, with the files of each walk, here")
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        counts = dict(_report(import_graph(), walks(Path(folder))))
    for name, value in counts.items():
        print(f"{name:28} {len(value) if isinstance(value, list) else value}")
    for line in (*counts["upward imports"], *(" <-> ".join(circle) for circle in counts["import circles"])):
        print(f"  {line}")
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(counts, indent=2) + "\n", "utf-8")
    return 1 if counts["import circles"] or counts["upward imports"] else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
