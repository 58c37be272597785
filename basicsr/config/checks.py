"""What must hold between several options, and between the options and the disk."""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from basicsr.config.component_blocks import constructor_of, is_auto
from basicsr.config.schema import DatasetOptions, FrozenMapping, Options, RowOptions
from basicsr.config.warnings import num_processors, run_misfits
from basicsr.config.yaml_entries import KeyPath
from basicsr.utils.registry import ARCH_REGISTRY, METHOD_REGISTRY
from basicsr.utils.text import shortened, shown

Finding = tuple[KeyPath, str]
"""A key and what is wrong there."""

_NAME = re.compile(r"\w[\w.+=,@ -]*\Z")
_IN_FILE_NAMES = re.compile(r"[\w(\[][^/\\]*\Z")
_MAX_NAME_BYTES = 200  # file systems hold 255, and to some names more is added
_MAX_PART_BYTES = 100
_LONGEST_PATH = 500
_UPSCALE_KEYS = ("upscale", "scale")
_CHANGES_COLOURS = ("color", "mean", "std")
_PROGRESSIVE = ("gt_sizes", "mini_batch_sizes", "iters")
_NEEDED_BY_AUTO = "is required by {} type: auto, which recognises the network from this file"


def find_conflicts(options: Options, model_type: Any, wrong: Collection[KeyPath]) -> list[Finding]:
    """Checks options against each other.

    Args:
        options: typed options.
        model_type: as it was written, because SRGANModel asks for more than SRModel.
        wrong: keys whose values are wrong by themselves.
    """
    checks: list[Callable[[Options], Iterator[Finding]]] = [_names, _scales, _datasets, _best, _rows]
    checks += [_model, _losses, _schedule, _training_data] if options.is_train else [_testing]
    findings = [finding for check in checks for finding in check(options)]
    findings += [(key, message) for key, message, is_mistake in run_misfits(options, wrong) if is_mistake]
    if model_type == "SRGANModel" and options.is_train and options.train and options.train.adversarial_opt is None:
        findings.append((("train", "adversarial_opt"), "model_type SRGANModel needs it (or gan_opt, BasicSR's name)"))
    return findings


def _names(options: Options) -> Iterator[Finding]:
    if not _NAME.match(options.name) or ".." in options.name or options.name != options.name.strip():
        allowed = "letters, digits, . _ + = , @ - and spaces, not beginning with a sign, no .."
        yield ("name",), f"must be usable as a folder's name ({allowed}), got {shown(options.name)}"
    yield from _too_long(("name",), options.name, _MAX_NAME_BYTES)
    parts: dict[KeyPath, str] = {("val", "metrics", metric): metric for metric in options.val.metrics}
    if options.val.suffix:
        parts["val", "suffix"] = options.val.suffix
    for at, text in parts.items():
        if not (_IN_FILE_NAMES.match(text) and text.isprintable()):
            yield at, f"is part of files' names: no slashes, no sign before it, got {shown(text)}"
        yield from _too_long(at, text, _MAX_PART_BYTES)
    seen: dict[str, str] = {}
    for key, dataset in options.datasets.items():
        at = ("datasets", key, "name")
        if dataset.phase == "train":
            if not dataset.name.isprintable():
                yield at, f"must be text of one line, got {shown(dataset.name)}"
            continue
        if not (_IN_FILE_NAMES.match(dataset.name) and dataset.name.isprintable()):
            yield at, f"is the name of a folder: no slashes, no sign before it, got {shown(dataset.name)}"
        yield from _too_long(at, dataset.name, _MAX_NAME_BYTES)
        if dataset.name in seen:
            yield at, f"{shown(dataset.name)} is also the name of {seen[dataset.name]}; use another"
        seen[dataset.name] = f"datasets.{key}"


def _too_long(at: KeyPath, text: str, limit: int) -> Iterator[Finding]:
    """A name that file systems would refuse."""
    length = len(text.encode("utf-8", "replace"))
    if length > limit:
        yield at, f"is part of a file's or folder's name, which may have {limit} bytes, got {length} bytes"


