"""What must hold between the options and the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from basicsr.utils.options_components import Finding, further_teachers
from basicsr.utils.options_schema import FrozenMapping, Options
from basicsr.utils.yaml_entries import KeyPath, shortened


def check_paths(options: Options) -> list[Finding]:
    """Looks whether the files and folders that the command will read are there.

    Returns:
        The key of each missing one and what is wrong there.
    """
    findings: list[Finding] = []
    phases = ("train", "val") if options.is_train else ("val", "test")
    for key, dataset in options.datasets_of(*phases).items():
        findings += _missing_cache(key, dataset.arguments.get("teacher_cache"))
        for name, value in dataset.arguments.items():
            for path in _paths(value) if name.startswith(("dataroot", "meta_info")) else ():
                findings += _missing(("datasets", key, name), path, "folder" if name.startswith("dataroot") else "file")
    for name in _files_read(options):
        findings += _missing(("path", name), getattr(options.path, name), "file")
    for row, entry in options.networks.items() if not options.is_train else ():
        findings += _missing(("networks", row, "path"), entry.path, "file")
    for name, block in options.train.method_blocks.items() if options.train is not None else ():
        for number, teacher in further_teachers(block):
            at = ("train", "distill", name, "teachers", number, "path")
            findings += _missing(at, teacher.get("path"), "file")
    return findings


def without_missing(options: Options, findings: list[Finding]) -> tuple[Options, list[Finding]]:
    """With `skip_missing`, leaves out the datasets and networks whose files `check_paths` did not find.

    Returns:
        The options, which say in `skipped` what was left out, and the findings that remain mistakes.
    """
    if options.is_train or not options.skip_missing:
        return options, findings
    left: dict[str, dict[str, Any]] = {"datasets": dict(options.datasets), "networks": dict(options.networks)}
    skipped, mistakes = [], []
    for key, message in findings:
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


def _missing_cache(key: str, folder: Any) -> list[Finding]:
    if not isinstance(folder, str) or os.path.isdir(folder):
        return []
    command = "python scripts/cache_teacher.py -opt FILE"
    return [(("datasets", key, "teacher_cache"), f"there is no folder {shortened(folder, 500)}; make it by {command}")]


def _missing(key: KeyPath, path: str | None, kind: str) -> list[Finding]:
    if path is None or os.path.exists(path):  # pathlib's raises where a name is too long or not to be looked at
        return []
    parent = Path(path).absolute().parent
    nearest_there = next((str(folder) for folder in (parent, *parent.parents) if os.path.isdir(folder)), "/")
    hint = "; write ~ for none" if path.lower() in ("none", "null") else f"; {nearest_there} is there, the rest is not"
    return [(key, f"there is no {kind} {shortened(path, 500)}{hint}")]
