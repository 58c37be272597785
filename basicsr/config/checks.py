"""What must hold between several options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from basicsr.config.component_blocks import Finding, constructor_of, further_teachers, is_auto
from basicsr.config.schema import DatasetOptions, Options, RowOptions
from basicsr.config.warnings import run_misfits
from basicsr.config.yaml_entries import KeyPath
from basicsr.utils.registry import ARCH_REGISTRY, METHOD_REGISTRY
from basicsr.utils.text import shown

_NAME = re.compile(r"\w[\w.+=,@ -]*\Z")
_IN_FILE_NAMES = re.compile(r"[\w(\[][^/\\]*\Z")
_MAX_NAME_BYTES = 200  # file systems hold 255, and to some names more is added
_MAX_PART_BYTES = 100
_BUILT_IN_TERMS = ("response", "contrastive", "pix", "percep")
_UPSCALE_KEYS = ("upscale", "scale")
_Check = Callable[[Options], Iterator[Finding]]
_CHANGES_COLOURS = ("color", "mean", "std")
_PROGRESSIVE = ("gt_sizes", "mini_batch_sizes", "iters")
_NEEDED_BY_AUTO = "is required by {} type: auto, which recognises the network from this file"


def find_conflicts(options: Options, model_type: Any) -> list[Finding]:
    """Checks options against each other.

    Args:
        options: typed options.
        model_type: as it was written, because SRGANModel asks for more than SRModel.

    Returns:
        The key of each mistake and what is wrong there.
    """
    checks: list[_Check] = [_names, _scales, _crops, _progressive, _whole_sets, _cached, _best, _rows]
    if options.is_train:
        checks += [_model, _losses, _adversary, _learning, _schedule, _misfits, _training_data]
    else:
        checks += [_testing, _regions]
    findings = [finding for check in checks for finding in check(options)]
    if model_type == "SRGANModel" and options.is_train and options.train and options.train.adversarial is None:
        findings.append((("train", "adversarial_opt"), "model_type SRGANModel needs it (or gan_opt, BasicSR's name)"))
    return findings


def _names(options: Options) -> Iterator[Finding]:
    if not _NAME.match(options.name) or ".." in options.name or options.name != options.name.strip():
        yield (
            ("name",),
            "must be usable as a folder's name (letters, digits, . _ + = , @ - and spaces, not beginning with"
            f" a sign, no ..), got {shown(options.name)}",
        )
    yield from _too_long(("name",), options.name, _MAX_NAME_BYTES)
    for metric in options.val.metrics:
        yield from _part_of_names(("val", "metrics", metric), metric)
    if options.val.suffix:
        yield from _part_of_names(("val", "suffix"), options.val.suffix)
    seen: dict[str, str] = {}
    for key, dataset in options.datasets.items():
        at: KeyPath = ("datasets", key, "name")
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


def _part_of_names(at: KeyPath, text: str) -> Iterator[Finding]:
    if not (_IN_FILE_NAMES.match(text) and text.isprintable()):
        yield at, f"is part of files' names: no slashes, no sign before it, got {shown(text)}"
    yield from _too_long(at, text, _MAX_PART_BYTES)


def _too_long(at: KeyPath, text: str, limit: int) -> Iterator[Finding]:
    """What to say of a name that file systems would refuse."""
    length = len(text.encode("utf-8", "replace"))
    if length > limit:
        yield at, f"is part of a file's or folder's name, which may have {limit} bytes, got {length} bytes"


def _scales(options: Options) -> Iterator[Finding]:
    blocks: dict[KeyPath, Mapping[str, Any] | None] = {
        ("network_g",): options.network_g,
        ("network_t",): options.network_t,
    }
    blocks.update({("networks", row, "network"): entry.network for row, entry in options.networks.items()})
    for term, method in options.train.method_blocks.items() if options.train is not None else ():
        for number, teacher in further_teachers(method):
            if isinstance(network := teacher.get("network"), Mapping):
                blocks["train", "distill", term, "teachers", number, "network"] = network
    for key, block in blocks.items():
        for name, value in _upscale(block or {}).items():
            if isinstance(value, int) and value != options.scale:
                given = "is" if block and name in block else "is by default"
                yield (*key, name), f"{given} {value}, but scale is {options.scale}; make them equal"


def _upscale(block: Mapping[str, Any]) -> dict[str, Any]:
    """The network's own upscaling factor, under the name that its constructor gives it."""
    constructor = constructor_of(ARCH_REGISTRY, block)
    if constructor is None:
        return {}
    parameters = inspect.signature(constructor).parameters
    return {name: block.get(name, parameters[name].default) for name in _UPSCALE_KEYS if name in parameters}


