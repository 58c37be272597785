"""Datasets by their options, and batches of a whole run, loaded by workers, ahead of use."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from basicsr.data.base import (
    EvaluationDataset,
    ImageDataset,
    SampleKey,
    Skipped,
    check_patches,
    load_or_replace,
    sample_name,
)
from basicsr.data.batch import Batch, BatchInSlot, Slots, collate
from basicsr.data.mixing import MixedSampler, Mixture, SeveralSets, located, sets_of, shares_of
from basicsr.data.sampling import KeySampler, Stage
from basicsr.data.storage import Share, stored_images
from basicsr.utils import randomness
from basicsr.utils.errors import DataError, MachineError, Preempted, UserError
from basicsr.utils.process_settings import STOP_SIGNALS, end_with_parent, keep_freed_memory
from basicsr.utils.registry import DATASET_REGISTRY, declared

if TYPE_CHECKING:
    from basicsr.config.schema import DatasetOptions

_LOADER_KEYS = ("batch_size_per_gpu", "num_worker_per_gpu", "dataset_enlarge_ratio", "prefetch_mode", "use_shuffle")
_FRAMEWORK_KEYS = ("name", "phase", "scale", *_LOADER_KEYS, "num_prefetch_queue", "pin_memory", "persistent_workers")
_LARGEST_KEPT, _MOST_KEPT = 32 << 20, 256 << 20  # bytes of a worker's freed memory
_WORKERS_TRACEBACK, _NOT_YET = "in DataLoader worker process", "DataLoader timed out"
_ASK_SECONDS = 1.0  # how often, while workers are waited for, it is asked whether to go on
_Item = TypeVar("_Item")


def build_dataset(opt: Mapping[str, Any]) -> Dataset[Any]:
    """Builds a dataset from options as BasicSR writes them: `type`, and the arguments of the class of that name.

    `phase`, `scale`, `name` and the loader's keys only reach a class that asks for them. Raises OptionsError where the
    type is unknown or a key does not fit, and DataError as the class does for missing data.
    """
    own = {key: value for key, value in opt.items() if key not in _FRAMEWORK_KEYS}
    provided = {key: opt[key] for key in _FRAMEWORK_KEYS if opt.get(key) is not None}
    return DATASET_REGISTRY.build(own, **provided)


def build_train_loader(
    options: DatasetOptions,
    further: Mapping[str, DatasetOptions] = {},
    *,
    accumulate: int,
    on_gpu: bool,
    seed: int,
    **position: int,
) -> TrainLoader:
    """Builds the loader of a training run for one rank, whose place is `position`, arguments of `KeySampler`.

    Each iteration takes its images of one set, that of `options` or one of `further`, which has them by their keys.
    `on_gpu` says whether training runs on a GPU. Raises as `build_dataset`, and OptionsError
    where patches shall grow and a dataset's class cannot do that.
    """
    blocks = [options, *further.values()]
    sets = [build_dataset(_as_mapping(block)) for block in blocks]
    for dataset in sets:
        if isinstance(dataset, ImageDataset):
            dataset.begin_training(on_gpu)
    counts = [_length(dataset, block) for dataset, block in zip(sets, blocks, strict=True)]
    columns = (options.iters or (), options.mini_batch_sizes or (), options.gt_sizes or ())
    stages = [Stage(*entries) for entries in zip(*columns, strict=True)]  # of progressive training; else none
    for dataset in sets if stages else ():
        check_patches(dataset)

    def keys(count: int, seed: int, shares: Sequence[Share] = ()) -> KeySampler:
        return KeySampler(
            num_samples=count,
            batch_size=stages or options.batch_size_per_gpu,
            accumulate=accumulate,
            shuffle=options.use_shuffle,
            shares=shares,
            seed=seed,
            **position,
        )

    without_gt = [
        bool(declared(dataset, "without_gt", block.arguments, False))
        for dataset, block in zip(sets, blocks, strict=True)
    ]
    numbers = range(1, len(sets))
    seeds = [seed, *(randomness.derived_seed(seed, f"training set {number}") for number in numbers)]
    shares = [() if (stored := stored_images(dataset)) is None else stored.shares for dataset in sets]
    samplers = list(map(keys, counts, seeds, shares))
    dataset, sampler = sets[0], samplers[0]
    mixed: MixedSampler | None = None
    if further:
        dataset = SeveralSets(dict(zip(("train", *further), sets, strict=True)))
        passes = [part.samples_per_pass for part in samplers]
        mixture = Mixture(shares_of([block.share for block in blocks], passes), seed)
        sampler = keys(sum(passes), seed)
        mixed = MixedSampler(sampler, samplers, mixture)
    return TrainLoader(
        dataset,
        sampler,
        mixed,
        without_gt=without_gt,
        accumulate=accumulate,
        enlarge_ratio=options.dataset_enlarge_ratio,
        num_workers=options.num_worker_per_gpu,
        prefetch=options.num_prefetch_queue,
        pin_memory=on_gpu and options.pin_memory,
        skip_bad_images=options.skip_bad_images,
    )


def build_eval_dataset(options: DatasetOptions) -> EvaluationDataset:
    """Builds a dataset for evaluation: items have `lq`, `lq_path`, and `gt`, `gt_path` where there are HR images."""
    dataset = build_dataset(_as_mapping(options))
    return EvaluationDataset(dataset, _length(dataset, options))


def _length(dataset: Any, options: DatasetOptions) -> int:
    if len(dataset) == 0:
        raise DataError(f"dataset {options.name or options.type} is empty; check its folders")
    return len(dataset)


def _as_mapping(options: DatasetOptions) -> dict[str, Any]:
    framework = {key: getattr(options, key) for key in _FRAMEWORK_KEYS}
    return {"type": options.type, **options.arguments, **framework}


class TrainLoader:
    """Yields the batches of each iteration: tuples of `accumulate` batches.

    Iterating draws nothing from any global generator, and the batches depend on the sampler's arguments and the dataset
    only, which is any map-style one whose items `collate` takes, or `SeveralSets` for `mixed`. `without_gt` says of
    each set whether its samples have no HR images, which they must not contradict. `enlarge_ratio` passes count as one
    epoch. Without workers this process loads; each prepares `prefetch` batches, at least 2. While iterating, raises
    DataError where a sample cannot be loaded, nor any that `skip_bad_images` would take for it, MachineError where a
    worker was killed.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: KeySampler,
        mixed: MixedSampler | None = None,
        *,
        without_gt: Sequence[bool] | None = None,
        accumulate: int = 1,
        enlarge_ratio: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        skip_bad_images: int = 0,
    ) -> None:
        self.dataset = dataset
        self.num_samples: int = (mixed or sampler).num_samples
        self.mixture = None if mixed is None else mixed.mixture
        self._sampler, self._accumulate = sampler, accumulate
        self.samples_per_pass = sampler.samples_per_pass
        self._epoch = self.samples_per_pass * enlarge_ratio
        self._batches = _BatchesByKeys(dataset, skip_bad_images, without_gt)
        # Slots: batches that a worker has prepared, those of this iteration and the next (`PrefetchedBatches`), one
        # being filled, and a spare one.
        self._slots_each = max(prefetch, 2) + 2 * accumulate + 2
        self._loader = DataLoader(
            self._batches,
            batch_sampler=sampler if mixed is None else mixed,
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
            start, _ = located(self.dataset, index)
            self._batches.bad.setdefault(start, {}).setdefault(index - start, []).append(note)

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations that all ranks together need for an epoch, rounded up; on average over the run if they change."""
        iterations = self._sampler.total_iterations
        per_iteration = self._sampler.samples_before(iterations) / iterations
        return math.ceil(self._epoch / per_iteration)

    def epoch_at(self, iteration: int) -> tuple[int, int, int]:
        """Complete epochs after so many iterations, iterations since then, and those of the current epoch.

        Where the batch size changes, an epoch ends with the iteration in which its last sample was taken.
        """
        sampler = self._sampler
        if not sampler.changes:
            length = self.iterations_per_epoch
            return (*divmod(iteration, length), length)
        number = sampler.samples_before(iteration) // self._epoch
        start = sampler.iterations_for(number * self._epoch)
        end = sampler.iterations_for((number + 1) * self._epoch)
        return number, iteration - start, end - start

    def __len__(self) -> int:
        return len(self._sampler) // self._accumulate

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        return self.until(lambda: False)

    def until(self, stopping: Callable[[], bool]) -> Iterator[tuple[Batch, ...]]:
        """Yields the batches; raises Preempted when it would have to wait for one and `stopping` returns True."""
        slots = Slots.made(self._loader.num_workers, self._slots_each)
        others = set(multiprocessing.active_children())
        self._batches.slots = slots  # for the workers that are forked now
        # torch's SIGCHLD handler may raise a killed worker's error in the middle of a step.
        settable = sys.platform != "win32" and threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if settable else None
        batches = iter(self._loader)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        self._batches.slots = None
        workers = set(multiprocessing.active_children()) - others
        waiting = stopping if self._loader.num_workers else None
        try:
            for _ in range(len(self)):
                yield tuple([_next_batch(batches, waiting) for _ in range(self._accumulate)])
        except Exception as error:
            if isinstance(error, Preempted):
                _kill(workers)  # they do not hear of the end
            # Drops the variables of the frames that the error has left, in which the iterator would live on.
            left: BaseException | None = error
            while left is not None:
                traceback.clear_frames(left.__traceback__)
                left = left.__context__
            raise
        finally:
            # Ends the workers now. Left to the garbage collector, each would be waited for five seconds.
            del batches, slots
            _kill(workers)  # else one that stands still would be waited for when Python ends


class _BatchesByKeys(Dataset[Any]):
    """Loads whole batches; returns a UserError as a value, which torch's DataLoader would wrap in a text."""

    def __init__(self, dataset: Dataset[Any], skip_bad_images: int, without_gt: Sequence[bool] | None) -> None:
        self._dataset, self._skip_bad_images = dataset, skip_bad_images
        self._without_gt = None if without_gt is None else dict(zip(sets_of(dataset), without_gt, strict=True))
        self.bad: dict[int, dict[int, list[str]]] = {}  # by the start of each set, and the sample in it
        self.slots: Slots | None = None

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch | BatchInSlot | UserError:
        try:
            found = [self._load(key) for key in keys]
            samples, seeds = [sample for sample, _ in found], [key.seed for key in keys]
            skipped = tuple(dict.fromkeys(note for _, notes in found for note in notes))
            worker = get_worker_info()
            slot = None if self.slots is None or worker is None else self.slots.take(worker.id)
            if slot is None:
                return collate(samples, seeds, skipped)
            return slot.filled(collate(samples, seeds, skipped, slot.empty))
        except UserError as error:
            return error

    def _load(self, key: SampleKey) -> tuple[dict[str, Any], list[Skipped]]:
        """A sample, or another one of the same set."""
        start, dataset = located(self._dataset, key.index)
        local, bad = replace(key, index=key.index - start), self.bad.get(start, {})
        sample, skipped = load_or_replace(dataset, local, self._skip_bad_images, bad, pixels=True)
        if self._without_gt is not None and ("gt" not in sample) != self._without_gt[start]:
            # Ranks would not agree on the losses of an iteration.
            has, said = ("no", "with") if "gt" not in sample else ("an", "without")
            raise DataError(
                f"{sample_name(dataset, local.index)} has {has} HR image ('gt'), and its class says that samples come"
                f" {said} one (without_gt); mend the dataset"
            )
        return sample, [Skipped(start + number, note) for number, note in skipped]


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
            raise Preempted("preempted while it waited for data; go on with --auto_resume")


def _kill(workers: Iterable[multiprocessing.process.BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


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
        end_with_parent(parent)
        keep_freed_memory(_LARGEST_KEPT, _MOST_KEPT)


class PrefetchedBatches(Generic[_Item]):
    """Loads the next iteration's batches before it hands out the present one's.

    So all ranks know in time when one of them has no more: an error in loading is kept in `failure`, and the batches
    end with those that were loaded before.
    """

    def __init__(self, batches: Iterable[_Item]) -> None:
        self._source = iter(batches)
        self._coming: _Item | None = None
        self._waited = 0.0
        self.failure: Exception | None = None

    def fill(self) -> None:
        """Loads what the first iteration needs."""
        asked = time.monotonic()
        try:
            self._coming = next(self._source, None)
        except Exception as error:  # of a dataset of the user's own anything; it is raised when all is saved
            self.failure = error
            self._coming = None
        finally:
            self._waited += time.monotonic() - asked

    def __iter__(self) -> Iterator[_Item]:
        while (present := self._coming) is not None:
            self.fill()
            yield present

    def close(self) -> None:
        """Ends the loader's workers."""
        if isinstance(self._source, Generator):
            self._source.close()

    def seconds_waited(self) -> float:
        """How long the loader was waited for since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited
