"""Brings options as they were written, by today's or by BasicSR's users, into the form that is typed and checked."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from typing import Any

from basicsr.config.component_blocks import takes_crop_border
from basicsr.config.schema import (
    SET_BY_THE_COMMAND,
    BestOptions,
    DatasetOptions,
    DistOptions,
    LoggerOptions,
    Options,
    PathOptions,
    Region,
    ReportOptions,
    RowOptions,
    Section,
    TrainOptions,
    ValOptions,
    WandbOptions,
)
from basicsr.config.yaml_entries import PAIRS
from basicsr.config.yaml_files import Document, Entry, KeyPath, LocatedProblem, Position
from basicsr.utils.ranges import LARGEST_SCALE
from basicsr.utils.signatures import unknown_key_message
from basicsr.utils.text import nearest, shown

# All control characters but tab and line ends, and halves of surrogate pairs, which UTF-8 cannot hold.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_CONTROL_OR_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCALE = re.compile(r"[xX](\d+|\{scale\})")
_DATASET_KEY = re.compile(r"train|(val|test)(_\w+)?")
_ALIASES = {(): {"discriminator": "network_d"}, ("train",): {"gan_opt": "adversarial_opt"}}
_NULL_REMOVES = (("datasets",), ("networks",), ("val", "metrics"), ("train", "distill"))
_DEBUG_FREQUENCIES = {
    ("val", "val_freq"): 8,
    ("logger", "print_freq"): 1,
    ("logger", "save_checkpoint_freq"): 8,
}
_SECTIONS: dict[KeyPath, type[Section]] = {
    (): Options,
    ("datasets", "*"): DatasetOptions,
    ("networks", "*"): RowOptions,
    ("path",): PathOptions,
    ("train",): TrainOptions,
    ("val",): ValOptions,
    ("val", "best"): BestOptions,
    ("report",): ReportOptions,
    ("report", "regions", "*"): Region,
    ("logger",): LoggerOptions,
    ("logger", "wandb"): WandbOptions,
    ("dist_params",): DistOptions,
}
_REAL_ESRGAN = "belongs to BasicSR's Real-ESRGAN models, which make their inputs as they train; remove it"
_VIDEO = "belongs to BasicSR's video models, which are not part of this framework; remove it"
_STYLEGAN = "belongs to BasicSR's StyleGAN2 and HiFaceGAN models, which are not part of this framework; remove it"
_REFUSED: dict[KeyPath, str] = {
    **{(key,): _REAL_ESRGAN for key in ("gt_usm", "l1_gt_usm", "percep_gt_usm", "gan_gt_usm")},
    **{(key,): _REAL_ESRGAN for key in ("high_order_degradation", "queue_size")},
    **{("train", key): _VIDEO for key in ("fix_flow", "flow_lr_mul", "dcn_lr_mul", "tsa_iter")},
    **{("train", key): _STYLEGAN for key in ("r1_reg_weight", "path_reg_weight", "path_batch_shrink", "mixing_prob")},
    **{("train", key): _STYLEGAN for key in ("net_g_reg_every", "net_d_reg_every", "feature_matching_opt")},
    ("train", "ldl_opt"): "BasicSR's LDL artifact loss is not part of this framework; remove it",
}


def apply_debug(document: Document, debug: bool, training: bool) -> None:
    """BasicSR's --debug, also for names that begin with 'debug': short intervals, and a name that says so."""
    content = document.root.value
    name = content.get("name")
    if name is None or not isinstance(name.value, str):
        return
    if debug and not name.value.startswith("debug"):
        content["name"] = Entry(f"debug_{name.value}", name.position)
    if not training or not content["name"].value.startswith("debug"):
        return
    for (section, key), value in _DEBUG_FREQUENCIES.items():
        entry = content.setdefault(section, Entry({}, Position("--debug")))
        if isinstance(entry.value, dict):
            entry.value[key] = Entry(value, Position("--debug"))


def fill_scale(document: Document, scale: int | None = None) -> None:
    """Puts the scale in the place of `{scale}` in every value, as a number where it is all of the value.

    Args:
        document: the options.
        scale: the scale; the top-level one where None.
    """
    scale = written_value(document, "scale") if scale is None else scale
    if isinstance(scale, int) and not isinstance(scale, bool):
        _fill_scale(document.root, scale)


