"""From an options file and a command line to typed options, or to one message that names every mistake."""

from __future__ import annotations

import glob
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from basicsr.config.checks import find_conflicts, find_warnings, nothing_left, without_missing
from basicsr.config.command_line import parse_arguments as parse_arguments
from basicsr.config.component_blocks import SET_BY_THE_COMMAND, constructor_of, section_of, validated
from basicsr.config.real_esrgan import place_real_esrgan
from basicsr.config.schema import OF_ALL_TRAINING_SETS, Options, thaw
from basicsr.config.yaml_files import (
    Document,
    apply_overrides,
    document_from_mapping,
    document_from_text,
    dump_yaml,
    lines_of,
    load_yaml,
)
from basicsr.config.yaml_reader import PAIR, KeyPath, LocatedProblem
from basicsr.utils.errors import OptionsError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.ranges import LARGEST_SCALE
from basicsr.utils.registry import DATASET_REGISTRY, METRIC_REGISTRY, Problem
from basicsr.utils.text import nearest, shown

# All control characters but tab and line ends, and halves of surrogate pairs, which UTF-8 cannot hold.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_CONTROL_OR_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCALE = re.compile(r"[xX](\d+|\{scale\})")
_DATASET_KEY = re.compile(r"(train|val|test)(_\w+)?")
_TERM = ("train", "distill")
OLDER_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("discriminator",): ("network_d",),
    ("train", "gan_opt"): ("train", "adversarial_opt"),
    ("train", "resp_kd_opt"): (*_TERM, "response"),
    ("train", "contrastive_opt"): (*_TERM, "contrastive"),
}
"""Keys of BasicSR's and of earlier versions, and those that stand for them; see also `_term_of`."""
_NULL_REMOVES = (("datasets",), ("networks",), ("val", "metrics"), _TERM)
_DEBUG_FREQUENCIES = {"val": {"val_freq": 8}, "logger": {"print_freq": 1, "save_checkpoint_freq": 8}}
_VIDEO = "belongs to BasicSR's video models, which are not part of this framework; remove it"
_STYLEGAN = "belongs to BasicSR's StyleGAN2 and HiFaceGAN models, which are not part of this framework; remove it"
_REFUSED: dict[KeyPath, str] = {
    **{("train", key): _VIDEO for key in ("fix_flow", "flow_lr_mul", "dcn_lr_mul", "tsa_iter")},
    **{("train", key): _STYLEGAN for key in ("r1_reg_weight", "path_reg_weight", "path_batch_shrink", "mixing_prob")},
    **{("train", key): _STYLEGAN for key in ("net_g_reg_every", "net_d_reg_every", "feature_matching_opt")},
    ("train", "ldl_opt"): "BasicSR's LDL artifact loss is not part of this framework; remove it",
    ("train", "use_grad_clip"): (
        "does not say how large a gradient may be; write grad_clip: 0.01 (Restormer's and NAFNet's norm)"
    ),
}
_STAND_INS: dict[KeyPath, Any] = {
    ("name",): "name",
    ("scale",): 1,
    ("train", "total_iter"): 1,
    ("train", "optim_g"): {"type": "Adam"},
}


def load_options(
    source: str | Path | Mapping[str, Any] | Document,
    *,
    overrides: Sequence[str] = (),
    training: bool,
    debug: bool = False,
    root: Path | None = None,
    paths: bool = True,
    warn: Callable[[str], None] | None = None,
) -> Options:
    """Reads, checks and types the options; touches neither data nor device.

    Args:
        source: an options file, or its content, or what `load_yaml` read.
        overrides: `--force_yml`'s `a:b:c=value`, applied in order.
        training: whether they are for train.py (else test.py).
        debug: BasicSR's `--debug`: short intervals, and a name that begins with 'debug_'.
        root: the folder that holds experiments/ and results/; the working directory where None.
        paths: whether the files and folders that will be read must be there.
        warn: called with a line, FILE:LINE: key: ..., for what is allowed and yet looks like a slip, such as a schedule
            longer than the training; the log's warnings where None.

    Raises:
        OptionsError: one line for each mistake: FILE:LINE: key: what was given, what is allowed.
    """
    document = _read(source, overrides)
    checked = _Checked(document, training, debug=debug, root=root, paths=paths)
    name = document.root.position.file if isinstance(source, Document) else source
    return _without_mistakes([checked], name, warn)[0]


