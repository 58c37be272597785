"""A trained teacher in a file, and its cache; and caches whose outputs are a known function of the HR images."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.engine.teacher_cache import CacheSettings, CacheSummary, make_cache


def with_teacher(options: dict[str, Any], folder: Path, seed: int = 5) -> dict[str, Any]:
    """The options with network_t's weights in a file."""
    torch.manual_seed(seed)
    file = folder / f"teacher_{seed}.pth"
    torch.save({"params": build_network(options["network_t"]).state_dict()}, file)
    return {**copy.deepcopy(options), "path": {"pretrain_network_t": str(file)}}


def make(options: dict[str, Any], folder: Path | None = None, **how: Any) -> CacheSummary:
    """Makes the cache of the options' teacher on the CPU."""
    loaded = load_options(options, training=True)
    return make_cache(loaded, CacheSettings(torch.device("cpu"), **how), folder, lambda line: None)


def from_cache(options: dict[str, Any], folder: Path, *, teacher: bool = False) -> dict[str, Any]:
    """The options with the cache in the teacher's place; with `teacher` they name that too."""
    changed = copy.deepcopy(options)
    changed["datasets"]["train"]["teacher_cache"] = str(folder)
    if not teacher:
        del changed["network_t"]
        changed["path"].pop("pretrain_network_t")
    return changed


def codes_of(gt: np.ndarray) -> np.ndarray:
    """A function of an 8-bit HR image that tells every pixel and channel: uint16 codes."""
    return gt.astype(np.uint16) * 200 + np.array([3, 1000, 7000], np.uint16)


def write_codes(folder: Path, name: str, gt: np.ndarray) -> None:
    """A cache's file with `codes_of` an image, written by OpenCV."""
    path = folder / f"{name}.ppm"
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), codes_of(gt))


@contextmanager
def at_forward(number: int, action: Callable[[], None]) -> Iterator[None]:
    """Within the block, `action` is done when an EDSR has been run on the `number`-th image of `mcadkd`'s, of 24x24."""
    count = 0

    def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal count
        if type(module).__name__ == "EDSR" and inputs[0].shape[-2:] == (24, 24):
            count += 1
            if count == number:
                action()

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def make_and_die(options: dict[str, Any], folder: str, number: int) -> None:
    """Makes a cache until its `number`-th image, then kills its own process."""
    with at_forward(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        make(options, Path(folder))
