"""From an options file and a command line to typed options, or to one message that names every mistake."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from basicsr.config.checks import find_conflicts, missing_paths, nothing_left, without_missing
from basicsr.config.command_line import gathered
from basicsr.config.command_line import parse_arguments as parse_arguments
from basicsr.config.component_blocks import UNCHECKED
from basicsr.config.normalise import OLDER_NAMES, Normalised
from basicsr.config.schema import Options, thaw
from basicsr.config.warnings import find_warnings
from basicsr.config.yaml_entries import lines_of
from basicsr.config.yaml_files import (
    OVERRIDE_FILE,
    Document,
    KeyPath,
    LocatedProblem,
    Position,
    document_from_mapping,
    document_from_text,
    dump_yaml,
    load_yaml,
)
from basicsr.utils.errors import OptionsError
from basicsr.utils.logger import get_root_logger
from basicsr.utils.registry import REQUIRED, Problem, problems_of
from basicsr.utils.text import one_line

# What stands for required values that are missing or wrong while the rest is checked.
_STAND_INS: dict[KeyPath, Any] = {
    ("name",): "name",
    ("scale",): 1,
    ("train", "total_iter"): 1,
    ("train", "optim_g"): {"type": "Adam"},
}


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
    checked = _Checked(_read(source, overrides), training, debug=debug, root=root, paths=paths)
    options = checked.options
    if checked.problems or options is None:
        raise OptionsError(_report(checked.problems, source))
    if nothing := checked.nothing_left():
        raise OptionsError(_report([nothing], source))
    _warn(checked.warnings(), warn)
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
    scales = document.data().get("scale")
    if not isinstance(scales, list):
        return [load_options(source, overrides=overrides, training=False, root=root, paths=paths, warn=warn)]
    valid = [value for value in scales if type(value) is int and value > 0]
    if not scales or len(set(valid)) < len(scales):
        what = "a list of scales must hold whole numbers of at least 1, at least one and each once, as [2, 3, 4]"
        mistake = [Problem(("scale",), what, scales)]
        checked = _Checked(document, False, root=root, paths=paths, scale=(valid or [1])[0], known=mistake)
        raise OptionsError(_report(checked.problems, source))
    each = [_Checked(document, False, root=root, paths=paths, scale=value) for value in scales]
    problems = [problem for checked in each for problem in checked.problems]
    empty = [checked.nothing_left() for checked in each]
    if problems or all(empty):
        raise OptionsError(_report(problems or [problem for problem in empty if problem], source))
    loaded = [checked.options for checked in each if checked.options is not None]
    if len({options.name for options in loaded}) > 1:
        message = "must be the same for all scales, which share a folder; take {scale} out"
        raise OptionsError(_report([each[0].located(("name",), message)], source))
    _warn([warning for checked in each for warning in checked.warnings()], warn)
    return loaded


class _Checked:
    """A document as options, and what is wrong with it.

    Attributes:
        problems: the mistakes, each with its place.
        options: what is right of it; None where not even that makes options.
    """

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
        data = _with_tuples(self._normalised.data)
        data["is_train"] = training
        data["root"] = root or Path()
        data["sources"] = tuple(sorted({position.file for position in document.positions().values()}))
        problems, dropped, self.options = _typed(data)
        problems = [*known, *self._normalised.problems, *problems]
        has_scale = not any(problem.key == ("scale",) for problem in problems)
        if self.options is not None:
            wrong = [problem.key for problem in problems]
            model_type = document.data().get("model_type")
            later = find_conflicts(self.options, model_type, wrong) if has_scale else []
            if paths:
                self.options, missing = without_missing(self.options, missing_paths(self.options))
                later += [finding for finding in missing if has_scale or "{scale}" not in finding[1]]
            problems += [Problem(*finding) for finding in later if not _follows(finding[0], dropped)]
        self.problems = list(document.problems)
        told = {problem.key for problem in self.problems if problem.is_of_value}
        for problem in problems:
            key = self._normalised.as_written(problem.key)
            if key not in told:
                self.problems.append(self.located(problem.key, self._as_written(problem).message))
                told.add(key)

    def _as_written(self, problem: Problem) -> Problem:
        """The problem with its key, and those that are allowed beside it, as the user writes them."""
        rename = self._normalised.as_written
        allowed, around = problem.allowed, problem.key[:-1]
        if problem.is_unknown_key and allowed is not None:
            written = [rename((*around, name)) for name in allowed]
            beside = rename(around)
            allowed = [str(key[-1]) if key[:-1] == beside else name for key, name in zip(written, allowed, strict=True)]
        return replace(problem, key=rename(problem.key), allowed=allowed)

    def located(self, key: KeyPath, message: str) -> LocatedProblem:
        """A problem with the key as it was written, and where."""
        written = self._normalised.as_written(key)
        return LocatedProblem(self._document.position(written), written, message)

    def nothing_left(self) -> LocatedProblem | None:
        """The mistake where `skip_missing` left nothing to test."""
        finding = nothing_left(self.options) if self.options is not None else None
        return self.located(*finding) if finding is not None else None

    def warnings(self) -> list[LocatedProblem]:
        """What is allowed and yet looks like a slip."""
        return [self.located(*warning) for warning in find_warnings(self.options)] if self.options else []


def _typed(data: dict[str, Any]) -> tuple[list[Problem], Collection[KeyPath], Options | None]:
    """The problems, the keys that are left out or replaced so that the rest can be checked, and this rest."""
    try:
        return [], [], Options.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error, data)
    changes: dict[KeyPath, Any] = {}  # None leaves the key out
    options = None
    while options is None and () not in changes:
        try:
            options = Options.model_validate(_changed(data, changes), context=UNCHECKED)
        except ValidationError as error:
            before = dict(changes)
            for problem in problems_of(error, data):
                is_missing = problem.what == REQUIRED
                if is_missing and (stand_in := _stand_in(problem.key)) is not None:
                    changes[problem.key] = stand_in
                else:
                    key = problem.key[:-1] if is_missing else problem.key
                    around = itertools.takewhile(lambda part: isinstance(part, str), key)  # no parts of lists
                    changes.setdefault(tuple(around), None)
            assert changes != before, f"still wrong with {changes}: {error}"
    for index, problem in enumerate(problems):
        if problem.key[:1] == ("datasets",) and problem.key[-1] == "scale":  # which is the top-level one
            problems[index] = replace(problem, key=("scale",))
    return problems, changes, options


def _stand_in(key: KeyPath) -> Any:
    if len(key) == 3 and key[0] == "datasets":
        return {"name": key[1], "scale": 1}.get(str(key[2]))
    return _STAND_INS.get(key)


def _follows(key: KeyPath, changed: Collection[KeyPath]) -> bool:
    """Whether a finding at `key` only follows from a key that was left out because it is wrong."""
    is_nameless = any(gone[:1] == ("datasets",) and gone[-1] == "name" for gone in changed)
    if is_nameless and (key[:3] == ("val", "best", "dataset") or key[:2] == ("report", "regions")):
        return True
    return any(key[: len(gone)] == gone or gone[: len(key)] == key for gone in changed)


def _changed(data: dict[str, Any], changes: Mapping[KeyPath, Any]) -> dict[str, Any]:
    copy = deepcopy(data)
    for key, value in changes.items():
        holder: Any = copy
        for part in key[:-1]:
            holder = holder.get(part) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and value is None:
            holder.pop(key[-1], None)
        elif isinstance(holder, dict):
            holder[key[-1]] = value
    return copy


def _warn(warnings: list[LocatedProblem], warn: Callable[[str], None] | None) -> None:
    for line in lines_of(warnings):
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


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_with_tuples(entry) for entry in value)
    return value


def _report(problems: list[LocatedProblem], source: str | Path | Mapping[str, Any]) -> str:
    lines = lines_of(problems)
    name = "the options" if isinstance(source, Mapping) else str(source)
    count = "one mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
    return "\n".join([f"{name}: {count}", *lines])