def load_test_options(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    root: Path | None = None,
    paths: bool = True,
    warn: Callable[[str], None] | None = None,
) -> list[Options]:
    """Reads test.py's options, whose `scale` may be a list: one `Options` for each scale, `{scale}` filled in.

    Raises:
        OptionsError: one line for each mistake, over all scales.
    """
    document = _read(source, overrides)
    scales = document.data().get("scale")
    mistakes = []
    if not isinstance(scales, list):
        scales = [None]
    else:
        valid = [value for value in scales if type(value) is int and value > 0]
        if not scales or len(set(valid)) < len(scales):
            what = "a list of scales must hold whole numbers of at least 1, at least one and each once, as [2, 3, 4]"
            mistakes = [Problem(("scale",), what, scales)]
            scales = valid[:1] or [1]
    each = [_Checked(document, False, root=root, paths=paths, scale=scale, known=mistakes) for scale in scales]
    return _without_mistakes(each, source, warn)


def _read(source: str | Path | Mapping[str, Any] | Document, overrides: Sequence[str]) -> Document:
    if isinstance(source, Document):
        document = source
    elif isinstance(source, Mapping):
        document = document_from_mapping(source, keep_going=True)
    else:
        document = load_yaml(source, keep_going=True)
    apply_overrides(document, overrides)
    return document


def no_warning(line: str) -> None:
    """`warn` of options that were loaded, and warned of, before."""


def _without_mistakes(
    each: Sequence[_Checked], source: str | Path | Mapping[str, Any], warn: Callable[[str], None] | None
) -> list[Options]:
    """The options of all scales, warned of where they look like slips; raises their mistakes."""
    problems = [problem for checked in each for problem in checked.problems]
    options = [checked.options for checked in each if checked.options is not None]
    if not problems:
        empty = [nothing_left(loaded) for loaded in options]
        problems = [each[0].located(problem) for problem in empty if problem is not None and all(empty)]
        if len({loaded.name for loaded in options}) > 1:
            what = "must be the same for all scales, which share a folder; take {scale} out"
            problems.append(each[0].located(Problem(("name",), what)))
    if problems:
        lines = lines_of(problems)
        name = "the options" if isinstance(source, Mapping) else str(source)
        count = "one mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise OptionsError("\n".join([f"{name}: {count}", *lines]))
    warnings = []
    for checked, loaded in zip(each, options, strict=True):
        warnings += [checked.located(warning) for warning in find_warnings(loaded)]
    for line in lines_of(warnings):
        (warn or get_root_logger().warning)(line)
    return options


class _Checked:
    """A document's `options`, as far as they are right, and its `problems`, each with its position."""

    def __init__(
        self,
        document: Document,
        training: bool,
        *,
        debug: bool = False,
        root: Path | None = None,
        paths: bool = True,
        scale: int | None = None,
        known: Sequence[Problem] = (),
    ) -> None:
        self._document = document
        self._normalised = Normalised(document, training, debug=debug, scale=scale)
        data = self._normalised.data
        data["is_train"] = training
        data["root"] = root or Path()
        data["sources"] = sorted({position.file for position in document.positions().values()})
        problems, changes, self.options = validated(Options, data, _stand_in)
        for index, problem in enumerate(problems):
            if problem.key[:1] == ("datasets",) and problem.key[2:] == ("scale",):  # which is the top-level one
                problems[index] = replace(problem, key=("scale",))
        problems = [*known, *self._normalised.problems, *problems]
        has_scale = not any(problem.key == ("scale",) for problem in problems)
        if self.options is not None:
            later: list[Problem] = []
            if has_scale:
                wrong = [problem.key for problem in problems]
                later += find_conflicts(self.options, document.data().get("model_type"), wrong)
            if paths:
                self.options, missing = without_missing(self.options)
                later += [problem for problem in missing if has_scale or "{scale}" not in problem.what]
            problems += [problem for problem in later if not _follows(problem.key, changes)]
        self.problems = list(document.problems)
        reported = {problem.key for problem in self.problems if problem.is_of_value}
        for problem in problems:
            located = self.located(problem)
            if located.key not in reported:
                self.problems.append(located)
                reported.add(located.key)

    def located(self, problem: Problem) -> LocatedProblem:
        """The problem with its key, and those that are allowed beside it, as the user writes them, and its position."""
        as_written = self._normalised.as_written
        key = as_written(problem.key)
        allowed = problem.allowed
        if problem.is_unknown_key and allowed is not None:
            written = [as_written((*problem.key[:-1], name)) for name in allowed]
            allowed = [
                str(other[-1]) if other[:-1] == key[:-1] else name for name, other in zip(allowed, written, strict=True)
            ]
        message = replace(problem, key=key, allowed=allowed).message
        return LocatedProblem(self._document.position(key), key, message, at_any_key=problem.at_any_key)