def _fill_scale(entry: Entry, scale: int) -> None:
    if isinstance(entry.value, str):
        entry.value = scale if entry.value == "{scale}" else entry.value.replace("{scale}", str(scale))
    elif isinstance(entry.value, (dict, list)):
        for inner in entry.value.values() if isinstance(entry.value, dict) else entry.value:
            _fill_scale(inner, scale)


def refuse_control_characters(document: Document) -> list[LocatedProblem]:
    """Takes out texts and keys that hold what no file's name and no terminal can show; tells which and where."""
    problems: list[LocatedProblem] = []

    def cleaned(entry: Entry, key: KeyPath) -> None:
        if isinstance(entry.value, str):
            found = _CONTROL.search(entry.value)
            if found is not None:
                problems.append(LocatedProblem(entry.position, key, _control_message(found.group())))
                entry.value = None
        elif isinstance(entry.value, dict):
            for name in [name for name in entry.value if _CONTROL_OR_LINE.search(name)]:
                message = f"unknown key: {_control_message(_CONTROL_OR_LINE.findall(name)[0])}"
                problems.append(LocatedProblem(entry.value[name].position, (*key, name), message))
                del entry.value[name]
            for name, inner in entry.value.items():
                cleaned(inner, (*key, name))
        elif isinstance(entry.value, list):
            for index, inner in enumerate(entry.value):
                cleaned(inner, (*key, index))

    cleaned(document.root, ())
    return problems


def _control_message(sign: str) -> str:
    return f"holds the control character U+{ord(sign):04X}; take it out"


def _shown_entry(entry: Entry) -> str:
    if isinstance(entry.value, (dict, list)):
        return "a mapping" if isinstance(entry.value, dict) else "a list"
    return shown(entry.value)


def normalise(document: Document, training: bool) -> list[LocatedProblem]:
    """Gives old names their new ones, fills in what follows from other keys, takes out what is refused."""
    problems: list[LocatedProblem] = []
    for parent, names in _ALIASES.items():
        for old, new in names.items():
            problems += _rename(document, parent, old, new)
    problems += _refuse(document, training)
    for name in ("val", "report", "logger", "path", "dist_params", "datasets", "networks"):
        if written_value(document, name) is None:
            document.root.value.pop(name, None)
    for key in _NULL_REMOVES:
        section = _section(document, key)
        for name in [name for name, entry in section.items() if entry.value is None]:
            del section[name]
    problems += _fill_datasets(document)
    _fill_metrics(document)
    for entry in _section(document, ("path",)).values():
        _expand_user(entry)
    for row in _section(document, ("networks",)):
        for entry in _section(document, ("networks", row)).values():
            _expand_user(entry)
        problems += _find_weights(document, row)
    return problems


def _find_weights(document: Document, row: str) -> list[LocatedProblem]:
    """Puts the one file that matches a row's `path`, which may hold wildcards, in its place."""
    entry = _section(document, ("networks", row)).get("path")
    if entry is None or not isinstance(entry.value, str) or os.path.exists(entry.value):
        return []
    matches = sorted(glob.glob(entry.value))
    if len(matches) > 1:
        message = f"{entry.value} matches {len(matches)} files, {matches[0]} and {matches[1]} among them; name one"
        return [LocatedProblem(entry.position, ("networks", row, "path"), message)]
    entry.value = matches[0] if matches else entry.value
    return []


def _section(document: Document, key: KeyPath) -> dict[str, Entry]:
    """The entries of the mapping at `key`; empty where there is none."""
    value = document.root.value
    for part in key:
        entry = value.get(part) if isinstance(value, dict) else None
        value = entry.value if entry is not None else None
    return value if isinstance(value, dict) else {}


def _rename(document: Document, parent: KeyPath, old: str, new: str) -> list[LocatedProblem]:
    section = _section(document, parent)
    if old not in section:
        return []
    entry = section.pop(old)
    if new in section:
        message = f"is an older name of {new}, which stands at {section[new].position}; keep one"
        return [LocatedProblem(entry.position, (*parent, old), message)]
    section[new] = entry
    return []


def _refuse(document: Document, training: bool) -> list[LocatedProblem]:
    problems = []
    for key, reason in _REFUSED.items():
        section = _section(document, key[:-1])
        entry = section.pop(str(key[-1]), None)
        if entry is not None and entry.value not in (None, False):
            problems.append(LocatedProblem(entry.position, key, reason))
    content = document.root.value
    for name in SET_BY_THE_COMMAND:
        given = content.pop(name, None)
        if given is not None:
            problems.append(LocatedProblem(given.position, (name,), unknown_key((name,))))
    is_train = content.pop("is_train", None)
    if is_train is not None and is_train.value is not training:
        command = "train.py" if training else "test.py"
        message = f"is set by the command; {command} makes it {str(training).lower()}; remove it"
        problems.append(LocatedProblem(is_train.position, ("is_train",), message))
    clip = _section(document, ("train",)).pop("use_grad_clip", None)
    if clip is not None and clip.value not in (None, False):
        message = "does not say how large a gradient may be; write grad_clip: 0.01 (Restormer's and NAFNet's norm)"
        problems.append(LocatedProblem(clip.position, ("train", "use_grad_clip"), message))
    return problems


