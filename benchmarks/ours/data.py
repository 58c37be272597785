"""Training samples from our loader."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import torch

from basicsr.config.load import load_options
from basicsr.config.schema import DatasetOptions
from basicsr.data import build_train_loader
from basicsr.data.batch import Batch
from basicsr.data.loading import TrainLoader


def training_loader(block: DatasetOptions) -> TrainLoader:
    """The loader of the options `datasets: train`, as training builds it in one process."""
    return build_train_loader(
        block,
        seed=0,
        rank=0,
        world_size=1,
        start_iteration=0,
        total_iterations=10_000_000,
        accumulate=1,
        on_gpu=False,
    )


class Data:
    """A dataset and its loader, with one worker.

    Args:
        options: a whole options file as plain dicts.
        batch: images to a batch.
    """

    def __init__(self, options: dict[str, Any], batch: int) -> None:
        torch.set_num_threads(1)
        options["datasets"]["train"].update(num_worker_per_gpu=1, batch_size_per_gpu=batch)
        block = load_options(options, training=True).datasets["train"]
        loader = training_loader(block)
        self._batch, self._ahead = batch, max(2, block.num_prefetch_queue)
        self._batches: Generator[tuple[Batch, ...], None, None] = (batches for batches in loader)

    def close(self) -> None:
        """Ends the loader's worker."""
        self._batches.close()

    def run(self, seconds: float) -> float:
        """Samples a second, over about so many seconds; what was loaded while nobody asked does not count."""
        for _ in range(self._ahead + 1):
            next(self._batches)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            for batch in next(self._batches):
                batch.to("cpu", channels_last=True)  # as the training loop does before the step
            count += 1
        return count * self._batch / (time.perf_counter() - started)