def _stand_in(key: KeyPath) -> Any:
    """What stands for a required value that is missing while the rest is checked."""
    if len(key) == 3 and key[0] == "datasets":
        return {"name": key[1], "scale": 1}.get(str(key[2]))
    return _STAND_INS.get(key)


def _follows(key: KeyPath, changed: Collection[KeyPath]) -> bool:
    """Whether a finding at `key` only follows from a key that was left out because it is wrong."""
    is_nameless = any(gone[:1] == ("datasets",) and gone[-1] == "name" for gone in changed)
    if is_nameless and (key[:3] == ("val", "best", "dataset") or key[:2] == ("report", "regions")):
        return True
    return any(key[: len(gone)] == gone or gone[: len(key)] == key for gone in changed)


def resolved_yaml(options: Options) -> str:
    """The whole options, defaults and merged files included, as YAML that loads to equal options."""
    return dump_yaml(thaw(options))


def todays_text(kept: str) -> str:
    """The resolved options that an earlier version kept, as today's would be."""
    if not any(f"{key[-1]}:" in kept for key in OLDER_NAMES):
        return kept
    try:
        content = document_from_text(kept, "options").data()
        return resolved_yaml(load_options(content, training=True, paths=False, warn=no_warning))
    except OptionsError:
        return kept


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


class Normalised:
    """Options in today's form, as `data` of dicts, lists and scalars; `problems` are what was refused and left out.

    `written` has, by today's key, or by one around it, the key that was written in its place.
    """

    def __init__(self, document: Document, training: bool, *, debug: bool = False, scale: int | None = None) -> None:
        self.data = document.data()
        self.problems: list[Problem] = []
        self.written: dict[KeyPath, KeyPath] = {}
        if scale is not None:
            self.data["scale"] = scale
        _apply_debug(self.data, debug, training)
        self.data = self._cleaned(self.data, (), self.data.get("scale"))
        self._rename(document)
        self.problems += place_real_esrgan(self.data, self.written)
        self._refuse(training)
        for name in ("val", "report", "logger", "path", "dist_params", "datasets", "networks"):
            if self.data.get(name) is None:
                self.data.pop(name, None)
        for key in _NULL_REMOVES:
            section = self._section(*key)
            for name in [name for name, value in section.items() if value is None]:
                del section[name]
        self._fill_datasets(document)
        self._fill_metrics()
        _expand_users(self._section("path"))
        for row in self._section("networks"):
            _expand_users(self._section("networks", row))
            self._find_weights(row)

    def as_written(self, key: KeyPath) -> KeyPath:
        """The key that the user wrote, as in `train.contrastive_opt.type` for `train.distill.contrastive.mode`."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.written:
                return (*self.written[key[:length]], *key[length:])
        return key

    def _section(self, *key: str | int) -> dict[Any, Any]:
        return section_of(self.data, key)

    def _cleaned(self, value: Any, key: KeyPath, scale: Any) -> Any:
        """The value with the scale in the place of `{scale}`, without what no file's name and no terminal can show."""
        if isinstance(value, str):
            if found := _CONTROL.search(value):
                self.problems.append(Problem(key, _control(found)))
                return None
            if type(scale) is int:
                return scale if value == "{scale}" else value.replace("{scale}", str(scale))
        if isinstance(value, list):
            return [self._cleaned(inner, (*key, index), scale) for index, inner in enumerate(value)]
        if not isinstance(value, dict):
            return value
        cleaned = {}
        for name, inner in value.items():
            if found := _CONTROL_OR_LINE.search(name):
                self.problems.append(Problem((*key, name), f"unknown key: {_control(found)}"))
            else:
                cleaned[name] = self._cleaned(inner, (*key, name), scale)
        return cleaned

    def _rename(self, document: Document) -> None:
        train = self._section("train")
        terms: dict[str, Any] = {}
        for old, new in OLDER_NAMES.items():
            section = self._section(*old[:-1])
            if old[-1] not in section:
                continue
            value = section.pop(old[-1])
            if new[-1] in self._section(*new[:-1]):
                stands = document.position(new)
                name = ".".join(map(str, new[len(old) - 1 :]))
                self.problems.append(Problem(old, f"is an older name of {name}, which stands at {stands}; keep one"))
            elif value is not None:
                self.written[new] = old
                holder, value = (terms, self._term_of(old, value)) if new[:-1] == _TERM else (section, value)
                holder[new[-1]] = value
        if terms and isinstance(train.setdefault("distill", {}), dict):
            train["distill"] = {**terms, **train["distill"]}

    def _term_of(self, old: KeyPath, value: Any) -> Any:
        """`resp_kd_opt` is the criterion of a term; `contrastive_opt`'s `type` (image, patch, hybrid) is its `mode`."""
        if old[-1] == "resp_kd_opt":
            self.written["train", "distill", "response", "criterion"] = old
            return {"type": "ResponseDistillation", "criterion": value}
        if not isinstance(value, dict):
            return value
        if "mode" in value:
            self.problems.append(Problem((*old, "mode"), "unknown key; write it as type: image, patch or hybrid"))
        self.written["train", "distill", "contrastive", "mode"] = (*old, "type")
        arguments = {key: entry for key, entry in value.items() if key not in ("type", "mode")}
        mode = {"mode": value["type"]} if "type" in value else {}
        return {"type": "HybridContrastive", **mode, **arguments}

    def _refuse(self, training: bool) -> None:
        for key, reason in _REFUSED.items():
            if self._section(*key[:-1]).pop(str(key[-1]), None) not in (None, False):
                self.problems.append(Problem(key, reason))
        for name in SET_BY_THE_COMMAND:
            if name in self.data:
                del self.data[name]
                self.problems.append(Options.unknown_key((name,)))
        if self.data.pop("is_train", training) is not training:
            command = "train.py" if training else "test.py"
            what = f"is set by the command; {command} makes it {str(training).lower()}; remove it"
            self.problems.append(Problem(("is_train",), what))

    def _fill_datasets(self, document: Document) -> None:
        datasets = self._section("datasets")
        for key, block in list(datasets.items()):
            at = ("datasets", key)
            if not _DATASET_KEY.fullmatch(key):
                near = nearest(key.partition("_")[0], ["train", "val", "test"])
                allowed = "allowed: train, train_2, ..., val, val_1, ..., test, test_1, ..."
                self.problems.append(Problem(at, f"unknown key{near}; {allowed}"))
                del datasets[key]
            elif isinstance(block, dict):
                filled = {"phase": key.split("_")[0]}
                if "scale" in self.data:
                    filled["scale"] = self.data["scale"]
                for name, value in filled.items():
                    given = block.get(name, value)
                    if given != value:
                        text = "another" if isinstance(given, (dict, list)) else shown(given)
                        what = f"is filled in: {value!r} here, got {text}; remove it"
                        self.problems.append(Problem((*at, name), what))
                block.update(filled)
                self.problems += _halves(document, key)
                _expand_users(block, ("dataroot", "meta_info"))
        for key, block in datasets.items():
            if key.startswith("train_") and isinstance(block, dict) and isinstance(datasets.get("train"), dict):
                self._fill_further_set(key, block, datasets["train"])

    def _fill_further_set(self, key: str, block: dict[str, Any], first: Mapping[str, Any]) -> None:
        """Batches and patches of a further training set are those of `train`, where it leaves them out."""
        constructor = constructor_of(DATASET_REGISTRY, block)
        parameters = inspect.signature(constructor).parameters if constructor is not None else ()
        names = [*OF_ALL_TRAINING_SETS, *(["gt_size"] if {"gt_size", "opt"} & set(parameters) else [])]
        for name in names:
            if name in first and block.get(name) is None:
                block[name] = first[name]
                self.written["datasets", key, name] = ("datasets", "train", name)

    def _fill_metrics(self) -> None:
        """Sets `crop_border` of the metrics that take one and do not set it: as at the top level, else the scale."""
        border, source = self.data.get("crop_border"), "crop_border"
        if border is None:
            if "scale" not in self.data:
                return
            scale, source = self.data["scale"], "scale"
            is_border = type(scale) is int and 1 < scale <= LARGEST_SCALE  # at 1 nothing is left out
            border = scale if is_border else 0
        for name, block in self._section("val", "metrics").items():
            if not isinstance(block, dict) or "crop_border" in block:
                continue
            function = constructor_of(METRIC_REGISTRY, block)
            if function is not None and "crop_border" in inspect.signature(function).parameters:
                block["crop_border"] = border
                self.written["val", "metrics", name, "crop_border"] = (source,)

    def _find_weights(self, row: str) -> None:
        """Puts the one file that matches a row's `path`, which may hold wildcards, in its place."""
        block = self._section("networks", row)
        path = block.get("path")
        if not isinstance(path, str) or os.path.exists(path):
            return
        matches = sorted(glob.glob(path))
        if len(matches) > 1:
            what = f"{path} matches {len(matches)} files, {matches[0]} and {matches[1]} among them; name one"
            self.problems.append(Problem(("networks", row, "path"), what))
        elif matches:
            block["path"] = matches[0]


