"""Options that a command accepts, because BasicSR's files have them, and does not use: they are told, in a line."""

from __future__ import annotations

from collections.abc import Iterator

from basicsr.config.schema import DatasetOptions, Options

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
_PATHS_OF_NETWORK_G = ("pretrain_network_g", "strict_load_g", "param_key_g")


def unused_in_testing(options: Options) -> list[str]:
    """What the log of test.py should say of options that were given and do nothing there."""
    unused = sorted(options.model_fields_set - _OF_TESTING)
    unused += ["manual_seed"] if options.manual_seed else []
    for key, dataset in options.datasets.items():
        if dataset.phase == "train":
            unused.append(f"datasets.{key}")
        else:
            unused += [f"datasets.{key}.{name}" for name in _given(dataset) if name in _OF_TRAINING]
    unused += [f"val.{name}" for name in _VAL_IN_TRAINING if name in options.val.model_fields_set]
    unused += [*_unused_of_networks(options), *_unused_of_report(options)]
    lines = [f"not used in testing: {', '.join(unused)}"] if unused else []
    if options.amp != "none" and options.val.amp == "none":
        lines.append(f"amp: {options.amp} is of training; the networks run in float32, as val: amp says")
    return lines


def _given(dataset: DatasetOptions) -> list[str]:
    return [*dataset.model_fields_set, *dataset.arguments]


def _unused_of_networks(options: Options) -> Iterator[str]:
    """`networks` say themselves where their weights are, and may say what each network is."""
    path, rows = options.path, options.networks.values()
    used = ("results_root", *(() if rows else _PATHS_OF_NETWORK_G))
    for name in sorted(path.model_fields_set):
        if name not in used and getattr(path, name) is not None:
            yield f"path.{name}"
    if rows and options.network_g is not None and all(row.type or row.network is not None for row in rows):
        yield "network_g"


def _unused_of_report(options: Options) -> Iterator[str]:
    report = options.report
    for shown, names in ((report.html, ("images",)), (report.plots, ("crops", "regions"))):
        for name in () if shown else names:
            if name in report.model_fields_set and getattr(report, name):
                yield f"report.{name}"