def _crops(options: Options) -> Iterator[Finding]:
    for key, dataset in options.datasets_of("train").items():
        size = dataset.arguments.get("gt_size")
        if not isinstance(size, int) or isinstance(size, bool):
            continue
        at = ("datasets", key, "gt_size")
        if size % options.scale:
            below = size - size % options.scale
            yield (
                at,
                f"must be a multiple of scale {options.scale}, got {size}; take {max(below, options.scale)}",
            )
        contrastive = options.train.contrastive_opt if options.train else None
        patch = contrastive.get("patch_size", 48) if contrastive is not None else 0
        smallest = min(dataset.gt_sizes or (size,))
        if (
            isinstance(patch, int)
            and contrastive is not None
            and contrastive.get("type") != "image"
            and patch > smallest
        ):
            name = "the smallest of gt_sizes," if dataset.gt_sizes else "gt_size"
            yield (
                ("train", "contrastive_opt", "patch_size"),
                f"{patch} is larger than {name} {smallest}; lower it",
            )


def _best(options: Options) -> Iterator[Finding]:
    best = options.val.best
    if best is None:
        return
    names = [dataset.name for dataset in options.datasets_of("val", "test").values()]
    if best.dataset not in names:
        yield (
            ("val", "best", "dataset"),
            f"no validation dataset is named {best.dataset!r}; there are: {_listed(names)}",
        )
    if best.metric not in options.val.metrics:
        metrics = list(options.val.metrics)
        yield ("val", "best", "metric"), f"no metric is named {best.metric!r}; there are: {_listed(metrics)}"


def _listed(names: list[str]) -> str:
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
        yield from _distillation(options)
        return
    if options.network_t is not None:
        yield (
            ("network_t",),
            "only model_type KDModel (MCADKD) has a teacher; change model_type or remove network_t",
        )
    for name in ("resp_kd_opt", "contrastive_opt", "distill"):
        if options.train is not None and getattr(options.train, name):
            yield ("train", name), "needs a teacher: set model_type to KDModel (MCADKD), or remove it"


def _distillation(options: Options) -> Iterator[Finding]:
    from torch import nn

    if options.teacher_cache is not None:
        yield from _outputs_suffice(options)
    elif options.network_t is None:
        yield ("network_t",), "is required by model_type KDModel (MCADKD): the teacher"
    elif options.path.pretrain_network_t is None and is_auto(options.network_t):
        yield ("path", "pretrain_network_t"), _NEEDED_BY_AUTO.format("network_t")
    elif options.path.pretrain_network_t is None and not options.path.allow_random_teacher:
        yield (
            ("path", "pretrain_network_t"),
            "is required: an untrained teacher teaches noise (path.allow_random_teacher: true allows it)",
        )
    if options.train is not None and not options.train.method_blocks:
        yield (
            ("train",),
            "names nothing to distil: give resp_kd_opt, contrastive_opt or distill, or use SRModel",
        )
    for name in options.train.distill if options.train is not None else ():
        if name in _BUILT_IN_TERMS:
            yield ("train", "distill", name), "is the name of a built-in term; choose another"
        elif _replaces_student(options.train.distill[name]) and options.path.pretrain_network_g is not None:
            yield (
                ("path", "pretrain_network_g"),
                f"means nothing beside train.distill.{name}, whose student is cut out of the teacher; remove it",
            )
        elif not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            yield ("train", "distill", name), "cannot be a term's name: use letters, digits and _, such as my_hint"


