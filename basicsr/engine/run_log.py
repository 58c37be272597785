"""What a run tells: log lines, a progress bar, TensorBoard."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


class RunLog:
    """Writes a training run's figures. Made on rank 0 only.

    Args:
        logger: for lines.
        name: the run's.
        start: number of iterations already done.
        total: number of iterations in all.
        tensorboard: folder for TensorBoard's events, or None.
    """

    def __init__(self, logger: logging.Logger, name: str, start: int, total: int, tensorboard: Path | None) -> None:
        self._logger, self._name, self._total = logger, name, total
        self._started = time.monotonic()
        self._start = start
        self._writer = _open_tensorboard(tensorboard, start) if tensorboard is not None else None
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit="it",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def tick(self) -> None:
        """Counts an iteration on the progress bar."""
        self._bar.update()

    def step(
        self,
        iteration: int,
        epoch: int,
        rates: Mapping[str, float],
        parts: Mapping[str, float],
        waited: float,
    ) -> None:
        """Logs one iteration.

        Args:
            iteration: from 1.
            epoch: passes over the dataset so far.
            rates: learning rates by parameter group.
            parts: losses by name, unweighted.
            waited: seconds that an iteration waited for data, on average since the last call.
        """
        per_iteration = (time.monotonic() - self._started) / max(1, iteration - self._start)
        left = datetime.timedelta(seconds=int(per_iteration * (self._total - iteration)))
        lr = ",".join(f"{rate:.3e}" for rate in rates.values())
        losses = " ".join(f"{name}: {value:.4e}" for name, value in parts.items())
        self.line(
            f"[{self._name[:5]}..][epoch:{epoch:3d}, iter:{iteration:8,d}, lr:({lr},)] [eta: {left},"
            f" time (data): {per_iteration:.3f} ({waited:.3f})] {losses}"
        )
        if self._writer is not None:
            for name, value in parts.items():
                self._writer.add_scalar(f"losses/{name}", value, iteration)
            for name, rate in rates.items():
                self._writer.add_scalar(f"lr/{name}", rate, iteration)

    def metrics(self, dataset: str, iteration: int, means: Mapping[str, float]) -> None:
        """Adds a dataset's figures to TensorBoard."""
        if self._writer is not None:
            for name, value in means.items():
                self._writer.add_scalar(f"metrics/{dataset}/{name}", value, iteration)

    def image(self, dataset: str, name: str, iteration: int, image: np.ndarray) -> None:
        """Adds an image, uint8 HWC BGR, to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(f"{dataset}/{name}", image[..., ::-1], iteration, dataformats="HWC")

    def line(self, text: str) -> None:
        """Logs one line above the progress bar."""
        self._bar.clear()
        self._logger.info(text)
        self._bar.refresh()

    def close(self) -> None:
        """Finishes the bar and writes what is pending."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _open_tensorboard(folder: Path, start: int) -> Any:
    """Opens a writer; events of iterations after `start`, left by a run that was cut off, are void."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1 if start else None)
