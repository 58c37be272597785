"""What must hold between several options, and between options and the disk; and what looks like a slip."""

from __future__ import annotations

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from basicsr.config.component_blocks import constructor_of, is_auto
from basicsr.config.quantized_training import find_quantize_conflicts
from basicsr.config.schema import DatasetOptions, FrozenMapping, Options, RowOptions, thaw
from basicsr.config.training_sets import find_unlike_sets
from basicsr.config.without_hr import find_idle_metrics, find_uses_of_hr
from basicsr.config.yaml_reader import KeyPath
from basicsr.files.image_folders import Pattern, is_pattern
from basicsr.utils.process_settings import num_processors
from basicsr.utils.registry import ARCH_REGISTRY, METHOD_REGISTRY, Problem, find_misfits
from basicsr.utils.text import shortened, shown

Finding = tuple[KeyPath, str]
"""A key that is wrong, or that a warning is about, and what to say of it."""

_NAME = re.compile(r"\w[\w.+=,@ -]*\Z")
_IN_FILE_NAMES = re.compile(r"[\w(\[][^/\\]*\Z")
_MAX_NAME_BYTES = 200  # file systems hold 255, and to some names more is added
_MAX_PART_BYTES = 100
_LONGEST_PATH = 500
_FEWEST_IN_ONE_FOLDER = 3
_UPSCALE_KEYS = ("upscale", "scale")
_CHANGES_COLOURS = ("color", "mean", "std")
_PROGRESSIVE = ("gt_sizes", "mini_batch_sizes", "iters")
_BUILT_IN_TERMS = {"response": "ResponseDistillation", "contrastive": "HybridContrastive"}
_NEEDED_BY_AUTO = "is required by {} type: auto, which recognises the network from this file"
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


def find_conflicts(options: Options, model_type: Any, wrong: Collection[KeyPath]) -> list[Problem]:
    """Checks options against each other, but for keys in `wrong`; `model_type` is as written: SRGANModel needs more."""
    checks: list[Callable[[Options], Iterator[Finding]]] = [_names, _scales, _datasets, _best, _rows]
    checks += [find_idle_metrics, find_unlike_sets]
    if options.is_train:
        checks += [_model, _training_data, find_uses_of_hr]
        checks += [_losses, _schedule, _parts, find_quantize_conflicts] if options.train is not None else []
    else:
        checks.append(_testing)
    findings = [finding for check in checks for finding in check(options)]
    findings += [(key, message) for key, message, is_mistake in _run_misfits(options, wrong) if is_mistake]
    if (
        model_type in ("SRGANModel", "RealESRGANModel")
        and options.is_train
        and options.train
        and options.train.adversarial_opt is None
    ):
        findings.append(
            (("train", "adversarial_opt"), f"model_type {model_type} needs it (or gan_opt, BasicSR's name)")
        )
    return [Problem(*finding) for finding in findings]


def _names(options: Options) -> Iterator[Finding]:
    if not _NAME.match(options.name) or ".." in options.name or options.name != options.name.strip():
        allowed = "letters, digits, . _ + = , @ - and spaces, not beginning with a sign, no .."
        yield ("name",), f"must be usable as a folder's name ({allowed}), got {shown(options.name)}"
    yield from _too_long(("name",), options.name, _MAX_NAME_BYTES)
    parts: dict[KeyPath, str] = {("val", "metrics", metric): metric for metric in options.val.metrics}
    if options.val.suffix:
        parts["val", "suffix"] = options.val.suffix
    for at, text in parts.items():
        yield from _part_of_path(at, text, "is part of files' names", _MAX_PART_BYTES)
    seen: dict[str, str] = {}
    for key, dataset in options.datasets.items():
        at = ("datasets", key, "name")
        if dataset.phase == "train":
            if not dataset.name.isprintable():
                yield at, f"must be text of one line, got {shown(dataset.name)}"
            continue
        yield from _part_of_path(at, dataset.name, "is the name of a folder", _MAX_NAME_BYTES)
        if dataset.name in seen:
            yield at, f"{shown(dataset.name)} is also the name of {seen[dataset.name]}; use another"
        seen[dataset.name] = f"datasets.{key}"


def _part_of_path(at: KeyPath, text: str, use: str, limit: int) -> Iterator[Finding]:
    if not (_IN_FILE_NAMES.match(text) and text.isprintable()):
        yield at, f"{use}: no slashes, no sign before it, got {shown(text)}"
    yield from _too_long(at, text, limit)


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
            yield (*at, "gt_size"), f"must be a multiple of scale {options.scale}, got {size}; take {nearest_size}"
        if not trains and dataset.skip_bad_images:
            why = "an average without some images is of another set"
            yield (*at, "skip_bad_images"), f"is of training only, got {dataset.skip_bad_images}: {why}; remove it"
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
        ends = f"end after {sum(iterations)} iterations, before train: total_iter {options.train.total_iter}"
        yield (*at, "iters"), f"{ends}; lengthen the last stage"


def _cached(options: Options, at: KeyPath, dataset: DatasetOptions) -> Iterator[Finding]:
    if dataset.phase != "train":
        yield at, "is of training only; remove it"
    elif options.is_train and options.model_type != "KDModel":
        yield at, "only model_type KDModel (MCADKD) has a teacher; change model_type or remove it"
    elif changed := [name for name in _CHANGES_COLOURS if dataset.arguments.get(name) is not None]:
        yield at, f"has RGB in [0, 1], as images are without {changed[0]}; remove one of them"
    elif dataset.arguments.get("io_backend", {}).get("type") == "bands":
        yield at, "has RGB in [0, 1], and images of io_backend bands are no RGB; remove it"


def _best(options: Options) -> Iterator[Finding]:
    best = options.val.best
    if options.val.min_delta and options.val.patience is None:
        yield ("val", "min_delta"), "means nothing without val.patience, the validations without a better figure"
    if options.is_train and options.val.patience is not None:
        lacking = "datasets.val" if not options.datasets_of("val") else "val.metrics" if not options.val.metrics else ""
        if lacking:
            yield ("val", "patience"), f"needs {lacking}: training ends when a validation's figure no longer improves"
    if best is None:
        return
    names = [dataset.name for dataset in options.datasets_of("val", "test").values()]
    if best.dataset not in names:
        there_are = ", ".join(names) or "none"
        yield ("val", "best", "dataset"), f"no validation dataset is named {best.dataset!r}; there are: {there_are}"
    if best.metric not in options.val.metrics:
        there_are = ", ".join(options.val.metrics) or "none"
        yield ("val", "best", "metric"), f"no metric is named {best.metric!r}; there are: {there_are}"


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
    else:
        yield from _terms(options)
    if options.model_type == "KDModel":
        yield from _teacher(options)
        return
    if options.network_t is not None:
        yield ("network_t",), "only model_type KDModel (MCADKD) has a teacher; change model_type or remove network_t"


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


def _terms(options: Options) -> Iterator[Finding]:
    """The distillation terms: their names, and whether what they learn from is there."""
    from torch import nn

    distils, train = options.model_type == "KDModel", options.train
    if distils and not train.distill:
        yield ("train",), "names nothing to distil: give resp_kd_opt, contrastive_opt or distill, or use SRModel"
    for name, block in train.distill.items():
        at, method = ("train", "distill", name), constructor_of(METHOD_REGISTRY, block)
        uses = getattr(method, "teacher_needs", "")
        if not distils and (uses or getattr(method, "needs_teacher", True)):
            yield at, "needs a teacher: set model_type to KDModel (MCADKD), or remove it"
            continue
        if options.teacher_cache is not None and uses:
            conflict = f"{block['type']} uses {uses}, and datasets.train.teacher_cache has outputs only"
            yield at, f"{conflict}; remove teacher_cache, or this method"
        built_in = _BUILT_IN_TERMS.get(name)
        if name in ("pix", "percep"):
            yield at, "is the name of a built-in term; choose another"
        elif built_in is not None and block.get("type") not in (built_in, None):
            yield at, f"is the name of a built-in term, a {built_in}; choose another"
        elif not name.isidentifier() or hasattr(nn.ModuleDict(), name):
            yield at, "cannot be a term's name: use letters, digits and _, such as my_hint"
        if getattr(method, "replaces_student", False) and options.path.pretrain_network_g is not None:
            message = f"means nothing beside train.distill.{name}, whose student is cut out of the teacher; remove it"
            yield ("path", "pretrain_network_g"), message


def _losses(options: Options) -> Iterator[Finding]:
    train = options.train
    blocks = [*train.loss_blocks.values(), *train.distill.values()]
    blocks += [train.adversarial_opt] if train.adversarial_opt is not None else []
    if not blocks:
        yield ("train",), "has no loss: give pixel_opt, perceptual_opt or another"
    criteria = [block["criterion"] if isinstance(block.get("criterion"), Mapping) else block for block in blocks]
    if criteria and all(criterion.get("loss_weight") == 0 for criterion in criteria):
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


def _schedule(options: Options) -> Iterator[Finding]:
    train = options.train
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


def _parts(options: Options) -> Iterator[Finding]:
    """Parts of the network that are frozen, or learn at rates of their own."""
    from basicsr.optim.parts import TERMS

    train, seen = options.train, dict[str, int]()
    for number, group in enumerate(train.param_groups):
        at = ("train", "param_groups", number)
        if not group.settings:
            yield at, "changes nothing: give it an lr or a weight_decay"
        if 0 < sum(pattern.startswith(TERMS) for pattern in group.patterns) < len(group.patterns):
            yield (*at, "params"), f"names parts of the network and of terms ({TERMS}...); give each a group of its own"
        name = ", ".join(group.patterns)
        if name in seen:
            yield (*at, "params"), f"is that of param_groups[{seen[name]}], too; remove one of them"
        seen.setdefault(name, number)
    if train.freeze_until is not None and not train.freeze:
        yield ("train", "freeze_until"), "means nothing without train.freeze, the patterns of what is frozen"


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
            message = f"no dataset is named {region.dataset!r}; there are: {', '.join(names) or 'none'}"
            yield ("report", "regions", number, "dataset"), message


def without_missing(options: Options) -> tuple[Options, list[Problem]]:
    """With `skip_missing` without datasets and networks of which files are missing; and what of the disk is wrong."""
    missing = []
    for key, path, kind in _paths_to_read(options):
        is_there = os.path.isdir if key[-1] == "teacher_cache" else os.path.exists  # pathlib's may raise
        if path.startswith(("http://", "https://")):  # shards on a web server; reading their index tells
            continue
        if not is_there(Pattern(path).base or "." if kind == "folder" and is_pattern(path) else path):
            missing.append((key, path, kind))
    ends = {path: _end(path) for _, path, _ in missing}
    lacking = Counter(ends[path][1] for _, path, _ in missing)
    problems: list[Problem] = []
    skipped: list[str] = []
    left: dict[str, dict[str, Any]] = {"datasets": dict(options.datasets), "networks": dict(options.networks)}
    for key, path, kind in missing:
        message = f"there is no {kind} {shortened(path, _LONGEST_PATH)}"
        last, folder = ends[path]
        section, name = str(key[0]), str(key[1])
        if not options.is_train and options.skip_missing and section in left:
            if left[section].pop(name, None) is not None:
                label = options.datasets[name].name if section == "datasets" else name
                skipped.append(f"{label}: {message}")
        elif folder is not None and lacking[folder] >= _FEWEST_IN_ONE_FOLDER:
            what = f"lies in {shortened(folder, _LONGEST_PATH)}, which is not there; check its path"
            problems.append(Problem(key, what, at_any_key=True))
        elif key[-1] == "teacher_cache":
            problems.append(Problem(key, f"{message}; make it by python scripts/cache_teacher.py -opt FILE"))
        elif path.lower() in ("none", "null"):
            problems.append(Problem(key, f"{message}; write ~ for none"))
        else:
            problems.append(Problem(key, f"{message}; {last} is there, the rest is not"))
    for dataset_key, dataset in options.datasets_of("train", "val").items() if options.is_train else ():
        workers = dataset.num_worker_per_gpu
        if workers > 64 and workers > 16 * (processors := num_processors()):  # the machine would stand still
            what = f"is {workers}, but this machine has {processors} processors; take {processors}"
            problems.append(Problem(("datasets", dataset_key, "num_worker_per_gpu"), what))
    if not skipped:
        return options, problems
    update: dict[str, Any] = {section: FrozenMapping(content) for section, content in left.items()}
    if options.networks and not left["networks"]:
        update["network_g"] = None  # it describes the rows that had no network of their own, and is no row itself
    return options.model_copy(update={**update, "skipped": tuple(skipped)}), problems


