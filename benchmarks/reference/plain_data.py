"""Training samples by basicsr 1.4.2: PNG files decoded whole, cropped, through PyTorch's loader with one worker."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any


class PlainData:
    """A PairedImageDataset and its loader.

    Args:
        block: its options, as plain dicts.
        batch: images to a batch.
    """

    def __init__(self, block: dict[str, Any], batch: int) -> None:
        data = importlib.import_module("basicsr.data")
        block = {**block, "phase": "train", "num_worker_per_gpu": 1, "batch_size_per_gpu": batch}
        dataset = data.build_dataset(block)
        # As its train.py does, so that workers are not started anew after each pass over few images.
        sampler = importlib.import_module("basicsr.data.data_sampler").EnlargedSampler(
            dataset, num_replicas=1, rank=0, ratio=100_000 // len(dataset)
        )
        self._loader = data.build_dataloader(dataset, block, num_gpu=1, dist=False, sampler=sampler, seed=0)
        self._batch, self._ahead = batch, 2  # PyTorch's own prefetch_factor
        self._batches = self._endless()

    def run(self, seconds: float) -> float:
        """Samples a second, over about so many seconds; what was loaded while nobody asked does not count."""
        for _ in range(self._ahead + 1):
            next(self._batches)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            next(self._batches)
            count += 1
        return count * self._batch / (time.perf_counter() - started)

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self._loader
