"""What must hold between the options and the disk."""

from __future__ import annotations

import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from basicsr.config.component_blocks import Finding, further_teachers
from basicsr.config.schema import FrozenMapping, Options
from basicsr.config.warnings import num_processors
from basicsr.config.yaml_entries import KeyPath
from basicsr.utils.text import shortened


class Missing(NamedTuple):
    """A file or folder that is not there.

    Attributes:
        key: which names it.
        message: what to say.
        above: the first folder of its path that is not there, where this is not the path itself.
    """

    key: KeyPath
    message: str
    above: str | None = None


def check_paths(options: Options) -> list[Missing]:
    """Looks whether the files and folders that the command will read are there."""
    findings: list[Missing] = []
    phases = ("train", "val") if options.is_train else ("val", "test")
    for key, dataset in options.datasets_of(*phases).items():
        findings += _missing_cache(key, dataset.arguments.get("teacher_cache"))
        for name, value in dataset.arguments.items():
            for path in _paths(value) if name.startswith(("dataroot", "meta_info")) else ():
                findings += _missing(("datasets", key, name), path, "folder" if name.startswith("dataroot") else "file")
        if options.is_train:
            findings += _too_many_workers(("datasets", key, "num_worker_per_gpu"), dataset.num_worker_per_gpu)
    for name in _files_read(options):
        findings += _missing(("path", name), getattr(options.path, name), "file")
    for row, entry in options.networks.items() if not options.is_train else ():
        findings += _missing(("networks", row, "path"), entry.path, "file")
    for name, block in options.train.method_blocks.items() if options.train is not None else ():
        for number, teacher in further_teachers(block):
            at = ("train", "distill", name, "teachers", number, "path")
            findings += _missing(at, teacher.get("path"), "file")
    return findings


def without_missing(options: Options, findings: list[Missing]) -> tuple[Options, list[Finding]]:
    """With `skip_missing`, leaves out the datasets and networks whose files `check_paths` did not find.

    Returns:
        The options, which say in `skipped` what was left out, and the findings that remain mistakes; those that lack
        one folder have one message.
    """
    if options.is_train or not options.skip_missing:
        return options, _joined(findings)
    left: dict[str, dict[str, Any]] = {"datasets": dict(options.datasets), "networks": dict(options.networks)}
    skipped, mistakes = [], []
    for key, message, _ in findings:
        section, name = str(key[0]), str(key[1])
        if section not in left:
            mistakes.append((key, message))
        elif name in left[section]:
            label = options.datasets[name].name if section == "datasets" else name
            skipped.append(f"{label}: {message.split(';')[0]}")
            del left[section][name]
    update: dict[str, Any] = {section: FrozenMapping(content) for section, content in left.items()}
    if options.networks and not left["networks"]:
        update["network_g"] = None  # it describes the rows that had no network of their own, and is no row itself
    return options.model_copy(update={**update, "skipped": tuple(skipped)}), mistakes


def _joined(findings: list[Missing]) -> list[Finding]:
    counts = Counter(finding.above for finding in findings)
    return [
        (key, message if above is None or counts[above] < 3 else f"lies in {above}, which is not there; check its path")
        for key, message, above in findings
    ]


def nothing_left(options: Options) -> Finding | None:
    """What to say where `skip_missing` left nothing to test, else None."""
    if not options.skipped or (options.datasets_of("val", "test") and (options.networks or options.network_g)):
        return None
    section = "networks" if options.datasets_of("val", "test") else "datasets"
    return (section,), f"none of them is there at x{options.scale}: {'; '.join(options.skipped)}"


def _files_read(options: Options) -> list[str]:
    if not options.is_train:
        return [] if options.networks else ["pretrain_network_g"]
    names = ["pretrain_network_g"]  # resume_state is looked for when it is clear that nothing newer is resumed
    if options.model_type == "KDModel":
        names.append("pretrain_network_t")
    if options.train is not None and options.train.adversarial is not None:
        names.append("pretrain_network_d")
    return names


def _paths(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, tuple) else (value,)
    return tuple(path for path in values if isinstance(path, str))


def _too_many_workers(key: KeyPath, workers: int) -> list[Missing]:
    """Refuses what would have a machine start processes until it stands still."""
    processors = num_processors()
    most = max(64, 16 * processors)
    if workers <= most:
        return []
    return [Missing(key, f"is {workers}, but this machine has {processors} processors; take {processors}")]


def _missing_cache(key: str, folder: Any) -> list[Missing]:
    if not isinstance(folder, str) or os.path.isdir(folder):
        return []
    command = "python scripts/cache_teacher.py -opt FILE"
    message = f"there is no folder {shortened(folder, 500)}; make it by {command}"
    return [Missing(("datasets", key, "teacher_cache"), message)]


def _missing(key: KeyPath, path: str | None, kind: str) -> list[Missing]:
    if path is None or os.path.exists(path):  # pathlib's raises where a name is too long or not to be looked at
        return []
    parent = Path(path).absolute().parent
    folders = [str(folder) for folder in (parent, *parent.parents)]
    nearest_there = next((folder for folder in folders if os.path.isdir(folder)), "/")
    above = next((after for after, folder in pairwise(folders) if folder == nearest_there), None)
    hint = "; write ~ for none" if path.lower() in ("none", "null") else f"; {nearest_there} is there, the rest is not"
    return [Missing(key, f"there is no {kind} {shortened(path, 500)}{hint}", above and shortened(above, 500))]
