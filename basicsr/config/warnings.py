"""What test.py warns of: options that were given, because BasicSR's files have them, and do nothing there."""

from __future__ import annotations

from basicsr.config.schema import Options

_OF_TESTING = frozenset(
    (
        *("name", "model_type", "scale", "num_gpu", "manual_seed", "crop_border", "datasets", "network_g", "networks"),
        *("path", "val", "report", "deploy", "dist_params", "is_train", "skip_missing", "skipped", "sources", "root"),
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
    """Lines for test.py's log: options that were given, because BasicSR's files have them, and do nothing there."""
    path, report, rows = options.path, options.report, options.networks.values()
    unused = sorted(options.model_fields_set - _OF_TESTING)
    unused += ["manual_seed"] if options.manual_seed else []
    for key, dataset in options.datasets.items():
        given = [*dataset.model_fields_set, *dataset.arguments]
        in_training = [f"datasets.{key}.{name}" for name in given if name in _OF_TRAINING]
        unused += [f"datasets.{key}"] if dataset.phase == "train" else in_training
    unused += [f"val.{name}" for name in _VAL_IN_TRAINING if name in options.val.model_fields_set]
    used = ("results_root", *(() if rows else _PATHS_OF_NETWORK_G))
    names = [name for name in sorted(path.model_fields_set) if name not in used]
    unused += [f"path.{name}" for name in names if getattr(path, name) is not None]
    # Rows say themselves where their weights are, and may say what each network is.
    if rows and options.network_g is not None and all(row.type or row.network is not None for row in rows):
        unused.append("network_g")
    for is_made, names in ((report.html, ["images"]), (report.plots, ["crops", "regions"])):
        given = [name for name in names if name in report.model_fields_set and getattr(report, name)]
        unused += [f"report.{name}" for name in given if not is_made]
    lines = [f"not used in testing: {', '.join(unused)}"] if unused else []
    if options.amp != "none" and options.val.amp == "none":
        lines.append(f"amp: {options.amp} is of training; the networks run in float32, as val: amp says")
    return lines
