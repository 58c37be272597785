"""Brings options as they were written, by today's or by BasicSR's users, into the one form that is checked."""

from __future__ import annotations

import glob
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from basicsr.config.component_blocks import constructor_of
from basicsr.config.schema import SET_BY_THE_COMMAND, Options
from basicsr.config.yaml_entries import PAIRS
from basicsr.config.yaml_files import Document, KeyPath
from basicsr.utils.ranges import LARGEST_SCALE
from basicsr.utils.registry import METRIC_REGISTRY, Problem
from basicsr.utils.text import nearest, shown

# All control characters but tab and line ends, and halves of surrogate pairs, which UTF-8 cannot hold.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_CONTROL_OR_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCALE = re.compile(r"[xX](\d+|\{scale\})")
_DATASET_KEY = re.compile(r"train|(val|test)(_\w+)?")
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
    ("train", "use_grad_clip"): (
        "does not say how large a gradient may be; write grad_clip: 0.01 (Restormer's and NAFNet's norm)"
    ),
}


class Normalised:
    """Options in today's form.

    Attributes:
        data: dicts, lists and scalars.
        problems: what was refused and left out.
        written: by today's key, or by one around it, the key that was written in its place.
    """

    def __init__(self, document: Document, training: bool, *, debug: bool = False, scale: int | None = None) -> None:
        self.data = document.data()
        self.problems: list[Problem] = []
        self.written: dict[KeyPath, KeyPath] = {}
        given = self.data.get("scale") if scale is None else scale
        if type(given) is int:
            self.data = _with_scale({**self.data, "scale": given}, given)
        _apply_debug(self.data, debug, training)
        self.data = self._cleaned(self.data, ())
        self._rename(document)
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

    def _section(self, *key: str | int) -> dict[str, Any]:
        """The mapping at `key`; an empty one where there is none."""
        value: Any = self.data
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, dict) else {}

    def _cleaned(self, value: Any, key: KeyPath) -> Any:
        """The value without texts and keys that hold what no file's name and no terminal can show."""
        if isinstance(value, str) and (found := _CONTROL.search(value)):
            self.problems.append(Problem(key, _control(found)))
            return None
        if isinstance(value, list):
            return [self._cleaned(inner, (*key, index)) for index, inner in enumerate(value)]
        if not isinstance(value, dict):
            return value
        for name in value:
            if found := _CONTROL_OR_LINE.search(name):
                self.problems.append(Problem((*key, name), f"unknown key: {_control(found)}"))
        names = [name for name in value if not _CONTROL_OR_LINE.search(name)]
        return {name: self._cleaned(value[name], (*key, name)) for name in names}

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
                allowed = "allowed: train, val, val_1, ..., test, test_1, ..."
                self.problems.append(Problem(at, f"unknown key{near}; {allowed}"))
                del datasets[key]
            elif isinstance(block, dict):
                filled = {"phase": key.split("_")[0]}
                if "scale" in self.data:
                    filled["scale"] = self.data["scale"]
                for name, value in filled.items():
                    if name in block and block[name] != value:
                        given = shown(block[name]) if not isinstance(block[name], (dict, list)) else "another"
                        self.problems.append(
                            Problem((*at, name), f"is filled in: {value!r} here, got {given}; remove it")
                        )
                block.update(filled)
                self.problems += _halves(document, key)
                _expand_users(block, ("dataroot", "meta_info"))

    def _fill_metrics(self) -> None:
        """Sets `crop_border` of the metrics that take one and do not set it: to the top-level one, else to the scale.

        At scale 1 the network sees all of what a border would hide: nothing is left out.
        """
        border, source = self.data.get("crop_border"), "crop_border"
        if border is None:
            if "scale" not in self.data:
                return
            scale, source = self.data["scale"], "scale"
            border = scale if type(scale) is int and 1 < scale <= LARGEST_SCALE else 0  # else scale is refused, or 1
        for name, block in self._section("val", "metrics").items():
            if isinstance(block, dict) and "crop_border" not in block and _takes_crop_border(block):
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


def _with_scale(value: Any, scale: int) -> Any:
    """The value with the scale in the place of `{scale}`, as a number where that is all of a text."""
    if isinstance(value, str):
        return scale if value == "{scale}" else value.replace("{scale}", str(scale))
    if isinstance(value, dict):
        return {key: _with_scale(inner, scale) for key, inner in value.items()}
    return [_with_scale(inner, scale) for inner in value] if isinstance(value, list) else value


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
    for pair in PAIRS:
        for half, other in (pair, pair[::-1]):
            entry, kept = block.get(half), block.get(other)
            if entry is None or entry.replaced is None or kept is None or kept.value is None:
                continue
            if _SCALE.sub("", str(entry.value)) == _SCALE.sub("", str(entry.replaced.value)):
                continue  # the same images at another scale
            folder = "a list" if isinstance(kept.value, list) else shown(kept.value)
            what = (
                f"replaces the folder of {entry.replaced.position}, but {other} is still {folder} of {kept.position}:"
                " their images would be taken for pairs; give both (again where it is meant)"
            )
            yield Problem(("datasets", key, half), what)


def _takes_crop_border(block: Mapping[str, Any]) -> bool:
    function = constructor_of(METRIC_REGISTRY, block)
    return function is not None and "crop_border" in inspect.signature(function).parameters


def _expand_users(block: dict[str, Any], beginnings: tuple[str, ...] = ("",)) -> None:
    """Puts the home folder in the place of `~` in texts whose key begins so."""
    for name, value in block.items():
        if isinstance(value, str) and value.startswith("~") and name.startswith(beginnings):
            block[name] = os.path.expanduser(value)