def _further_teachers(options: Options) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """The teachers that methods list beside `network_t`, those that are mappings, by their key."""
    for name, block in options.train.distill.items() if options.train is not None else ():
        teachers = block.get("teachers")
        for number, teacher in enumerate(teachers if isinstance(teachers, tuple) else ()):
            if isinstance(teacher, Mapping):
                yield ("train", "distill", name, "teachers", number), teacher


def _scales(options: Options) -> Iterator[Finding]:
    blocks: dict[KeyPath, Any] = {("network_g",): options.network_g, ("network_t",): options.network_t}
    blocks.update({("networks", row, "network"): entry.network for row, entry in options.networks.items()})
    blocks.update({(*at, "network"): teacher.get("network") for at, teacher in _further_teachers(options)})
    for key, block in blocks.items():
        constructor = constructor_of(ARCH_REGISTRY, block) if isinstance(block, Mapping) else None
        parameters = inspect.signature(constructor).parameters if constructor is not None else {}
        for name in _UPSCALE_KEYS:
            value = block.get(name, parameters[name].default) if name in parameters else None
            if isinstance(value, int) and value != options.scale:
                given = "is" if name in block else "is by default"
                yield (*key, name), f"{given} {value}, but scale is {options.scale}; make them equal"


def _datasets(options: Options) -> Iterator[Finding]:
    """Sizes of patches, stages of progressive training, kept outputs of the teacher, images that may be skipped."""
    for key, dataset in options.datasets.items():
        at = ("datasets", key)
        trains = dataset.phase == "train"
        size = dataset.arguments.get("gt_size")
        if trains and type(size) is int and size % options.scale:
            nearest_size = max(size - size % options.scale, options.scale)
            message = f"must be a multiple of scale {options.scale}, got {size}; take {nearest_size}"
            yield (*at, "gt_size"), message
        if not trains and dataset.skip_bad_images:
            yield (
                (*at, "skip_bad_images"),
                f"is of training only, got {dataset.skip_bad_images}: an average without some images is of another set;"
                " remove it",
            )
        columns = {name: getattr(dataset, name) for name in _PROGRESSIVE if getattr(dataset, name) is not None}
        if columns and not trains:
            yield (*at, next(iter(columns))), "is of training only; remove it"
        elif columns and options.is_train:
            yield from _stages(options, at, dataset, columns)
        if dataset.arguments.get("teacher_cache") is not None:
            yield from _cached(options, (*at, "teacher_cache"), dataset)


def _stages(options: Options, at: KeyPath, dataset: DatasetOptions, columns: Mapping[str, Any]) -> Iterator[Finding]:
    """Patches and batches that change in the course of training."""
    first, together = (*at, next(iter(columns))), ", ".join(_PROGRESSIVE)
    if lacking := " and ".join(name for name in _PROGRESSIVE if name not in columns):
        yield first, f"needs {lacking} beside it: {together} have one entry per stage; or remove it"
        return
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{name} has {len(column)}" for name, column in columns.items())
        yield first, f"{together} need equally many entries, one per stage: {lengths}"
        return
    sizes, batches, iterations = columns.values()
    if uneven := [size for size in sizes if size % options.scale]:
        yield (*at, "gt_sizes"), f"must be multiples of scale {options.scale}, got {uneven[0]}"
    if (given := dataset.arguments.get("gt_size", "none")) != max(sizes):
        yield (*at, "gt_size"), f"must be the largest of gt_sizes, {max(sizes)}, got {given}"
    if (batch := dataset.batch_size_per_gpu) != batches[0]:
        yield (*at, "batch_size_per_gpu"), f"must be the first of mini_batch_sizes, {batches[0]}, got {batch}"
    if options.train is not None and sum(iterations) < options.train.total_iter:
        yield (
            (*at, "iters"),
            f"end after {sum(iterations)} iterations, before train: total_iter {options.train.total_iter}; lengthen the"
            " last stage",
        )


def _cached(options: Options, at: KeyPath, dataset: DatasetOptions) -> Iterator[Finding]:
    if dataset.phase != "train":
        yield at, "is of training only; remove it"
    elif options.is_train and options.model_type != "KDModel":
        yield at, "only model_type KDModel (MCADKD) has a teacher; change model_type or remove it"
    elif changed := [name for name in _CHANGES_COLOURS if dataset.arguments.get(name) is not None]:
        yield at, f"has RGB in [0, 1], as images are without {changed[0]}; remove one of them"


