"""Shared fixtures: small image folders, a small run, and few threads so that parallel tests do not fight for cores."""

from __future__ import annotations

import compileall
import gc
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from support.tiny_run import tiny_mcadkd

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
WRITES_BYTECODE = not sys.dont_write_bytecode
sys.dont_write_bytecode = False  # until the tests are collected: their rewritten assertions are worth keeping


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the sources once; where the environment writes no bytecode, each of many processes would."""
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist
        for folder in ("basicsr", "scripts", "tests/support"):
            compileall.compile_dir(ROOT / folder, quiet=2)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through it again and again."""
    sys.dont_write_bytecode = not WRITES_BYTECODE
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """What runs remember of images goes to a folder of the tests' own; processes that they start inherit that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASICSR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write_pairs(root: Path, scale: int, names: list[str], size: int = 48, seed: int = 0) -> tuple[Path, Path]:
    """Writes smooth random HR images (`size` pixels a side, LR coordinates times scale) and their LR averages."""
    generator = np.random.default_rng(seed)
    gt_root, lq_root = root / "HR", root / f"LR_X{scale}"
    for folder in (gt_root, lq_root):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        coarse = generator.uniform(0, 255, (6, 6, 3)).astype(np.float32)
        gt = cv2.resize(coarse, (size * scale, size * scale), interpolation=cv2.INTER_CUBIC)
        gt = np.clip(gt + generator.normal(0, 4, gt.shape), 0, 255).astype(np.uint8)
        lq = cv2.resize(gt, (size, size), interpolation=cv2.INTER_AREA)
        assert cv2.imwrite(str(gt_root / f"{name}.png"), gt)
        assert cv2.imwrite(str(lq_root / f"{name}x{scale}.png"), lq)
    return gt_root, lq_root


@pytest.fixture
def image_pairs(tmp_path: Path):
    """A function writing an image folder pair below the test's own folder: see `write_pairs`."""

    def write(scale: int = 2, count: int = 6, size: int = 24, folder: str = "data", seed: int = 0) -> tuple[Path, Path]:
        names = [f"img{index:03d}" for index in range(count)]
        return write_pairs(tmp_path / folder, scale, names, size, seed)

    return write


@pytest.fixture
def mcadkd(image_pairs) -> dict[str, Any]:
    """See `tiny_mcadkd`."""
    return tiny_mcadkd(image_pairs)
