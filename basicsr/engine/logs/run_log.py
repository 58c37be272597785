"""What a run tells: log lines, a progress bar, and figures and images for TensorBoard, W&B and the history.

The names are the same in every run and everywhere: losses/NAME, lr/GROUP, metrics/DATASET/METRIC,
images/DATASET/NAME, time/iteration and time/data (seconds).
"""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from basicsr.engine.logs.metric_writers import MetricWriter
from basicsr.utils.errors import CheckpointError

_FIRST_SILENCE, _LATER_SILENCE = 10.0, 60.0  # seconds


class RunLog:
    """Writes a training run's figures. Made on rank 0 only.

    Args:
        logger: for lines.
        name: the run's.
        start: number of iterations already done.
        total: number of iterations in all.
        sinks: where figures and images go.
        compare: makes a picture, uint8 (H, W, 3) BGR, from a validation set's name and the network's output for its
            first image, which it sets beside others.
    """

    def __init__(
        self,
        logger: logging.Logger,
        name: str,
        start: int,
        total: int,
        sinks: Sequence[MetricWriter] = (),
        compare: Callable[[str, np.ndarray], np.ndarray] = lambda dataset, output: output,
    ) -> None:
        self._logger, self._name, self._total = logger, name, total
        self._started = self._last = self._told = time.monotonic()
        self._start = self._last_iteration = self._done = start
        self._silence = _FIRST_SILENCE
        self._sinks, self._compare = list(sinks), compare
        self._bar = tqdm(
            total=total,
            initial=start,
            desc=name,
            unit="it",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )

    def tick(self) -> None:
        """Counts an iteration; where the next line is far off, says how far the run is, first after ten seconds."""
        self._bar.update()
        self._done += 1
        now = time.monotonic()
        if now - self._told >= self._silence:
            self._told, self._silence = now, _LATER_SILENCE
            pace, left = self._pace(self._done, now)
            self.line(
                f"[{self._name[:5]}..][iter:{self._done:8,d} of {self._total:,d}] [eta: {left}, time: {pace:.3f}]"
            )

    def _pace(self, iteration: int, now: float) -> tuple[float, datetime.timedelta]:
        """Seconds to an iteration so far, and the time that the others will take at this pace."""
        per_iteration = (now - self._started) / max(1, iteration - self._start)
        return per_iteration, datetime.timedelta(seconds=int(per_iteration * (self._total - iteration)))

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
        now = time.monotonic()
        per_iteration, left = self._pace(iteration, now)
        lr = ", ".join(f"{group} {rate:.3e}" for group, rate in rates.items())
        losses = " ".join(f"{name}: {value:.4e}" for name, value in parts.items())
        self.line(
            f"[{self._name[:5]}..][epoch:{epoch:3d}, iter:{iteration:8,d}, lr:({lr})] [eta: {left},"
            f" time (data): {per_iteration:.3f} ({waited:.3f})] {losses}"
        )
        figures = {f"losses/{name}": value for name, value in parts.items()}
        figures |= {f"lr/{name}": rate for name, rate in rates.items()}
        figures["time/iteration"] = (now - self._last) / max(1, iteration - self._last_iteration)
        figures["time/data"] = waited
        self._last, self._last_iteration, self._told = now, iteration, now
        self._scalars(iteration, figures)

    def metrics(self, iteration: int, means: Mapping[str, Mapping[str, float]]) -> None:
        """Logs a validation: the average figures of each dataset by metric."""
        self._scalars(
            iteration,
            {f"metrics/{dataset}/{name}": value for dataset, row in means.items() for name, value in row.items()},
        )

    def comparison(self, dataset: str, name: str, iteration: int, output: np.ndarray) -> None:
        """Shows the output for a validation set's first image beside what else there is of it.

        Args:
            dataset: name of the set.
            name: the image's.
            iteration: after which the network gave the output.
            output: uint8 (H, W, 3) BGR.
        """
        shown = [sink for sink in self._sinks if sink.shows_images]
        if shown:
            picture = self._compare(dataset, output)
            for sink in shown:
                self._give(sink, lambda sink: sink.image(f"images/{dataset}/{name}", iteration, picture))

    def line(self, text: str) -> None:
        """Logs one line above the progress bar."""
        self._bar.clear()
        self._logger.info(text)
        self._bar.refresh()

    def close(self, exit_code: int = 0) -> None:
        """Finishes the bar and writes what is pending; a code other than 0 says that the run did not end well.

        Raises:
            CheckpointError: it cannot be written; not where the run has failed for another reason.
        """
        self._bar.close()
        failures: list[CheckpointError] = []
        for sink in list(self._sinks):
            try:
                self._give(sink, lambda sink: sink.close(exit_code))
            except CheckpointError as error:
                failures.append(error)
        if failures and exit_code == 0:
            raise failures[0]

    def _scalars(self, iteration: int, figures: Mapping[str, float]) -> None:
        for sink in list(self._sinks) if figures else ():
            self._give(sink, lambda sink: sink.scalars(iteration, figures))

    def _give(self, sink: MetricWriter, what: Callable[[MetricWriter], None]) -> None:
        """Hands something to a sink; goes on without it where it fails and is not needed."""
        try:
            what(sink)
        except CheckpointError as error:
            if sink.needed:
                raise
            self._sinks.remove(sink)
            self._logger.warning(f"{error}; training goes on without them")