def _paths_to_read(options: Options) -> Iterator[tuple[KeyPath, str, str]]:
    """The files and folders that the command will read: key, path, what it is."""
    for key, dataset in options.datasets_of(*(("train", "val") if options.is_train else ("val", "test"))).items():
        for name, value in dataset.arguments.items():
            kind = "file" if name.startswith("meta_info") else "folder"
            if name == "teacher_cache" or name.startswith(("dataroot", "meta_info")):
                yield from ((at, path, kind) for at, path in _paths_in(value, ("datasets", key, name)))
    # resume_state is looked for when it is clear that nothing newer is resumed
    path, files = options.path, dict[KeyPath, str | None]()
    if options.is_train or not options.networks:
        files["path", "pretrain_network_g"] = path.pretrain_network_g
    if options.is_train and options.model_type == "KDModel":
        files["path", "pretrain_network_t"] = path.pretrain_network_t
    if options.is_train and options.train is not None and options.train.adversarial_opt is not None:
        files["path", "pretrain_network_d"] = path.pretrain_network_d
    if not options.is_train:
        files.update({("networks", row, "path"): entry.path for row, entry in options.networks.items()})
    files.update({(*at, "path"): teacher.get("path") for at, teacher in _further_teachers(options)})
    yield from ((key, file, "file") for key, file in files.items() if file is not None)


