"""What is allowed in options and yet looks like a slip, such as a schedule of a longer run, or does nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Any

from basicsr.config.component_blocks import constructor_of
from basicsr.config.schema import Options, thaw
from basicsr.config.yaml_entries import KeyPath
from basicsr.utils.registry import METHOD_REGISTRY, find_misfits
from basicsr.utils.text import shown

OptionWarning = tuple[KeyPath, str]

# `x2` of a name: /X2, _x2, {}x2, EDSR_Lx2, 2x_, RealESRGAN_x4plus; not 48x48, box2, x264, X4K1000FPS or X2Y.
_SCALES = re.compile(
    r"(?:(?<![A-Za-z0-9])[xX]|(?<=[A-Z])x)([23468]|16)(?![0-9xX]|[A-Z](?![A-Za-z]))|(?<![A-Za-z0-9])([23468]|16)[xX](?![0-9])"
)
_NEVER = 10**8  # so many iterations from one event to the next are meant as never
_RANKS = ("WORLD_SIZE", "SLURM_NTASKS")
_EMA_LEFT = 0.05  # of the weights that an average began with
_BENCHMARKS = ("Set5", "Set14", "BSD100", "Urban100", "Manga109")
_VALUES = ("color", "mean", "std")  # what a network takes, as a dataset makes it
_INTERVALS = {
    ("val", "val_freq"): "evaluated",
    ("logger", "save_checkpoint_freq"): "saved",
    ("logger", "print_freq"): "logged",
}
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


def find_warnings(options: Options) -> list[OptionWarning]:
    """The key of each option to warn of, and what to say."""
    checks: list[Callable[[Options], Iterator[OptionWarning]]] = [_other_scales, _borders, _tiles, _datasets]
    checks += [_lengths, _left_over] if options.is_train else [_published]
    found = [warning for check in checks for warning in check(options)]
    return found + [(key, message) for key, message, is_mistake in run_misfits(options) if not is_mistake]


def run_misfits(options: Options, wrong: Collection[KeyPath] = ()) -> Iterator[tuple[KeyPath, str, bool]]:
    """What the schedule and the methods say of the run, but for those with keys in `wrong`; see `find_misfits`."""
    train = options.train
    if not options.is_train or train is None:
        return
    from basicsr.optim.schedules import SCHEDULES

    run: dict[str, Any] = {"scale": options.scale, "total_iter": train.total_iter, "ranks": _num_ranks()}
    if isinstance(lr := train.optim_g.get("lr"), (int, float)):
        run["lr"] = lr
    for dataset in options.datasets_of("train").values():
        run["batch_size"] = min((dataset.batch_size_per_gpu, *(dataset.mini_batch_sizes or ())))
        if type(size := dataset.arguments.get("gt_size")) is int:
            run["gt_size"] = min(dataset.gt_sizes or (size,))
    members: dict[KeyPath, tuple[Callable[..., Any] | None, Mapping[str, Any]]] = {
        ("train", "distill", name): (constructor_of(METHOD_REGISTRY, block), block)
        for name, block in train.distill.items()
    }
    if train.scheduler is not None:
        members["train", "scheduler"] = (SCHEDULES.get(train.scheduler.get("type", "")), train.scheduler)
    for at, (factory, block) in members.items():
        if factory is not None and not any(key[: len(at)] == at for key in wrong):
            for key, message, is_mistake in find_misfits(factory, block, run):
                yield (*at, key), message, is_mistake


def _num_ranks() -> int:
    return max(int(text) for text in (os.environ.get(name, "1") for name in _RANKS) if text.isdigit())


def _other_scales(options: Options) -> Iterator[OptionWarning]:
    """Texts that name a scale, but not this one."""
    data = thaw(options)
    texts: list[tuple[KeyPath, Any]] = [((key,), data.get(key)) for key in ("name", "path", "datasets", "networks")]
    texts += [(("train", "distill"), thaw(options.train.distill) if options.train is not None else None)]
    for key, text in (found for at, value in texts for found in _texts(value, at)):
        if key == ("path", "pretrain_network_g") and not options.path.strict_load_g:
            continue  # to begin with the weights of another scale is usual
        scales = {int(first or second) for first, second in _SCALES.findall(text)}
        if scales and options.scale not in scales:
            named = " and ".join(f"x{scale}" for scale in sorted(scales))
            yield (
                key,
                f"{shown(text)} says {named}, but scale is {options.scale}; if it was copied from there, change it"
                " ({scale} stands for the scale)",
            )


def _texts(value: Any, key: KeyPath) -> Iterator[OptionWarning]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*key, name))


def _borders(options: Options) -> Iterator[OptionWarning]:
    usual = options.scale if options.scale > 1 else 0
    for name, block in options.val.metrics.items():
        border = block.get("crop_border", usual)
        if border not in (usual, usual + 6):  # the latter is that of DIV2K's challenges
            yield (
                ("val", "metrics", name, "crop_border"),
                f"is {border}, but scale is {options.scale}: published figures leave out {usual} pixels at each edge;"
                " leave crop_border out, and it follows the scale",
            )


def _tiles(options: Options) -> Iterator[OptionWarning]:
    tile, overlap = options.val.tile, options.val.tile_overlap
    if tile is not None and overlap is not None and overlap > tile:
        yield ("val", "tile_overlap"), f"is {overlap}, more than tile {tile}: most pixels are computed many times"
    elif tile is None and overlap is not None:
        yield ("val", "tile_overlap"), f"is {overlap}, but there is no val.tile: images are run whole"


def _published(options: Options) -> Iterator[OptionWarning]:
    from basicsr.config.published import published_rows

    backbone = options.report.published
    if backbone is not None and not published_rows(backbone, options.scale):
        yield ("report", "published"), f"has no figures of {backbone} at scale {options.scale}; none are shown"


def _lengths(options: Options) -> Iterator[OptionWarning]:
    train, total = options.train, options.train.total_iter
    if train.warmup_iter >= total:
        message = f"is {train.warmup_iter}, but total_iter is {total}: training ends before the rate has reached lr"
        yield ("train", "warmup_iter"), message
    for (section, key), done in _INTERVALS.items():
        value = getattr(getattr(options, section), key)
        is_given = key in getattr(options, section).model_fields_set
        if is_given and total < value < _NEVER and (section != "val" or options.datasets_of("val")):
            yield (section, key), f"is {value}, but total_iter is {total}: it is {done} at the end alone"
    left = train.ema_decay**total
    if left > _EMA_LEFT:
        highest = 1 - float(f"{5 / total:.2g}")  # leaves less than 1% of them
        remedy = f"take {highest:.10g} or less" if total > 5 else "take 0, for none"
        yield (
            ("train", "ema_decay"),
            f"is {train.ema_decay:g}: after total_iter {total} the average still holds {left:.0%} of the weights that"
            f" training began with; {remedy}",
        )


def _datasets(options: Options) -> Iterator[OptionWarning]:
    for key, dataset in options.datasets.items():
        at = ("datasets", key)
        folders = {name: str(value) for name, value in dataset.arguments.items() if name.startswith("dataroot")}
        for name, folder in folders.items() if dataset.name in _BENCHMARKS else ():
            others = [part for part in re.split(r"[/\\]", folder) if part in _BENCHMARKS]
            if others and dataset.name not in others:
                yield (*at, name), f"is a folder of {others[-1]}, but the dataset is named {dataset.name}"
        if not options.is_train:
            continue
        workers, processors = dataset.num_worker_per_gpu, num_processors()
        if workers > 4 * processors:
            message = f"is {workers}, but this machine has {processors} processors, and each worker needs one; lower it"
            yield (*at, "num_worker_per_gpu"), message
        total, ends = options.train.total_iter, list(accumulate(dataset.iters or ()))
        reached = 1 + sum(end < total for end in ends[:-1])
        if dataset.phase == "train" and reached < len(ends):
            message = (
                f"has {len(ends)} stages, but total_iter {total} ends in stage {reached}; the others are not reached"
            )
            yield (*at, "iters"), message
        for trained in options.datasets_of("train").values() if dataset.phase == "val" else ():
            for name in _VALUES:
                given, other = dataset.arguments.get(name), trained.arguments.get(name)
                if given != other:
                    yield (
                        (*at, name),
                        f"is {shown(given)}, but that of training is {shown(other)}: the network is evaluated on"
                        " values that it has not learned; make them equal",
                    )


def _left_over(options: Options) -> Iterator[OptionWarning]:
    """Parts of a loss or a model that the run does not have."""
    path, train = options.path, options.train
    of_adversary: dict[KeyPath, Any] = {
        ("network_d",): options.network_d,
        ("train", "optim_d"): train.optim_d,
        ("path", "pretrain_network_d"): path.pretrain_network_d,
    }
    for key, given in of_adversary.items() if train.adversarial_opt is None else ():
        if given is not None:
            yield key, "is not used, as there is no train.adversarial_opt (gan_opt); give it, or remove this"
    if options.model_type != "KDModel" and path.pretrain_network_t is not None:
        yield ("path", "pretrain_network_t"), f"is not used, as model_type is {options.model_type}; remove it"


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


def num_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
