"""From an options file and a command line to typed options, or to one message that names every mistake."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from basicsr.utils.components import describe
from basicsr.utils.errors import OptionsError
from basicsr.utils.options_checks import check_paths, find_conflicts, nothing_left, without_missing
from basicsr.utils.options_components import Finding, find_component_problems
from basicsr.utils.options_normalise import apply_debug, fill_scale, normalise, unknown_key, written_value
from basicsr.utils.options_schema import Options, thaw
from basicsr.utils.yaml_loader import (
    Document,
    KeyPath,
    LocatedProblem,
    document_from_mapping,
    dump_yaml,
    load_yaml,
)


def parse_arguments(argv: Sequence[str] | None, training: bool) -> argparse.Namespace:
    """Reads the command line of train.py or test.py, which is BasicSR's.

    Args:
        argv: arguments without the program's name; those of the process where None.
        training: whether this is train.py.

    Returns:
        `opt` (path), `launcher`, `force_yml` (list of `a:b=value`), and in training `auto_resume` and `debug`.
        `local_rank` is only accepted: launchers pass it on in the environment.
    """
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Trains a network, with or without a teacher." if training else "Tests networks on benchmarks.",
    )
    add = parser.add_argument
    add("-opt", "--opt", type=str, required=True, metavar="FILE", help="options file (YAML)")
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started the ranks")
    if training:
        add("--auto_resume", action="store_true", help="continue from the newest training state, if any")
        add("--debug", action="store_true", help="name 'debug_...', log every, evaluate and save each 8th iteration")
    add("--local_rank", "--local-rank", type=int, default=0, help="accepted and ignored")
    add(
        "--force_yml",
        nargs="+",
        action="extend",
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
    document = _read(source, overrides)
    problems, options = _check(document, training, debug, root, paths)
    if problems or options is None:
        raise OptionsError(_report(problems, source))
    if (finding := nothing_left(options)) is not None:
        raise OptionsError(_report([LocatedProblem(document.position(finding[0]), *finding)], source))
    return options


def load_test_options(
    source: str | Path | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    root: Path | None = None,
    paths: bool = True,
) -> list[Options]:
    """Reads test.py's options, whose `scale` may be a list: one `Options` for each scale, `{scale}` filled in.

    Args:
        source, overrides, root, paths: as for `load_options`.

    Raises:
        OptionsError: one line for each mistake, over all scales.
    """
    document = _read(source, overrides)
    scales = written_value(document, "scale")
    if not isinstance(scales, list):
        return [load_options(source, overrides=overrides, training=False, root=root, paths=paths)]
    values = [entry.value for entry in scales]
    whole = all(type(value) is int and value > 0 for value in values)
    if not values or not whole or len(set(values)) < len(values):
        message = "a list of scales must hold whole numbers of at least 1, at least one and each once, as [2, 3, 4]"
        position = document.position(("scale",))
        raise OptionsError(_report([LocatedProblem(position, ("scale",), message)], source))
    problems: list[LocatedProblem] = []
    loaded: list[Options] = []
    empty: list[LocatedProblem] = []
    for value in values:
        document = _read(source, [*overrides, f"scale={value}"])
        found, options = _check(document, False, False, root, paths)
        problems += found
        if options is not None:
            finding = nothing_left(options)
            empty += [LocatedProblem(document.position(finding[0]), *finding)] if finding else []
            loaded.append(options)
    if problems or len(empty) == len(values):
        raise OptionsError(_report(problems or empty, source))
    if len({options.name for options in loaded}) > 1:
        message = "must be the same for all scales, which share a folder; take {scale} out"
        raise OptionsError(_report([LocatedProblem(document.position(("name",)), ("name",), message)], source))
    return loaded


def _read(source: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Document:
    document = document_from_mapping(source) if isinstance(source, Mapping) else load_yaml(source)
    for override in overrides:
        document.set(override)
    return document


def _check(
    document: Document, training: bool, debug: bool, root: Path | None, paths: bool
) -> tuple[list[LocatedProblem], Options | None]:
    """Types a document and checks it; the mistakes, and the options where there are any."""
    fill_scale(document)
    apply_debug(document, debug, training)
    problems = list(document.problems)
    problems += normalise(document, training)
    data = _with_tuples(document.data())
    data["is_train"] = training
    data["root"] = root or Path()

    typed_findings, dropped, options = _typed(data)
    findings = find_component_problems(data) + typed_findings
    if options is not None:
        later = find_conflicts(options, written_value(document, "model_type"))
        if paths:
            options, missing = without_missing(options, check_paths(options))
            later += missing
        findings += [finding for finding in later if not _hidden(finding[0], dropped)]
    known = {problem.key for problem in problems}
    for key, message in findings:
        if key not in known:
            problems.append(_located(document, data, key, message))
            known.add(key)
    return problems, options


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
    options = None
    while options is None and () not in dropped:
        try:
            options = Options.model_validate(_without(data, dropped))
        except ValidationError as error:
            more: list[KeyPath] = []
            for item in error.errors():
                key, message = _translated(item, data)
                is_missing = item["type"] == "missing"
                if not (is_missing and key in dropped):
                    told = ("scale",) if key[0] == "datasets" and key[-1] == "scale" else key
                    findings.setdefault(told, []).append(message)
                more.append(_droppable(key[:-1] if is_missing else key))
            assert not set(more) <= set(dropped), f"still wrong without {dropped}: {error}"
            dropped += more
    sentences = [(key, " or ".join(dict.fromkeys(messages))) for key, messages in findings.items()]
    return sentences, dropped, options


def _translated(item: Any, data: dict[str, Any]) -> Finding:
    """A validator's error as the key of the options it is about, and a sentence."""
    if item["type"] == "missing":
        return tuple(item["loc"]), "is required"
    key: KeyPath = ()
    value: Any = data
    for part in item["loc"]:
        inside = isinstance(value, dict) and part in value
        if not inside and not (isinstance(value, tuple) and isinstance(part, int)):
            break
        key, value = (*key, part), value[part]
    if item["type"] == "extra_forbidden":
        return key, unknown_key(key)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return key, message
    if item["type"] == "model_type":
        message = "Input should be a mapping"
    return key, describe(message, value)


def _droppable(key: KeyPath) -> KeyPath:
    """The key itself, or the list around it."""
    return tuple(itertools.takewhile(lambda part: isinstance(part, str), key))


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