def _best(options: Options) -> Iterator[Finding]:
    best = options.val.best
    if best is None:
        return
    names = [dataset.name for dataset in options.datasets_of("val", "test").values()]
    if best.dataset not in names:
        message = f"no validation dataset is named {best.dataset!r}; there are: {_listed(names)}"
        yield ("val", "best", "dataset"), message
    if best.metric not in options.val.metrics:
        there_are = _listed(options.val.metrics)
        yield ("val", "best", "metric"), f"no metric is named {best.metric!r}; there are: {there_are}"


def _listed(names: Collection[str]) -> str:
    return ", ".join(names) or "none"


def _rows(options: Options) -> Iterator[Finding]:
    for row, entry in options.networks.items():
        at = ("networks", row)
        if not _NAME.match(row):
            yield at, "names a row and a folder: a letter, digit or _, then these, . + = , @ - and spaces"
        yield from _too_long(at, row, _MAX_NAME_BYTES)
        if entry.type == "bicubic":
            for name in RowOptions.model_fields:
                if name != "type" and name in entry.model_fields_set:
                    yield (*at, name), "means nothing to a bicubic row; remove it"
        elif entry.path is None:
            yield (*at, "path"), "is required: the file with the network's weights (or type: bicubic)"


def _model(options: Options) -> Iterator[Finding]:
    if options.network_g is None:
        yield ("network_g",), "is required: the network to train"
    elif is_auto(options.network_g) and options.path.pretrain_network_g is None:
        yield ("path", "pretrain_network_g"), _NEEDED_BY_AUTO.format("network_g")
    if options.train is None:
        yield ("train",), "is required: losses, optimizers and schedule"
    if options.model_type == "KDModel":
        yield from _teacher(options)
        yield from _distillation(options)
        return
    if options.network_t is not None:
        yield ("network_t",), "only model_type KDModel (MCADKD) has a teacher; change model_type or remove network_t"
    for name in options.train.distill if options.train is not None else ():
        message = "needs a teacher: set model_type to KDModel (MCADKD), or remove it"
        yield ("train", "distill", name), message


def _teacher(options: Options) -> Iterator[Finding]:
    path = options.path
    if options.teacher_cache is not None:
        return
    if options.network_t is None:
        yield ("network_t",), "is required by model_type KDModel (MCADKD): the teacher"
    elif path.pretrain_network_t is None and is_auto(options.network_t):
        yield ("path", "pretrain_network_t"), _NEEDED_BY_AUTO.format("network_t")
    elif path.pretrain_network_t is None and not path.allow_random_teacher:
        message = "is required: an untrained teacher teaches noise (path.allow_random_teacher: true allows it)"
        yield ("path", "pretrain_network_t"), message


def _distillation(options: Options) -> Iterator[Finding]:
    from torch import nn

    if options.train is None:
        return
    if not options.train.distill:
        yield ("train",), "names nothing to distil: give resp_kd_opt, contrastive_opt or distill, or use SRModel"
    for name, block in options.train.distill.items():
        at, method = ("train", "distill", name), constructor_of(METHOD_REGISTRY, block)
        if options.teacher_cache is not None and (uses := getattr(method, "teacher_needs", "")):
            yield (
                at,
                f"{block['type']} uses {uses}, and datasets.train.teacher_cache has outputs only; remove teacher_cache,"
                " or this method",
            )
        if name in ("pix", "percep"):
            yield at, "is the name of a built-in term; choose another"
        elif not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            yield at, "cannot be a term's name: use letters, digits and _, such as my_hint"
        if getattr(method, "replaces_student", False) and options.path.pretrain_network_g is not None:
            message = f"means nothing beside train.distill.{name}, whose student is cut out of the teacher; remove it"
            yield ("path", "pretrain_network_g"), message


