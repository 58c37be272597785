"""Several sets of training images: `datasets: train`, and `train_2` and so on beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from basicsr.config.schema import OF_ALL_TRAINING_SETS, DatasetOptions, Options
from basicsr.config.yaml_reader import KeyPath
from basicsr.utils.text import shown

_VALUES = ("color", "mean", "std")  # what the network takes
_NEARLY = 1e-9


def find_unlike_sets(options: Options) -> Iterator[tuple[KeyPath, str]]:
    """Training sets that cannot be trained on in one run, and shares that do not add up."""
    trained = options.datasets_of("train")
    first, further = trained.get("train"), options.further_sets
    if first is None:
        for key in list(further)[:1]:
            yield ("datasets", key), "is a further training set, and there is no datasets.train; name it train"
        return
    for key, dataset in options.datasets.items():
        if dataset.share is not None and (key not in trained or not further):
            why = "of training only" if key not in trained else "of several training sets only (train_2)"
            yield ("datasets", key, "share"), f"is {why}; remove it"
    for key, dataset in further.items():
        yield from _differing(key, dataset, first)
    if further:
        yield from _shares(trained)


def _differing(key: str, dataset: DatasetOptions, first: DatasetOptions) -> Iterator[tuple[KeyPath, str]]:
    for name in (*OF_ALL_TRAINING_SETS, "gt_size", *_VALUES):
        own, other = (_value(block, name) for block in (dataset, first))
        if own != other and not (name == "gt_size" and own is None):
            why = "batches and patches are alike in all sets; leave it out"
            if name in _VALUES:
                why = "the network takes values of one kind; make them equal"
            yield ("datasets", key, name), f"is {shown(own)}, but datasets.train.{name} is {shown(other)}: {why}"
    caches = [block.arguments.get("teacher_cache") for block in (dataset, first)]
    if (caches[0] is None) != (caches[1] is None):
        has, lacks = (key, "train") if caches[1] is None else ("train", key)
        what = f"is given, but datasets.{lacks} has none: all training sets need one, or none; make it by python"
        yield ("datasets", has, "teacher_cache"), f"{what} scripts/cache_teacher.py -opt FILE --dataset {lacks}"


def _value(dataset: DatasetOptions, name: str) -> Any:
    return getattr(dataset, name) if name in OF_ALL_TRAINING_SETS else dataset.arguments.get(name)


def _shares(trained: dict[str, DatasetOptions]) -> Iterator[tuple[KeyPath, str]]:
    given = {key: block.share for key, block in trained.items() if block.share is not None}
    total, last = sum(given.values()), next(reversed(given), None)
    if last is None:
        return
    at: KeyPath = ("datasets", last, "share")
    if len(given) == len(trained) and abs(total - 1) > _NEARLY:
        yield at, f"makes {total:g} with those of the others; they must add up to 1; leave one out"
    elif len(given) < len(trained) and total >= 1 - _NEARLY:
        rest = ", ".join(key for key in trained if key not in given)
        yield at, f"makes {total:g} with those of the others, so nothing is left for {rest}; lower it"
