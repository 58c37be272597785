"""Batches of a whole run, from worker processes that live as long as it does.

With `skip_bad_images`, a sample i that cannot be loaded is replaced by sample i + 1, or the next one that can, around
the end to the beginning; seed and patch size stay those of the position. So the sample depends on its key and on which
files are bad, not on workers, ranks, or how often a run was resumed.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from basicsr.data.base import load_sample, sample_name
from basicsr.data.batch import Batch, BatchInSlot, Skipped, Slots, collate
from basicsr.data.checks.inspection import without_name
from basicsr.data.sampling import KeySampler, SampleKey
from basicsr.data.storage import stored_images
from basicsr.utils.errors import DataError, MachineError, UserError
from basicsr.utils.process_settings import STOP_SIGNALS, keep_freed_memory

_PR_SET_PDEATHSIG = 1
_LARGEST_KEPT, _MOST_KEPT = 32 << 20, 256 << 20  # bytes of a worker's freed memory
_WORKERS_TRACEBACK, _NOT_YET = "in DataLoader worker process", "DataLoader timed out"
_ASK_SECONDS = 1.0  # how often, while workers are waited for, it is asked whether to go on


class EpochPlace(NamedTuple):
    """How far a run is: complete epochs, iterations since then, and the iterations of the current epoch."""

    number: int
    iteration: int
    iterations: int


class NoMoreAsked(Exception):
    """The run is to end, and the next batch was not there yet."""


class TrainLoader:
    """Yields the batches of each iteration: tuples of `accumulate` batches.

    Iterating draws nothing from any global generator, and the batches depend on nothing but the sampler's
    arguments and the dataset: not on the number of workers, nor on where the run was resumed.

    Args:
        dataset: any map-style dataset whose items `collate` takes.
        sampler: which samples come when.
        accumulate: batches to an iteration.
        enlarge_ratio: passes over the dataset that count as one epoch.
        num_workers: worker processes; 0 loads in this process.
        prefetch: batches that each worker prepares ahead, at least 2.
        pin_memory: yield batches in page-locked memory.
        skip_bad_images: how many bad images a run may do without.

    Raises:
        DataError: while iterating: a sample cannot be loaded, nor any that would be taken for it.
        MachineError: while iterating: a worker was killed.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: KeySampler,
        *,
        accumulate: int = 1,
        enlarge_ratio: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        skip_bad_images: int = 0,
    ) -> None:
        self.dataset = dataset
        self.num_samples = sampler.num_samples
        self._sampler, self._accumulate = sampler, accumulate
        self._epoch = sampler.num_samples * enlarge_ratio  # samples
        self._batches = _BatchesByKeys(dataset, skip_bad_images)
        # Slots: batches that a worker has prepared, those of this iteration and the next (`PrefetchedBatches`), one
        # being filled, and a spare one.
        self._slots_each = max(prefetch, 2) + 2 * accumulate + 2
        self._loader = DataLoader(
            self._batches,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=partial(prepare_worker, parent=os.getpid()),
            multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
            generator=torch.Generator(),
            timeout=_ASK_SECONDS if num_workers else 0,
            prefetch_factor=max(prefetch, 2) if num_workers else None,
        )

    def leave_out(self, bad: Iterable[tuple[int, str]]) -> None:
        """Replaces bad images (sample, 'path: reason') without loading them; call it before iterating, on all ranks."""
        for index, note in bad:
            self._batches.bad.setdefault(index, []).append(note)

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations that all ranks together need for an epoch, rounded up; on average over the run if they change."""
        iterations = self._sampler.total_iterations
        per_iteration = self._sampler.stages.samples_before(iterations) / iterations
        return math.ceil(self._epoch / per_iteration)

    def epoch_at(self, iteration: int) -> EpochPlace:
        """How far the run is after so many iterations.

        Where the batch size changes, an epoch ends with the iteration in which its last sample was taken.
        """
        stages = self._sampler.stages
        if not stages.change:
            length = self.iterations_per_epoch
            return EpochPlace(*divmod(iteration, length), length)
        number = stages.samples_before(iteration) // self._epoch
        start, end = (stages.iterations_for(count * self._epoch) for count in (number, number + 1))
        return EpochPlace(number, iteration - start, end - start)

    def __len__(self) -> int:
        return len(self._sampler) // self._accumulate

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        return self.until(lambda: False)

    def until(self, stopping: Callable[[], bool]) -> Iterator[tuple[Batch, ...]]:
        """Yields the batches; raises NoMoreAsked when it would have to wait for one and `stopping` returns True."""
        slots = Slots.made(self._loader.num_workers, self._slots_each)
        others = set(multiprocessing.active_children())
        self._batches.slots = slots  # for the workers that are forked now
        with _child_signals_kept():
            batches = iter(self._loader)
        self._batches.slots = None
        workers = set(multiprocessing.active_children()) - others
        waiting = stopping if self._loader.num_workers else None
        try:
            for _ in range(len(self)):
                yield tuple([_next_batch(batches, waiting) for _ in range(self._accumulate)])
        except NoMoreAsked:
            _kill(workers)  # they do not hear of the end
            raise
        except Exception as error:
            _release(error)
            raise
        finally:
            # Ends the workers now. Left to the garbage collector, each would be waited for five seconds.
            del batches, slots
            _kill(workers)  # else one that stands still would be waited for when Python ends


class _BatchesByKeys(Dataset[Any]):
    """Loads whole batches; returns a UserError as a value, which torch's DataLoader would wrap in a text."""

    def __init__(self, dataset: Dataset[Any], skip_bad_images: int) -> None:
        self._dataset, self._skip_bad_images = dataset, skip_bad_images
        self.bad: dict[int, list[str]] = {}
        self.slots: Slots | None = None

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch | BatchInSlot | UserError:
        try:
            found = [load_or_replace(self._dataset, key, self._skip_bad_images, self.bad, pixels=True) for key in keys]
            samples, seeds = [sample for sample, _ in found], [key.seed for key in keys]
            skipped = tuple(dict.fromkeys(note for _, notes in found for note in notes))
            worker = get_worker_info()
            slot = None if self.slots is None or worker is None else self.slots.take(worker.id)
            if slot is None:
                return collate(samples, seeds, skipped)
            return slot.filled(collate(samples, seeds, skipped, slot.empty))
        except UserError as error:
            return error


def load_or_replace(
    dataset: Dataset[Any], key: SampleKey, limit: int, bad: Mapping[int, Sequence[str]], pixels: bool = False
) -> tuple[dict[str, Any], list[Skipped]]:
    """Loads a sample, or the next good one; raises DataError after `limit` bad ones. `bad` ones are not tried."""
    if limit == 0:
        return load_sample(dataset, key, pixels), []
    length = len(dataset)  # type: ignore[arg-type]
    tried = min(length, limit + 1)
    skipped: list[Skipped] = []
    for index in ((key.index + step) % length for step in range(tried)):
        if index in bad:
            skipped += [Skipped(index, note) for note in bad[index]]
            continue
        try:
            return load_sample(dataset, replace(key, index=index), pixels), skipped
        except DataError as error:
            skipped.append(Skipped(index, _note(dataset, index, str(error))))
    raise DataError(
        f"{sample_name(dataset, key.index)} and the {tried - 1} after it cannot be loaded, and skip_bad_images is"
        f" {limit}; the first is {skipped[0].note}"
    )


def _note(dataset: Any, index: int, message: str) -> str:
    """'path: reason', where the path is that of the image that the message is about, or else the sample's first."""
    stored = stored_images(dataset)
    if stored is None:
        return f"{sample_name(dataset, index)}: {message}"
    labels = [stored.label(role, index) for role in stored.files]
    for label in labels:
        if (reason := without_name(message, label)) != message:
            return f"{label}: {reason}"
    return f"{labels[0]}: {message}"


def _as_it_is(batch: Any) -> Any:
    return batch


def _next_batch(batches: Iterator[Batch | UserError], stopping: Callable[[], bool] | None) -> Batch:
    """The next batch; `stopping` is None where there are no workers to wait for."""
    while True:
        try:
            batch = next(batches)
        except (RuntimeError, OSError, EOFError) as error:
            # What the dataset raised carries the worker's traceback. Anything else comes from the connection to
            # the workers; which error it is depends on when a worker was killed.
            if stopping is None or _WORKERS_TRACEBACK in str(error):
                raise
            if _NOT_YET not in str(error):
                reason = " ".join(str(error).split()) or type(error).__name__
                raise MachineError(
                    f"a data worker was lost ({reason[:200]}); where memory ran out, lower num_worker_per_gpu or "
                    "batch_size_per_gpu"
                ) from error
        else:
            if isinstance(batch, UserError):
                raise batch
            return batch
        if stopping():
            raise NoMoreAsked


def _kill(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


@contextmanager
def _child_signals_kept() -> Iterator[None]:
    """Undoes torch's SIGCHLD handler, which may raise a killed worker's error in the middle of a step."""
    settable = sys.platform != "win32" and threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if settable else None
    yield
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


def _release(error: BaseException | None) -> None:
    """Drops the variables of the frames that an exception has left, in which the iterator would live on."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def prepare_worker(worker: int, parent: int) -> None:
    """Makes a worker use one core, leave requests to stop to its parent, and end with it."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    # SLURM signals all processes of a step, and the parent needs its workers until it has saved.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        # A group of its own: what is sent to the parent's group (`timeout`, a shell) must not stop the worker
        # while the parent still finishes its iteration and saves.
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        keep_freed_memory(_LARGEST_KEPT, _MOST_KEPT)
        if os.getppid() != parent:
            os._exit(1)
