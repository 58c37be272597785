"""From an options file and a command line to typed options, or to one message that names every mistake."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from basicsr.utils.components import describe
from basicsr.utils.errors import OptionsError
from basicsr.utils.options_checks import check_paths, find_conflicts
from basicsr.utils.options_components import Finding, find_component_problems, takes_crop_border
from basicsr.utils.options_schema import (
    BestOptions,
    DatasetOptions,
    DistOptions,
    LoggerOptions,
    Options,
    PathOptions,
    RowOptions,
    Section,
    TrainOptions,
    ValOptions,
    WandbOptions,
    thaw,
)
from basicsr.utils.registry import nearest
from basicsr.utils.yaml_loader import (
    Document,
    Entry,
    KeyPath,
    LocatedProblem,
    Position,
    document_from_mapping,
    dump_yaml,
    load_yaml,
)

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


def parse_arguments(argv: Sequence[str] | None, training: bool) -> argparse.Namespace:
    """Reads the command line of train.py or test.py, which is BasicSR's.

    Args:
        argv: arguments without the program's name; those of the process where None.
        training: whether this is train.py.

    Returns:
        `opt` (path), `launcher`, `auto_resume`, `debug`, `force_yml` (list of `a:b=value`). `local_rank` is
        only accepted: launchers pass it on in the environment.
    """
    parser = argparse.ArgumentParser(
        description="Trains a network, with or without a teacher." if training else "Tests networks on benchmarks."
    )
    parser.add_argument("-opt", "--opt", type=str, required=True, metavar="FILE", help="options file (YAML)")
    parser.add_argument(
        "--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started the ranks"
    )
    parser.add_argument("--auto_resume", action="store_true", help="continue from the newest training state, if any")
    parser.add_argument("--debug", action="store_true", help="name 'debug_...', log every, evaluate each 8 iterations")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="accepted and ignored")
    parser.add_argument(
        "--force_yml",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="set options: train:total_iter=1000 ...",
    )
    return parser.parse_args(argv)


def load_options(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    training: bool,
    debug: bool = False,
    root: Path | None = None,
    paths: bool = True,
) -> Options:
    """Reads, checks and types the options; touches neither data nor device.

    Args:
        source: an options file, or its content.
        overrides: `--force_yml`'s `a:b:c=value`, applied in order.
        training: whether they are for train.py (else test.py).
        debug: BasicSR's `--debug`: short intervals, and a name that begins with 'debug_'.
        root: the folder that holds experiments/ and results/; the working directory where None.
        paths: whether the files and folders that will be read must be there.

    Raises:
        OptionsError: one line for each mistake: FILE:LINE: key: what was given, what is allowed.
    """
    document = document_from_mapping(source) if isinstance(source, Mapping) else load_yaml(source)
    for override in overrides:
        document.set(override)
    if training:
        _apply_debug(document, debug)
    problems = list(document.problems)
    problems += _normalise(document, training)
    data = _with_tuples(document.data())
    data["is_train"] = training
    data["root"] = root or Path()

    typed_findings, dropped, options = _typed(data)
    findings = find_component_problems(data) + typed_findings
    if options is not None:
        later = find_conflicts(options, _written(document, "model_type"))
        later += check_paths(options) if paths else []
        findings += [finding for finding in later if not _hidden(finding[0], dropped)]
    known = {problem.key for problem in problems}
    for key, message in findings:
        if key not in known:
            problems.append(_located(document, data, key, message))
            known.add(key)
    if problems or options is None:
        raise OptionsError(_report(problems, source))
    return options


def resolved_yaml(options: Options) -> str:
    """The whole options, defaults and merged files included, as YAML that loads to equal options."""
    return dump_yaml(thaw(options))


def dict2str(opt: Mapping[str, Any], indent_level: int = 1) -> str:
    """Options as indented text for the log; BasicSR's function."""
    lines = ""
    indent = " " * (indent_level * 2)
    for key, value in opt.items():
        if isinstance(value, Mapping):
            lines += f"{indent}{key}:[{dict2str(value, indent_level + 1)}{indent}]\n"
        else:
            lines += f"{indent}{key}: {value}\n"
    return "\n" + lines


def _apply_debug(document: Document, debug: bool) -> None:
    content = document.root.value
    name = content.get("name")
    if name is None or not isinstance(name.value, str):
        return
    if debug and not name.value.startswith("debug"):
        content["name"] = Entry(f"debug_{name.value}", name.position)
    if not content["name"].value.startswith("debug"):
        return
    for (section, key), value in _DEBUG_FREQUENCIES.items():
        if section in content and isinstance(content[section].value, dict):
            content[section].value[key] = Entry(value, Position("--debug"))


def _normalise(document: Document, training: bool) -> list[LocatedProblem]:
    """Gives old names their new ones, fills in what follows from other keys, takes out what is refused."""
    problems: list[LocatedProblem] = []
    for parent, names in _ALIASES.items():
        for old, new in names.items():
            problems += _rename(document, parent, old, new)
    problems += _refuse(document, training)
    for name in ("val", "logger", "path", "dist_params", "datasets", "networks"):
        if _written(document, name) is None:
            document.root.value.pop(name, None)
    for key in _NULL_REMOVES:
        section = _section(document, key)
        for name in [name for name, entry in section.items() if entry.value is None]:
            del section[name]
    problems += _fill_datasets(document)
    _fill_metrics(document)
    keys: list[KeyPath] = [("path",)]
    for place in [*keys, *(("networks", row) for row in _section(document, ("networks",)))]:
        for entry in _section(document, place).values():
            _expand_user(entry)
    return problems


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
    root = content.pop("root", None)
    if root is not None:
        problems.append(LocatedProblem(root.position, ("root",), _unknown_key(("root",))))
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
            near = nearest(key, ["train", "val", "test"])
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
                message = f"is filled in: {value!r} here, got {own.value!r}; remove it"
                problems.append(LocatedProblem(own.position, ("datasets", key, name), message))
            entry.value[name] = Entry(value, entry.position)
        for name, own in entry.value.items():
            if name.startswith(("dataroot", "meta_info")):
                _expand_user(own)
    return problems


def _fill_metrics(document: Document) -> None:
    """Hands the top-level crop_border of older files to the metrics that take one and do not set it."""
    border = document.root.value.get("crop_border")
    blocks = [block.value for block in _section(document, ("val", "metrics")).values()]
    for block in blocks if border is not None else ():
        content = {key: entry.value for key, entry in block.items()} if isinstance(block, dict) else {}
        if "crop_border" not in content and takes_crop_border(content):
            block["crop_border"] = border


def _expand_user(entry: Entry) -> None:
    if isinstance(entry.value, str) and entry.value.startswith("~"):
        entry.value = os.path.expanduser(entry.value)


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(entry) for entry in value)
    return value


def _typed(data: dict[str, Any]) -> tuple[list[Finding], list[KeyPath], Options | None]:
    """Types the data; where it cannot, leaves out what is wrong, so that the rest can still be checked.

    Returns:
        The mistakes, the keys left out, and the options (None where not even the rest makes options).
    """
    findings: dict[KeyPath, list[str]] = {}
    dropped: list[KeyPath] = []
    for _ in range(10):
        try:
            options = Options.model_validate(data)
        except ValidationError as error:
            for item in error.errors():
                key, message = _translated(item, data)
                findings.setdefault(key, [])
                findings[key] += [] if message in findings[key] else [message]
                dropped.append(key[:-1] if item["type"] == "missing" else key)
            if () in dropped:
                break
            data = _without(data, dropped)
        else:
            return [(key, " or ".join(messages)) for key, messages in findings.items()], dropped, options
    return [(key, " or ".join(messages)) for key, messages in findings.items()], dropped, None


def _translated(item: Any, data: dict[str, Any]) -> Finding:
    """A validator's error as the key of the options it is about, and a sentence."""
    if item["type"] == "missing":
        key = tuple(item["loc"])
        scale_is_missing = key[0] == "datasets" and key[-1] == "scale"
        return (("scale",) if scale_is_missing else key), "is required"
    key, value = (), data
    for part in item["loc"]:
        inside = isinstance(value, dict) and part in value
        if not inside and not (isinstance(value, tuple) and isinstance(part, int)):
            break
        key, value = (*key, part), value[part]
    if item["type"] == "extra_forbidden":
        return key, _unknown_key(key)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return key, message
    if item["type"] == "model_type":
        message = "Input should be a mapping"
    return key, describe(message, value)


def _unknown_key(key: KeyPath) -> str:
    pattern = tuple(
        "*" if index == 1 and key[0] in ("datasets", "networks") else part for index, part in enumerate(key)
    )
    allowed = [name for name in _SECTIONS[pattern[:-1]].model_fields if name != "root"]
    return f"unknown key{nearest(str(key[-1]), allowed)}; allowed: {', '.join(allowed)}"


def _without(value: Any, dropped: list[KeyPath]) -> Any:
    here = {key[0] for key in dropped if len(key) == 1}
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, entry in value.items():
        if name not in here:
            inner = [key[1:] for key in dropped if len(key) > 1 and key[0] == name]
            kept[name] = _without(entry, inner) if inner else entry
    return kept


def _hidden(key: KeyPath, dropped: list[KeyPath]) -> bool:
    """Whether a finding only follows from a key that was left out for a mistake of its own."""
    return any(key[: len(gone)] == gone or gone[: len(key)] == key for gone in dropped)


def _written(document: Document, key: str) -> Any:
    entry = document.root.value.get(key)
    return entry.value if entry is not None else None


def _located(document: Document, data: dict[str, Any], key: KeyPath, message: str) -> LocatedProblem:
    value: Any = data
    for part in key:
        if not (isinstance(value, Mapping) and part in value):
            value = None
            break
        value = value[part]
    if isinstance(value, str) and "boolean" in message and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        message += "; write true or false"
    if isinstance(value, str) and value.lower() in ("none", "null", "nil") and "got" in message:
        message += "; write ~ for nothing"
    return LocatedProblem(document.position(key), key, message)


def _report(problems: list[LocatedProblem], source: str | Path | Mapping[str, Any]) -> str:
    ordered = sorted(problems, key=lambda problem: (problem.position.file, problem.position.line or 0))
    lines = list(dict.fromkeys(str(problem) for problem in ordered))
    name = "the options" if isinstance(source, Mapping) else str(source)
    count = "one mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return "\n".join([f"{name}: {count}", *lines])