def todays_name(option: str) -> str:
    """Today's name of a file of weights that an earlier version has saved a digest of."""
    return option.replace("train.resp_kd_opt.", "train.distill.response.criterion.")


def _apply_debug(data: dict[str, Any], debug: bool, training: bool) -> None:
    """BasicSR's --debug, also for names that begin with 'debug': short intervals, and a name that says so."""
    name = data.get("name")
    if not isinstance(name, str):
        return
    if debug and not name.startswith("debug"):
        data["name"] = f"debug_{name}"
    if training and data["name"].startswith("debug"):
        for section, frequencies in _DEBUG_FREQUENCIES.items():
            if isinstance(data.setdefault(section, {}), dict):
                data[section].update(frequencies)


def _control(found: re.Match[str]) -> str:
    return f"holds the control character U+{ord(found.group()):04X}; take it out"


def _halves(document: Document, key: str) -> Iterator[Problem]:
    """Problems of a folder that was replaced where the other one of its pair is still a base's."""
    block = document.root.value["datasets"].value[key].value
    for half, other in (PAIR, PAIR[::-1]):
        entry, kept = block.get(half), block.get(other)
        if entry is None or entry.value is None or entry.replaced is None or kept is None or kept.value is None:
            continue
        if _SCALE.sub("", str(entry.value)) == _SCALE.sub("", str(entry.replaced.value)):
            continue  # the same images at another scale
        folder = "a list" if isinstance(kept.value, list) else shown(kept.value)
        what = (
            f"replaces the folder of {entry.replaced.position}, but {other} is still {folder} of {kept.position}:"
            " their images would be taken for pairs; give both (again where it is meant)"
        )
        yield Problem(("datasets", key, half), what)


def _expand_users(block: dict[str, Any], beginnings: tuple[str, ...] = ("",)) -> None:
    """Puts the home folder in the place of `~` in texts whose key begins so."""
    for name, value in block.items():
        if name.startswith(beginnings):
            block[name] = _expanded(value)


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(entry) for entry in value]
    if isinstance(value, dict):
        return {**value, "path": _expanded(value["path"])} if "path" in value else value
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value