def _losses(options: Options) -> Iterator[Finding]:
    train = options.train
    if train is None:
        return
    blocks = [*train.loss_blocks.values(), *train.distill.values()]
    blocks += [train.adversarial_opt] if train.adversarial_opt is not None else []
    if not blocks:
        yield ("train",), "has no loss: give pixel_opt, perceptual_opt or another"
    elif all(_loss_weight(block) == 0 for block in blocks):
        yield ("train",), "has only losses of loss_weight 0, from which nothing is learned: give one a weight"
    if train.adversarial_opt is None:
        return
    if options.network_d is None:
        yield ("network_d",), "is required by train.adversarial_opt: the discriminator"
    side = options.network_d.get("input_size") if options.network_d is not None else None
    for key, dataset in options.datasets_of("train").items():
        size = dataset.arguments.get("gt_size")
        if side is not None and isinstance(size, int) and size != side:
            yield ("network_d", "input_size"), f"is {side}, but datasets.{key}.gt_size is {size}; make them equal"
    if train.optim_d is None and train.train_adversary:
        yield ("train", "optim_d"), "is required by train.adversarial_opt: the discriminator's optimizer"


def _loss_weight(block: Mapping[str, Any]) -> Any:
    criterion = block.get("criterion")
    return (criterion if isinstance(criterion, Mapping) else block).get("loss_weight")


def _schedule(options: Options) -> Iterator[Finding]:
    train = options.train
    if train is None:
        return
    if train.total_iter // train.net_d_iters <= train.net_d_init_iters // train.net_d_iters:
        name = "net_d_iters" if train.net_d_iters > train.total_iter else "net_d_init_iters"
        given = getattr(train, name)
        yield ("train", name), f"is {given}, but total_iter is {train.total_iter}: the network never learns; lower it"
    periods = train.scheduler.get("periods") if train.scheduler is not None else None
    if not isinstance(periods, tuple) or not all(isinstance(period, int) for period in periods):
        return
    if sum(periods) < train.total_iter:
        message = f"end after {sum(periods)} iterations, before total_iter {train.total_iter}; make them as long"
        yield ("train", "scheduler", "periods"), message


def _training_data(options: Options) -> Iterator[Finding]:
    if not options.datasets_of("train"):
        yield ("datasets", "train"), "is required for training"
    for key in options.datasets_of("test"):
        yield ("datasets", key), "is not used in training; name it val, val_1, ... or remove it"
    evaluated = options.datasets_of("val")
    if evaluated and not options.val.metrics and not options.val.save_img:
        name = next(iter(evaluated))
        yield ("val", "metrics"), f"is required, as there is datasets.{name}: what to measure (or save_img: true)"


def _testing(options: Options) -> Iterator[Finding]:
    if not options.datasets_of("val", "test"):
        yield ("datasets",), "is required for testing: test, test_1, ... (or val, val_1, ...)"
    if not options.networks:
        if options.network_g is None:
            yield ("network_g",), "is required for testing (or networks: any number of them)"
        elif options.path.pretrain_network_g is None and options.network_g.get("type") != "Bicubic":
            yield ("path", "pretrain_network_g"), "is required for testing: the file with the network's weights"
    if options.report.regions and not options.saves_images:
        yield ("report", "regions"), "are of images that are not saved: leave val: save_img out, or set it to true"
    names = [dataset.name for dataset in options.datasets_of("val", "test").values()]
    for number, region in enumerate(options.report.regions):
        if region.dataset not in names:
            message = f"no dataset is named {region.dataset!r}; there are: {_listed(names)}"
            yield ("report", "regions", number, "dataset"), message


class Missing(NamedTuple):
    """A file or folder that is not there.

    Attributes:
        key: which names it.
        message: that it is not there.
        hint: what to do, or where its path ends.
        above: the first folder of its path that is not there, where this is not the path itself.
    """

    key: KeyPath
    message: str
    hint: str = ""
    above: str | None = None


