"""What is allowed in options and yet looks copied from another scale, or from a run of another length."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from basicsr.config.component_blocks import Finding, constructor_of
from basicsr.config.schema import DatasetOptions, Options, thaw
from basicsr.config.yaml_entries import KeyPath
from basicsr.utils.registry import METHOD_REGISTRY
from basicsr.utils.signatures import find_misfits, find_problems
from basicsr.utils.text import shown

# `x2` of a name: /X2, _x2, {}x2, EDSR_Lx2, 2x_, RealESRGAN_x4plus; not 48x48, box2, x264, X4K1000FPS or X2Y.
_SCALES = re.compile(
    r"(?:(?<![A-Za-z0-9])[xX]|(?<=[A-Z])x)([23468]|16)(?![0-9xX]|[A-Z](?![A-Za-z]))|(?<![A-Za-z0-9])([23468]|16)[xX](?![0-9])"
)
_NEVER = 10**8  # so many iterations from one event to the next are meant as never
_EMA_LEFT = 0.05  # of the weights that an average began with
_BENCHMARKS = ("Set5", "Set14", "BSD100", "Urban100", "Manga109")
_VALUES = ("color", "mean", "std")  # what a network takes, as a dataset makes it
_INTERVALS = {
    ("val", "val_freq"): "evaluated",
    ("logger", "save_checkpoint_freq"): "saved",
    ("logger", "print_freq"): "logged",
}


def find_doubts(options: Options) -> list[Finding]:
    """Looks for what is to be warned of.

    Returns:
        The key of each and what to say.
    """
    checks: list[Callable[[Options], Iterator[Finding]]] = [_other_scales, _borders, _tiles, _benchmark_names]
    training = [_lengths, _average, _stages, _loader_processes, _lone_images, _other_values, _left_over]
    checks += training if options.is_train else [_published]
    findings = [finding for check in checks for finding in check(options)]
    return findings + [(key, message) for key, message, is_mistake in run_misfits(options) if not is_mistake]


def run_misfits(options: Options) -> Iterator[tuple[KeyPath, str, bool]]:
    """What the schedule and the distillation methods say of the run; see `components.find_misfits`."""
    train = options.train
    if not options.is_train or train is None:
        return
    from basicsr.optim.schedules import SCHEDULES

    lr = train.optim_g.get("lr")
    run: dict[str, Any] = {"scale": options.scale, "total_iter": train.total_iter}
    if isinstance(lr, (int, float)):
        run["lr"] = lr
    members: dict[KeyPath, tuple[Callable[..., Any] | None, Mapping[str, Any]]] = {
        ("train", "distill", name): (constructor_of(METHOD_REGISTRY, block), block)
        for name, block in train.distill.items()
    }
    if train.scheduler is not None:
        members["train", "scheduler"] = (SCHEDULES.get(train.scheduler.get("type", "")), train.scheduler)
    for at, (factory, block) in members.items():
        given = {key: value for key, value in block.items() if key != "type"}
        if factory is None or find_problems(factory, given, {}):
            continue  # mistakes of its own, which are told elsewhere
        for key, message, is_mistake in find_misfits(factory, given, run):
            yield (*at, key), message, is_mistake


def _other_scales(options: Options) -> Iterator[Finding]:
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


def _lone_images(options: Options) -> Iterator[Finding]:
    """An image-level contrast over batches of one image."""
    assert options.train is not None
    block, train = options.train.contrastive_opt, options.datasets["train"]
    several = any(os.environ.get(name, "1") != "1" for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    if block is None or block.get("type") == "patch" or (several and block.get("gather_negatives", True)):
        return
    if 1 in (train.batch_size_per_gpu, *(train.mini_batch_sizes or ())):
        yield (
            ("datasets", "train", "batch_size_per_gpu"),
            "is 1: the contrast of whole images has no other image, and l_img is 0; raise it, or set"
            " train.contrastive_opt.type: patch",
        )


def _texts(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*key, name))


def _borders(options: Options) -> Iterator[Finding]:
    usual = options.scale if options.scale > 1 else 0
    for name, block in options.val.metrics.items():
        border = block.get("crop_border", usual)
        if border not in (usual, usual + 6):  # the latter is that of DIV2K's challenges
            yield (
                ("val", "metrics", name, "crop_border"),
                f"is {border}, but scale is {options.scale}: published figures leave out {usual} pixels at each edge;"
                " leave crop_border out, and it follows the scale",
            )


def _tiles(options: Options) -> Iterator[Finding]:
    tile, overlap = options.val.tile, options.val.tile_overlap
    if tile is not None and overlap is not None and overlap > tile:
        yield ("val", "tile_overlap"), f"is {overlap}, more than tile {tile}: most pixels are computed many times"
    elif tile is None and overlap is not None:
        yield ("val", "tile_overlap"), f"is {overlap}, but there is no val.tile: images are run whole"


def _benchmark_names(options: Options) -> Iterator[Finding]:
    for key, dataset in options.datasets.items():
        folders = {name: str(value) for name, value in dataset.arguments.items() if name.startswith("dataroot")}
        for name, folder in folders.items() if dataset.name in _BENCHMARKS else ():
            others = [part for part in re.split(r"[/\\]", folder) if part in _BENCHMARKS]
            if others and dataset.name not in others:
                yield ("datasets", key, name), f"is a folder of {others[-1]}, but the dataset is named {dataset.name}"


def _published(options: Options) -> Iterator[Finding]:
    from basicsr.config.published import published_rows

    backbone = options.report.published
    if backbone is not None and not published_rows(backbone, options.scale):
        yield ("report", "published"), f"has no figures of {backbone} at scale {options.scale}; none are shown"


def _lengths(options: Options) -> Iterator[Finding]:
    train, total = options.train, options.train.total_iter
    if train.warmup_iter >= total:
        yield (
            ("train", "warmup_iter"),
            f"is {train.warmup_iter}, but total_iter is {total}: training ends before the rate has reached lr",
        )
    for (section, key), done in _INTERVALS.items():
        value = getattr(getattr(options, section), key)
        is_given = key in getattr(options, section).model_fields_set
        if is_given and total < value < _NEVER and (section != "val" or options.datasets_of("val")):
            yield (section, key), f"is {value}, but total_iter is {total}: it is {done} at the end alone"


def _average(options: Options) -> Iterator[Finding]:
    decay, total = options.train.ema_decay, options.train.total_iter
    left = decay**total
    if left > _EMA_LEFT:
        highest = 1 - float(f"{5 / total:.2g}")  # leaves less than 1% of them
        remedy = f"take {highest:.10g} or less" if total > 5 else "take 0, for none"
        yield (
            ("train", "ema_decay"),
            f"is {decay:g}: after total_iter {total} the average still holds {left:.0%} of the weights that training"
            f" began with; {remedy}",
        )


def _stages(options: Options) -> Iterator[Finding]:
    for key, dataset in options.datasets_of("train").items():
        ends = [sum((dataset.iters or ())[: number + 1]) for number in range(len(dataset.iters or ()))]
        reached = 1 + sum(end < options.train.total_iter for end in ends[:-1])
        if ends and reached < len(ends):
            yield (
                ("datasets", key, "iters"),
                f"has {len(ends)} stages, but total_iter {options.train.total_iter} ends in stage {reached}; the"
                " others are not reached",
            )


def _other_values(options: Options) -> Iterator[Finding]:
    """Validation sets whose images have other values than those of training."""
    for trained in options.datasets_of("train").values():
        for key, dataset in options.datasets_of("val").items():
            for name in _VALUES:
                given, other = dataset.arguments.get(name), trained.arguments.get(name)
                if given != other:
                    yield (
                        ("datasets", key, name),
                        f"is {shown(given)}, but that of training is {shown(other)}: the network is evaluated on"
                        " values that it has not learned; make them equal",
                    )


def _left_over(options: Options) -> Iterator[Finding]:
    """Parts of a loss or a model that the run does not have."""
    path, train = options.path, options.train
    of_adversary: dict[KeyPath, Any] = {
        ("network_d",): options.network_d,
        ("train", "optim_d"): train.optim_d,
        ("path", "pretrain_network_d"): path.pretrain_network_d,
    }
    for key, given in of_adversary.items() if train.adversarial is None else ():
        if given is not None:
            yield key, "is not used, as there is no train.adversarial_opt (gan_opt); give it, or remove this"
    if options.model_type != "KDModel" and path.pretrain_network_t is not None:
        yield ("path", "pretrain_network_t"), f"is not used, as model_type is {options.model_type}; remove it"


def _loader_processes(options: Options) -> Iterator[Finding]:
    for key, dataset in options.datasets.items():
        yield from _too_many_workers(("datasets", key, "num_worker_per_gpu"), dataset)


def _too_many_workers(at: KeyPath, dataset: DatasetOptions) -> Iterator[Finding]:
    processors = num_processors()
    if dataset.num_worker_per_gpu > 4 * processors:
        given = dataset.num_worker_per_gpu
        yield at, f"is {given}, but this machine has {processors} processors, and each worker needs one; lower it"


def num_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
