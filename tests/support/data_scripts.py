"""The scripts of scripts/data as commands, and small folders of images for them."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "data"


FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Result:
    returncode: int | None
    stdout: str
    stderr: str


def run(script: str, *arguments: object, folder: Path) -> Result:
    """Runs a script as a command in `folder`, in a fork of this process: PyTorch is imported already."""
    command = [str(SCRIPTS / script), *map(str, arguments), "--workers", "2"]
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs) / name for name in ("stdout", "stderr")]
        process = FORK.Process(target=run_here, args=(command, folder, paths))
        process.start()
        process.join(timeout=120)
        return Result(process.exitcode, *(path.read_text() for path in paths))


def run_here(command: list[str], folder: Path, outputs: list[Path]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv, sys.path[0] = command, str(SCRIPTS)
    os.chdir(folder)
    runpy.run_path(command[0], run_name="__main__")


def write_images(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    folder.mkdir(parents=True)
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        img = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), img)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def last_line(result: Result) -> str:
    return result.stderr.strip().splitlines()[-1]