def missing_paths(options: Options) -> list[Missing]:
    """The files and folders that the command will read and that are not there; and far too many loader processes."""
    path, files = options.path, dict[KeyPath, str | None]()
    missing: list[Missing] = []
    for key, dataset in options.datasets_of(*(("train", "val") if options.is_train else ("val", "test"))).items():
        at = ("datasets", key)
        cache = dataset.arguments.get("teacher_cache")
        if isinstance(cache, str) and not os.path.isdir(cache):
            message = f"there is no folder {shortened(cache, _LONGEST_PATH)}"
            missing.append(
                Missing((*at, "teacher_cache"), message, "make it by python scripts/cache_teacher.py -opt FILE")
            )
        for name, value in dataset.arguments.items():
            kind = "folder" if name.startswith("dataroot") else "file" if name.startswith("meta_info") else None
            for text in value if isinstance(value, tuple) else (value,):
                missing += _missing((*at, name), text, kind) if kind is not None and isinstance(text, str) else []
        workers, processors = dataset.num_worker_per_gpu, num_processors()
        if options.is_train and workers > max(64, 16 * processors):  # the machine would stand still
            message = f"is {workers}, but this machine has {processors} processors"
            missing.append(Missing((*at, "num_worker_per_gpu"), message, f"take {processors}"))
    # resume_state is looked for when it is clear that nothing newer is resumed
    if options.is_train or not options.networks:
        files["path", "pretrain_network_g"] = path.pretrain_network_g
    if options.is_train:
        is_adversarial = options.train is not None and options.train.adversarial_opt is not None
        files["path", "pretrain_network_t"] = path.pretrain_network_t if options.model_type == "KDModel" else None
        files["path", "pretrain_network_d"] = path.pretrain_network_d if is_adversarial else None
    else:
        files.update({("networks", row, "path"): entry.path for row, entry in options.networks.items()})
    files.update({(*at, "path"): teacher.get("path") for at, teacher in _further_teachers(options)})
    return missing + [found for key, file in files.items() if file is not None for found in _missing(key, file, "file")]


def _missing(key: KeyPath, path: str, kind: str) -> list[Missing]:
    if os.path.exists(path):  # pathlib's raises where a name is too long or not to be looked at
        return []
    parent = Path(path).absolute().parent
    folders = [str(folder) for folder in (parent, *parent.parents)]
    last = next((folder for folder in folders if os.path.isdir(folder)), "/")
    above = next((after for after, folder in pairwise(folders) if folder == last), None)
    hint = "write ~ for none" if path.lower() in ("none", "null") else f"{last} is there, the rest is not"
    message = f"there is no {kind} {shortened(path, _LONGEST_PATH)}"
    return [Missing(key, message, hint, above and shortened(above, _LONGEST_PATH))]


def without_missing(options: Options, missing: list[Missing]) -> tuple[Options, list[Finding]]:
    """With `skip_missing`, leaves out the datasets and networks of which files are missing.

    Returns:
        The options, which say in `skipped` what was left out, and the mistakes that remain; those that lack one folder
        have one message.
    """
    if options.is_train or not options.skip_missing:
        counts = Counter(entry.above for entry in missing)
        return options, [
            (entry.key, f"{entry.message}; {entry.hint}")
            if entry.above is None or counts[entry.above] < 3
            else (entry.key, f"lies in {entry.above}, which is not there; check its path")
            for entry in missing
        ]
    left: dict[str, dict[str, Any]] = {"datasets": dict(options.datasets), "networks": dict(options.networks)}
    skipped, mistakes = [], []
    for entry in missing:
        section, name = str(entry.key[0]), str(entry.key[1])
        if section not in left:
            mistakes.append((entry.key, f"{entry.message}; {entry.hint}"))
        elif left[section].pop(name, None) is not None:
            label = options.datasets[name].name if section == "datasets" else name
            skipped.append(f"{label}: {entry.message}")
    update: dict[str, Any] = {section: FrozenMapping(content) for section, content in left.items()}
    if options.networks and not left["networks"]:
        update["network_g"] = None  # it describes the rows that had no network of their own, and is no row itself
    return options.model_copy(update={**update, "skipped": tuple(skipped)}), mistakes


def nothing_left(options: Options) -> Finding | None:
    """The mistake where `skip_missing` left nothing to test, else None."""
    if not options.skipped or (options.datasets_of("val", "test") and (options.networks or options.network_g)):
        return None
    section = "networks" if options.datasets_of("val", "test") else "datasets"
    return (section,), f"none of them is there at x{options.scale}: {'; '.join(options.skipped)}"
