"""From options to datasets and loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from basicsr.data.base import SampleKey, check_patches, load_sample
from basicsr.data.loading import KeySampler, Stage, TrainLoader
from basicsr.data.storage import StoredImages, stored_images
from basicsr.utils.errors import DataError
from basicsr.utils.registry import DATASET_REGISTRY

if TYPE_CHECKING:
    from basicsr.config.schema import DatasetOptions

_LOADER_KEYS = ("batch_size_per_gpu", "num_worker_per_gpu", "dataset_enlarge_ratio", "prefetch_mode", "use_shuffle")
_FRAMEWORK_KEYS = ("name", "phase", "scale", *_LOADER_KEYS, "num_prefetch_queue", "pin_memory", "persistent_workers")


def build_dataset(opt: Mapping[str, Any]) -> Dataset[Any]:
    """Builds a dataset from options as BasicSR writes them.

    Args:
        opt: `type`, and the arguments of the class of that name; `phase`, `scale`, `name` and the loader's keys only
            reach a class that asks for them.

    Raises:
        OptionsError: the type is unknown or a key does not fit.
        DataError: what the class raises for missing data.
    """
    own = {key: value for key, value in opt.items() if key not in _FRAMEWORK_KEYS}
    provided = {key: opt[key] for key in _FRAMEWORK_KEYS if opt.get(key) is not None}
    return DATASET_REGISTRY.build(own, **provided)


def build_train_loader(options: DatasetOptions, *, accumulate: int, pin_memory: bool, **position: int) -> TrainLoader:
    """Builds the loader of a training run for one rank.

    Args:
        options: the dataset's.
        accumulate: batches to an iteration.
        pin_memory: whether the device gains from page-locked memory.
        position: `seed`, `rank`, `world_size`, `start_iteration` and `total_iterations`, for `KeySampler`.

    Raises:
        OptionsError: the options do not fit the dataset's class, or patches shall grow and it cannot do that.
        DataError: the data are missing.
    """
    dataset = build_dataset(_as_mapping(options))
    columns = (options.iters or (), options.mini_batch_sizes or (), options.gt_sizes or ())
    stages = [Stage(*entries) for entries in zip(*columns, strict=True)]  # of progressive training; else none
    if stages:
        check_patches(dataset)
    sampler = KeySampler(
        num_samples=_length(dataset, options),
        batch_size=stages or options.batch_size_per_gpu,
        accumulate=accumulate,
        shuffle=options.use_shuffle,
        **position,
    )
    return TrainLoader(
        dataset,
        sampler,
        accumulate=accumulate,
        enlarge_ratio=options.dataset_enlarge_ratio,
        num_workers=options.num_worker_per_gpu,
        prefetch=options.num_prefetch_queue,
        pin_memory=pin_memory and options.pin_memory,
        skip_bad_images=options.skip_bad_images,
    )


class EvaluationDataset(Dataset[dict[str, Any]]):
    """A dataset whose items depend on their index alone, whatever generators it draws from."""

    def __init__(self, dataset: Dataset[Any], length: int) -> None:
        self._dataset, self._length = dataset, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return load_sample(self._dataset, SampleKey(index, seed=index))

    def restored(self, images: Tensor) -> Tensor:
        """Images (..., C, H, W) in [0, 1] again: x std + mean where the dataset normalises, as BasicSR's do."""
        for name, change in (("std", torch.mul), ("mean", torch.add)):
            values = getattr(self._dataset, name, None)
            if isinstance(values, Sequence) and len(values) == images.shape[-3]:
                images = change(images, torch.tensor(values, dtype=images.dtype).view(-1, 1, 1).to(images.device))
        return images

    def stored_images(self) -> StoredImages | None:
        """Where the images lie, where the dataset says so; else None."""
        return stored_images(self._dataset)

    @property
    def paths(self) -> Any:
        """The files of each item, where the dataset keeps such a list as BasicSR's do; else None."""
        return getattr(self._dataset, "paths", None)


def build_eval_dataset(options: DatasetOptions) -> EvaluationDataset:
    """Builds a dataset for evaluation: items have `lq`, `lq_path`, and `gt`, `gt_path` where there are HR images.

    Raises:
        OptionsError: the options do not fit the dataset's class.
        DataError: the data are missing.
    """
    dataset = build_dataset(_as_mapping(options))
    return EvaluationDataset(dataset, _length(dataset, options))


def _length(dataset: Any, options: DatasetOptions) -> int:
    if len(dataset) == 0:
        raise DataError(f"dataset {options.name or options.type} is empty; check its folders")
    return len(dataset)


def _as_mapping(options: DatasetOptions) -> dict[str, Any]:
    framework = {key: getattr(options, key) for key in _FRAMEWORK_KEYS}
    return {"type": options.type, **options.arguments, **framework}