def _paths_in(value: Any, at: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """The paths of an option: one, or a list of them, each alone or as {path: ..., weight: ...}."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, Mapping):
        if isinstance(path := value.get("path"), str):
            yield (*at, "path"), path
    elif isinstance(value, tuple):
        for number, entry in enumerate(value):
            yield from _paths_in(entry, (*at, number))


def _end(path: str) -> tuple[str, str | None]:
    """The last folder of a path that is there, and the next one, unless that is the path itself."""
    parent, after = Path(path).absolute().parent, None
    while not os.path.isdir(parent) and parent != parent.parent:
        parent, after = parent.parent, str(parent)
    return str(parent), after


def nothing_left(options: Options) -> Problem | None:
    """The mistake where `skip_missing` left nothing to test, else None."""
    if not options.skipped or (options.datasets_of("val", "test") and (options.networks or options.network_g)):
        return None
    section = "networks" if options.datasets_of("val", "test") else "datasets"
    return Problem((section,), f"none of them is there at x{options.scale}: {'; '.join(options.skipped)}")


def find_warnings(options: Options) -> list[Problem]:
    """What is allowed and yet looks like a slip, such as a schedule of a longer run, or does nothing."""
    checks: list[Callable[[Options], Iterator[Finding]]] = [_other_scales, _evaluation, _loading]
    checks += [_lengths, _left_over] if options.is_train else [_published]
    found = [warning for check in checks for warning in check(options)]
    found += [(key, message) for key, message, is_mistake in _run_misfits(options) if not is_mistake]
    return [Problem(*warning) for warning in found]


def _run_misfits(options: Options, wrong: Collection[KeyPath] = ()) -> Iterator[tuple[KeyPath, str, bool]]:
    """What the schedule and the methods say of the run, but for those with keys in `wrong`; see `find_misfits`."""
    train = options.train
    if not options.is_train or train is None:
        return
    from basicsr.optim.schedules import SCHEDULES

    ranks = [os.environ.get(name, "1") for name in _RANKS]
    run: dict[str, Any] = {
        "scale": options.scale,
        "total_iter": train.total_iter,
        "ranks": max(int(text) for text in ranks if text.isdigit()),
    }
    rates = [train.optim_g.get("lr"), train.lr_heads, *(group.lr for group in train.param_groups)]
    if isinstance(rates[0], (int, float)):
        run["lr"] = min(rate for rate in rates if rate is not None)
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
            conflict = f"{shown(text)} says {named}, but scale is {options.scale}"
            yield key, f"{conflict}; if it was copied from there, change it ({{scale}} stands for the scale)"


def _texts(value: Any, key: KeyPath) -> Iterator[Finding]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(inner, (*key, name))


def _evaluation(options: Options) -> Iterator[Finding]:
    usual = options.scale if options.scale > 1 else 0
    for name, block in options.val.metrics.items():
        border = block.get("crop_border", usual)
        if border not in (usual, usual + 6):  # the latter is that of DIV2K's challenges
            why = f"but scale is {options.scale}: published figures leave out {usual} pixels at each edge"
            remedy = "leave crop_border out, and it follows the scale"
            yield ("val", "metrics", name, "crop_border"), f"is {border}, {why}; {remedy}"
    tile, overlap = options.val.tile, options.val.tile_overlap
    if tile is not None and overlap is not None and overlap > tile:
        yield ("val", "tile_overlap"), f"is {overlap}, more than tile {tile}: most pixels are computed many times"
    elif tile is None and overlap is not None:
        yield ("val", "tile_overlap"), f"is {overlap}, but there is no val.tile: images are run whole"


def _published(options: Options) -> Iterator[Finding]:
    from basicsr.config.published import published_rows

    backbone = options.report.published
    if backbone is not None and not published_rows(backbone, options.scale):
        yield ("report", "published"), f"has no figures of {backbone} at scale {options.scale}; none are shown"


def _lengths(options: Options) -> Iterator[Finding]:
    train, total = options.train, options.train.total_iter
    if train.warmup_iter >= total:
        message = f"is {train.warmup_iter}, but total_iter is {total}: training ends before the rate has reached lr"
        yield ("train", "warmup_iter"), message
    if train.freeze_until is not None and train.freeze_until >= total:
        message = f"is {train.freeze_until}, but total_iter is {total}: what is frozen is never trained"
        yield ("train", "freeze_until"), message
    for (section, key), done in _INTERVALS.items():
        value = getattr(getattr(options, section), key)
        is_given = key in getattr(options, section).model_fields_set
        if is_given and total < value < _NEVER and (section != "val" or options.datasets_of("val")):
            yield (section, key), f"is {value}, but total_iter is {total}: it is {done} at the end alone"
    left = train.ema_decay**total
    if left > _EMA_LEFT:
        highest = 1 - float(f"{5 / total:.2g}")  # leaves less than 1% of them
        remedy = f"take {highest:.10g} or less" if total > 5 else "take 0, for none"
        holds = f"after total_iter {total} the average still holds {left:.0%} of the weights that training began with"
        yield ("train", "ema_decay"), f"is {train.ema_decay:g}: {holds}; {remedy}"


def _loading(options: Options) -> Iterator[Finding]:
    for key, dataset in options.datasets.items():
        at = ("datasets", key)
        roots = {name: value for name, value in dataset.arguments.items() if name.startswith("dataroot")}
        folders = [found for name, value in roots.items() for found in _paths_in(value, (*at, name))]
        for where, folder in folders if dataset.name in _BENCHMARKS else ():
            others = [part for part in re.split(r"[/\\]", folder) if part in _BENCHMARKS]
            if others and dataset.name not in others:
                yield where, f"is a folder of {others[-1]}, but the dataset is named {dataset.name}"
        if not options.is_train:
            continue
        workers = dataset.num_worker_per_gpu
        if workers > 4 and workers > 4 * (processors := num_processors()):
            message = f"is {workers}, but this machine has {processors} processors, and each worker needs one; lower it"
            yield (*at, "num_worker_per_gpu"), message
        total, ends = options.train.total_iter, list(accumulate(dataset.iters or ()))
        reached = 1 + sum(end < total for end in ends[:-1])
        if dataset.phase == "train" and reached < len(ends):
            why = f"total_iter {total} ends in stage {reached}"
            yield (*at, "iters"), f"has {len(ends)} stages, but {why}; the others are not reached"
        for trained in options.datasets_of("train").values() if dataset.phase == "val" else ():
            for name in _VALUES:
                given, other = dataset.arguments.get(name), trained.arguments.get(name)
                if given != other:
                    conflict = f"is {shown(given)}, but that of training is {shown(other)}"
                    why = "the network is evaluated on values that it has not learned"
                    yield (*at, name), f"{conflict}: {why}; make them equal"


def _left_over(options: Options) -> Iterator[Finding]:
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