def _fill_datasets(document: Document) -> list[LocatedProblem]:
    problems = []
    datasets = _section(document, ("datasets",))
    for key in list(datasets):
        entry = datasets[key]
        if not _DATASET_KEY.fullmatch(key):
            near = nearest(key.partition("_")[0], ["train", "val", "test"])
            message = f"unknown key{near}; allowed: train, val, val_1, ..., test, test_1, ..."
            problems.append(LocatedProblem(entry.position, ("datasets", key), message))
            del datasets[key]
            continue
        if not isinstance(entry.value, dict):
            continue
        filled = {"phase": key.split("_")[0]}
        if "scale" in document.root.value:
            filled["scale"] = document.root.value["scale"].value
        for name, value in filled.items():
            own = entry.value.get(name)
            if own is not None and own.value != value:
                message = f"is filled in: {value!r} here, got {_shown_entry(own)}; remove it"
                problems.append(LocatedProblem(own.position, ("datasets", key, name), message))
            entry.value[name] = Entry(value, entry.position)
        problems += _halves(key, entry.value)
        for name, own in entry.value.items():
            if name.startswith(("dataroot", "meta_info")):
                _expand_user(own)
    return problems


def _halves(key: str, block: dict[str, Entry]) -> Iterator[LocatedProblem]:
    """What to say of a folder that was replaced where the other one of its pair is still a base's."""
    for pair in PAIRS:
        for half, other in (pair, pair[::-1]):
            entry, kept = block.get(half), block.get(other)
            if entry is None or entry.replaced is None or kept is None or kept.value is None:
                continue
            if _SCALE.sub("", str(entry.value)) == _SCALE.sub("", str(entry.replaced.value)):
                continue  # the same images at another scale
            yield LocatedProblem(
                entry.position,
                ("datasets", key, half),
                f"replaces the folder of {entry.replaced.position}, but {other} is still {_shown_entry(kept)} of"
                f" {kept.position}: their images would be taken for pairs; give both (again where it is meant)",
            )


def _fill_metrics(document: Document) -> None:
    """Sets `crop_border` of the metrics that take one and do not set it: to the top-level one, else to the scale.

    At scale 1 the network sees all of what a border would hide: nothing is left out.
    """
    border = document.root.value.get("crop_border")
    scale = document.root.value.get("scale")
    if border is None or border.value is None:
        if scale is None:
            return
        follows = type(scale.value) is int and 1 < scale.value <= LARGEST_SCALE  # else scale itself is refused, or 1
        border = Entry(scale.value if follows else 0, scale.position)
    for block in (entry.value for entry in _section(document, ("val", "metrics")).values()):
        content = {key: entry.value for key, entry in block.items()} if isinstance(block, dict) else {}
        if "crop_border" not in content and takes_crop_border(content):
            block["crop_border"] = border


def _expand_user(entry: Entry) -> None:
    if isinstance(entry.value, str) and entry.value.startswith("~"):
        entry.value = os.path.expanduser(entry.value)


def unknown_key(key: KeyPath) -> str:
    """What to say of a key that its section does not have."""
    pattern = tuple(
        "*" if isinstance(part, int) or (index == 1 and key[0] in ("datasets", "networks")) else part
        for index, part in enumerate(key)
    )
    allowed = [name for name in _SECTIONS[pattern[:-1]].model_fields if name not in SET_BY_THE_COMMAND]
    sections = [
        name for name in ("train", "val", "path", "logger", "report") if key[-1] in _SECTIONS[name,].model_fields
    ]
    if len(key) == 1 and sections:
        return f"unknown key here; it is one of section {sections[0]}, {sections[0]}:{key[0]} for --force_yml"
    return unknown_key_message(str(key[-1]), allowed)


def written_value(document: Document, key: str) -> Any:
    """The value of a top-level key as it was written; None where there is none."""
    entry = document.root.value.get(key)
    return entry.value if entry is not None else None