def _outputs_suffice(options: Options) -> Iterator[Finding]:
    """Of a run that has the teacher's outputs, but not the teacher."""
    for name, block in options.train.method_blocks.items() if options.train is not None else ():
        uses = getattr(constructor_of(METHOD_REGISTRY, block), "teacher_needs", "")
        if uses:
            yield (
                ("train", "distill", name),
                f"{block['type']} uses {uses}, and datasets.train.teacher_cache has outputs only; remove teacher_cache,"
                " or this method",
            )


def _cached(options: Options) -> Iterator[Finding]:
    """The teacher's outputs, where they are kept: of training with a teacher only."""
    for key, dataset in options.datasets.items():
        if dataset.arguments.get("teacher_cache") is None:
            continue
        at = ("datasets", key, "teacher_cache")
        if dataset.phase != "train":
            yield at, "is of training only; remove it"
        elif options.is_train and options.model_type != "KDModel":
            yield at, "only model_type KDModel (MCADKD) has a teacher; change model_type or remove it"
        elif changed := [name for name in _CHANGES_COLOURS if dataset.arguments.get(name) is not None]:
            yield at, f"has RGB in [0, 1], as images are without {changed[0]}; remove one of them"


def _replaces_student(block: Mapping[str, Any]) -> bool:
    return bool(getattr(constructor_of(METHOD_REGISTRY, block), "replaces_student", False))


def _losses(options: Options) -> Iterator[Finding]:
    train = options.train
    if train is None:
        return
    blocks = [*train.loss_blocks.values(), *train.method_blocks.values()]
    blocks += [train.adversarial] if train.adversarial is not None else []
    if not blocks:
        yield ("train",), "has no loss: give pixel_opt, perceptual_opt or another"
    elif all(_loss_weight(block) == 0 for block in blocks):
        yield ("train",), "has only losses of loss_weight 0, from which nothing is learned: give one a weight"


def _loss_weight(block: Mapping[str, Any]) -> Any:
    criterion = block.get("criterion")
    return (criterion if isinstance(criterion, Mapping) else block).get("loss_weight")


def _adversary(options: Options) -> Iterator[Finding]:
    train = options.train
    if train is None or train.adversarial is None:
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


def _schedule(options: Options) -> Iterator[Finding]:
    train = options.train
    if train is None or train.scheduler is None:
        return
    periods = train.scheduler.get("periods")
    if not isinstance(periods, tuple) or not all(isinstance(period, int) for period in periods):
        return
    if sum(periods) < train.total_iter:
        yield (
            ("train", "scheduler", "periods"),
            f"end after {sum(periods)} iterations, before total_iter {train.total_iter}; make them as long",
        )


def _learning(options: Options) -> Iterator[Finding]:
    """Iterations that the discriminator learns in alone: there must be others."""
    train = options.train
    if train is not None and train.total_iter // train.net_d_iters <= train.net_d_init_iters // train.net_d_iters:
        name = "net_d_iters" if train.net_d_iters > train.total_iter else "net_d_init_iters"
        given = getattr(train, name)
        yield ("train", name), f"is {given}, but total_iter is {train.total_iter}: the network never learns; lower it"


def _misfits(options: Options) -> Iterator[Finding]:
    return ((key, message) for key, message, is_mistake in run_misfits(options) if is_mistake)


