"""Options that a command accepts, because BasicSR's files have them, and does not use: they are told, in a line."""

from __future__ import annotations

from basicsr.utils.options_schema import DatasetOptions, Options

_OF_TESTING = frozenset(
    (
        *("name", "model_type", "scale", "num_gpu", "manual_seed", "crop_border", "datasets", "network_g", "networks"),
        *("path", "val", "report", "dist_params", "is_train", "skip_missing", "skipped", "sources", "root"),
    )
)
_OF_TRAINING = frozenset(
    (
        *("batch_size_per_gpu", "num_worker_per_gpu", "dataset_enlarge_ratio", "prefetch_mode", "num_prefetch_queue"),
        *("pin_memory", "persistent_workers", "use_shuffle", "gt_sizes", "mini_batch_sizes", "iters", "gt_size"),
        *("use_hflip", "use_vflip", "use_rot", "extend_small"),
    )
)
_VAL_IN_TRAINING = ("val_freq", "pbar", "best")


def unused_in_testing(options: Options) -> list[str]:
    """What the log of test.py should say of options that were given and do nothing there."""
    unused = sorted(options.model_fields_set - _OF_TESTING)
    for key, dataset in options.datasets_of("val", "test").items():
        unused += [f"datasets.{key}.{name}" for name in _given(dataset) if name in _OF_TRAINING]
    unused += [f"val.{name}" for name in _VAL_IN_TRAINING if name in options.val.model_fields_set]
    lines = [f"not used in testing: {', '.join(unused)}"] if unused else []
    if options.amp != "none" and options.val.amp == "none":
        lines.append(f"amp: {options.amp} is of training; the networks run in float32, as val: amp says")
    return lines


def _given(dataset: DatasetOptions) -> list[str]:
    return [*dataset.model_fields_set, *dataset.arguments]
