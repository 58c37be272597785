"""From an options file and a command line to typed options, or to one message that names every mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr.config.checks import find_conflicts
from basicsr.config.command_line import gathered
from basicsr.config.command_line import parse_arguments as parse_arguments
from basicsr.config.component_blocks import find_component_problems
from basicsr.config.normalise import (
    apply_debug,
    fill_scale,
    normalise,
    refuse_control_characters,
    written_value,
)
from basicsr.config.paths import check_paths, nothing_left, without_missing
from basicsr.config.schema import Options, thaw
from basicsr.config.typing import typed_options
from basicsr.config.warnings import find_doubts
from basicsr.config.yaml_entries import lines_of
from basicsr.config.yaml_files import (
    OVERRIDE_FILE,
    Document,
    Entry,
    KeyPath,
    LocatedProblem,
    Position,
    document_from_mapping,
    dump_yaml,
    load_yaml,
)
from basicsr.utils.errors import OptionsError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.text import one_line, shown


def load_options(
    source: str | Path | Mapping[str, Any],
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
        source: an options file, or its content.
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
    problems, options = _check(document, training, debug, root, paths)
    if problems or options is None:
        raise OptionsError(_report(problems, source))
    if (finding := nothing_left(options)) is not None:
        raise OptionsError(_report([LocatedProblem(document.position(finding[0]), *finding)], source))
    _tell(_doubts(document, options), warn)
    return options


def no_warning(line: str) -> None:
    """`warn` of options that were loaded, and warned of, before."""


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
    scales = written_value(document, "scale")
    if not isinstance(scales, list):
        return [load_options(source, overrides=overrides, training=False, root=root, paths=paths, warn=warn)]
    values = document.data()["scale"]
    whole = all(type(value) is int and value > 0 for value in values)
    if not values or not whole or len(set(values)) < len(values):
        message = "a list of scales must hold whole numbers of at least 1, at least one and each once, as [2, 3, 4]"
        mistake = LocatedProblem(document.position(("scale",)), ("scale",), f"{message}, got {shown(values)}")
        fill_scale(document, next((value for value in values if type(value) is int and value > 0), 1))
        document.root.value["scale"] = Entry(None, mistake.position)
        others, _ = _check(document, False, False, root, paths)
        raise OptionsError(_report([mistake, *(other for other in others if other.key != ("scale",))], source))
    problems: list[LocatedProblem] = []
    loaded: list[Options] = []
    empty: list[LocatedProblem] = []
    doubts: list[LocatedProblem] = []
    for value in values:
        document = _read(source, [*overrides, f"scale={value}"])
        found, options = _check(document, False, False, root, paths)
        problems += found
        if options is not None:
            finding = nothing_left(options)
            empty += [LocatedProblem(document.position(finding[0]), *finding)] if finding else []
            doubts += _doubts(document, options)
            loaded.append(options)
    if problems or len(empty) == len(values):
        raise OptionsError(_report(problems or empty, source))
    if len({options.name for options in loaded}) > 1:
        message = "must be the same for all scales, which share a folder; take {scale} out"
        raise OptionsError(_report([LocatedProblem(document.position(("name",)), ("name",), message)], source))
    _tell(doubts, warn)
    return loaded


def _doubts(document: Document, options: Options) -> list[LocatedProblem]:
    return [LocatedProblem(document.position(key), key, message) for key, message in find_doubts(options)]


def _tell(doubts: list[LocatedProblem], warn: Callable[[str], None] | None) -> None:
    for line in lines_of(doubts):
        (warn or get_root_logger().warning)(line)


def _read(source: str | Path | Mapping[str, Any], overrides: Sequence[str]) -> Document:
    if isinstance(source, Mapping):
        document = document_from_mapping(source, keep_going=True)
    else:
        document = load_yaml(source, keep_going=True)
    position = Position(OVERRIDE_FILE)
    for override, split in gathered(overrides):
        try:
            if split is not None:
                raise OptionsError(one_line(f"{OVERRIDE_FILE}: '{override}': {split}"))
            document.set(override)
        except OptionsError as error:
            for line in str(error).splitlines():
                message = line.removeprefix(f"{OVERRIDE_FILE}: ")
                document.problems.append(LocatedProblem(position, (), message, is_of_value=False))
    return document


def _check(
    document: Document, training: bool, debug: bool, root: Path | None, paths: bool
) -> tuple[list[LocatedProblem], Options | None]:
    """Types a document and checks it; the mistakes, and the options where there are any."""
    fill_scale(document)
    apply_debug(document, debug, training)
    problems = document.problems + refuse_control_characters(document)
    problems += normalise(document, training)
    data = _with_tuples(document.data())
    data["is_train"] = training
    data["root"] = root or Path()
    data["sources"] = tuple(sorted({position.file for position in document.positions().values()}))

    typed = typed_options(data)
    options = typed.options
    findings = find_component_problems(data) + typed.findings
    if options is not None:
        later = find_conflicts(options, written_value(document, "model_type")) if typed.has_scale else []
        if paths:
            options, missing = without_missing(options, check_paths(options))
            later += [finding for finding in missing if typed.has_scale or "{scale}" not in finding[1]]
        findings += [finding for finding in later if not typed.hides(finding[0])]
    known = {problem.key for problem in problems if problem.is_of_value}
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
    lines = lines_of(problems)
    name = "the options" if isinstance(source, Mapping) else str(source)
    count = "one mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return "\n".join([f"{name}: {count}", *lines])