def _progressive(options: Options) -> Iterator[Finding]:
    """Patches and batches that change in the course of training."""
    for key, dataset in options.datasets.items():
        columns = {name: getattr(dataset, name) for name in _PROGRESSIVE}
        given = {name: column for name, column in columns.items() if column is not None}
        if not given:
            continue
        at = ("datasets", key, next(iter(given)))
        if dataset.phase != "train":
            yield at, "is of training only; remove it"
        elif not options.is_train:
            continue  # test.py does not read it
        elif len(given) < len(columns):
            lacking = " and ".join(name for name in columns if name not in given)
            yield at, f"needs {lacking} beside it: {', '.join(_PROGRESSIVE)} have one entry per stage; or remove it"
        elif len({len(column) for column in given.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(column)}" for name, column in given.items())
            yield at, f"{', '.join(_PROGRESSIVE)} need equally many entries, one per stage: {lengths}"
        else:
            yield from _stages(options, key, dataset)


def _whole_sets(options: Options) -> Iterator[Finding]:
    """Evaluation skips no image: its figures would not be those of the set."""
    for key, dataset in options.datasets_of("val", "test").items():
        if dataset.skip_bad_images:
            yield (
                ("datasets", key, "skip_bad_images"),
                f"is of training only, got {dataset.skip_bad_images}: an average without some images is of another set;"
                " remove it",
            )


def _stages(options: Options, key: str, dataset: DatasetOptions) -> Iterator[Finding]:
    sizes, batches, iterations = dataset.gt_sizes or (), dataset.mini_batch_sizes or (), dataset.iters or ()
    if uneven := [size for size in sizes if size % options.scale]:
        yield ("datasets", key, "gt_sizes"), f"must be multiples of scale {options.scale}, got {uneven[0]}"
    if dataset.arguments.get("gt_size") != max(sizes):
        given = dataset.arguments.get("gt_size", "none")
        yield ("datasets", key, "gt_size"), f"must be the largest of gt_sizes, {max(sizes)}, got {given}"
    if dataset.batch_size_per_gpu != batches[0]:
        yield (
            ("datasets", key, "batch_size_per_gpu"),
            f"must be the first of mini_batch_sizes, {batches[0]}, got {dataset.batch_size_per_gpu}",
        )
    if options.train is not None and sum(iterations) < options.train.total_iter:
        yield (
            ("datasets", key, "iters"),
            f"end after {sum(iterations)} iterations, before train: total_iter {options.train.total_iter}; lengthen the"
            " last stage",
        )


def _training_data(options: Options) -> Iterator[Finding]:
    if not options.datasets_of("train"):
        yield ("datasets", "train"), "is required for training"
    for key in options.datasets_of("test"):
        yield ("datasets", key), "is not used in training; name it val, val_1, ... or remove it"
    evaluated = options.datasets_of("val")
    if evaluated and not options.val.metrics and not options.val.save_img:
        name = next(iter(evaluated))
        yield (
            ("val", "metrics"),
            f"is required, as there is datasets.{name}: what to measure (or save_img: true)",
        )


def _regions(options: Options) -> Iterator[Finding]:
    if options.report.regions and not options.saves_images:
        yield ("report", "regions"), "are of images that are not saved: leave val: save_img out, or set it to true"
    names = [dataset.name for dataset in options.datasets_of("val", "test").values()]
    for number, region in enumerate(options.report.regions):
        if region.dataset not in names:
            yield (
                ("report", "regions", number, "dataset"),
                f"no dataset is named {region.dataset!r}; there are: {_listed(names)}",
            )


def _testing(options: Options) -> Iterator[Finding]:
    if not options.datasets_of("val", "test"):
        yield ("datasets",), "is required for testing: test, test_1, ... (or val, val_1, ...)"
    if options.networks:
        return
    if options.network_g is None:
        yield ("network_g",), "is required for testing (or networks: any number of them)"
    elif options.path.pretrain_network_g is None and options.network_g.get("type") != "Bicubic":
        yield ("path", "pretrain_network_g"), "is required for testing: the file with the network's weights"
