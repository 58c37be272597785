"""What a dataset of many images costs before and while it is read."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from basicsr.config.load import load_options
from basicsr.data.base import SampleKey, load_sample
from basicsr.data.checks.checking import check_images
from basicsr.data.checks.notes import fingerprint
from basicsr.latency.serving import memory
from benchmarks.ours.data import training_loader


class Indexing:
    """The training set of options, built and checked as training does it.

    Args:
        options: a whole options file as plain dicts.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._options = load_options(options, training=True)

    def measure(self, samples: int) -> dict[str, float]:
        """Seconds to build, to check and to load a sample, and bytes of memory.

        Args:
            samples: how many to load, spread over all.
        """
        block = self._options.datasets["train"]
        before, started = memory()["own"], time.perf_counter()
        loader = training_loader(block)
        fingerprint(loader.dataset)
        built = time.perf_counter()
        check_images(loader.dataset, block, processes=1)
        checked = time.perf_counter()
        rng = np.random.default_rng(0)
        for index in rng.integers(0, loader.num_samples, samples):
            load_sample(loader.dataset, SampleKey(int(index), seed=int(index)), pixels=True)
        loaded = time.perf_counter()
        again = time.perf_counter()
        check_images(loader.dataset, block, processes=1)
        return {
            "build": built - started,
            "check": checked - built,
            "check again": time.perf_counter() - again,
            "sample": (loaded - checked) / samples,
            "memory": max(0, memory()["own"] - before),
        }
