"""YAML's scalars as options files mean them, for reading and for writing, on PyYAML's scanner and parser."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import yaml

from basicsr.utils.text import shortened

MAX_DEPTH = 64
MAX_WRITTEN = 5_000

TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)\Z")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z")
_NAN = re.compile(r"\.(nan|NaN|NAN)\Z")
_UNUSUAL_LINE_ENDS = re.compile("[\r\x85\u2028\u2029]")
_COMMENT = re.compile(r"(?m)(?:^|(?<= ))#[^'\"\n]*$")
_RARE = re.compile(r"[^\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff]|[?!|>%&*@`]")
_LARGEST_FAST = 10_000


class _Limited(yaml.composer.Composer, yaml.resolver.BaseResolver):
    """PyYAML's composer with YAML 1.2's plain scalars and limits on depth and number of nodes."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str, written: int = 0) -> None:
        super().__init__()
        yaml.resolver.BaseResolver.__init__(self)
        self.depth = 0
        self.written = written

    def compose_node(self, parent: Any, index: Any) -> Any:
        """PyYAML's, within the limits."""
        self.depth += 1
        self.written += 1
        problem = ""
        if self.depth > MAX_DEPTH:
            problem = f"is nested deeper than {MAX_DEPTH} levels"
        elif self.written > MAX_WRITTEN:
            problem = f"more than {MAX_WRITTEN} keys and values; is it an options file?"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)  # type: ignore[attr-defined]
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Loader(_Limited, yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    """Scans and parses in Python, with PyYAML's messages."""

    def __init__(self, text: str, written: int = 0) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        super().__init__(text, written)


if yaml.__with_libyaml__:
    from yaml._yaml import CParser

    class FastLoader(_Limited, CParser):
        """Scans and parses by libyaml, six times as fast."""

        def __init__(self, text: str, written: int = 0) -> None:
            CParser.__init__(self, text)
            super().__init__(text, written)


def parse(text: str, written: int = 0) -> tuple[yaml.Node | None, int]:
    """The text's one document, and `written` plus the number of its keys and values.

    libyaml parses what is written as usual; PyYAML's own parser all else, as the two differ in rare signs, and what is
    wrong, for its messages.

    Raises:
        yaml.YAMLError: it is not YAML, nested too deeply, or too much.
    """
    if yaml.__with_libyaml__ and len(text) <= _LARGEST_FAST and not _RARE.search(_COMMENT.sub("", text)):
        with suppress(yaml.YAMLError):
            fast = FastLoader(text, written)
            return fast.get_single_node(), fast.written
    loader = Loader(text, written)
    return loader.get_single_node(), loader.written


def scalar_value(node: yaml.ScalarNode) -> tuple[Any, str | None]:
    """The value of a scalar, and what is wrong with the way it is written."""
    text: str = node.value
    kind = node.tag.removeprefix(TAG)
    if kind in ("str", "merge"):
        bare_none = text == "None" and not node.style
        return text, "None is text in YAML; write ~ for nothing, or quote it" if bare_none else None
    if kind == "null":
        return None, None if text in ("", "~") or text.lower() == "null" else "!!null takes ~ or nothing"
    if kind == "bool":
        return text.lower() == "true", None if text.lower() in ("true", "false") else "!!bool takes true or false"
    if kind not in ("int", "float"):
        return text, f"!!{kind} is for lists or mappings; write the value plainly"
    if _LEADING_ZERO.match(text):
        bare = shortened(text.lstrip("+-0_") or "0")
        return text, f"{shortened(text)} has a leading zero: write {bare} for the number, '{shortened(text)}' for text"
    return _number(text, kind)


def _number(text: str, kind: str) -> tuple[Any, str | None]:
    shown = shortened(text)
    if _INFINITE.match(text):
        return (-math.inf if text.startswith("-") else math.inf), None
    if _NAN.match(text):
        return text, ".nan is not a number to compute with; write a number, or ~ for nothing"
    if _INT.match(text):
        digits = text.replace("_", "")
        whole = int(digits) if len(digits) < 30 else None
        if kind == "int" and (whole is None or not fits_64_bits(whole)):
            return text, f"{shown} is too large for a whole number, which has 64 bits; quote it if it is text"
        if whole is not None and (kind == "int" or _is_exact(whole)):
            return whole, None
        text = digits
    if not _FLOAT.match(text) or kind == "int":
        return text, f"'{shown}' is not a number that !!{kind} can hold"
    number = float(text)
    if math.isinf(number):
        return text, f"{shown} is too large for a number"
    is_whole = "e" in text.lower() and number.is_integer() and _is_exact(number)
    return int(number) if is_whole else number, None


def fits_64_bits(number: int) -> bool:
    """Whether torch and numpy can hold a whole number."""
    return -(2**63) <= number < 2**63


def _is_exact(number: float) -> bool:
    return abs(number) < 2**53


for _tag, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", rf"^({_INT.pattern}|{_LEADING_ZERO.pattern})", list("-+0123456789.")),
    ("float", rf"^({_FLOAT.pattern}|{_INFINITE.pattern}|{_NAN.pattern})", list("-+0123456789.")),
    ("merge", r"^<<$", ["<"]),
):
    _Limited.add_implicit_resolver(TAG + _tag, re.compile(_pattern), _first)


class _Dumper(yaml.SafeDumper):
    """Quotes all text that PyYAML or `Loader` would read as something else."""

    yaml_implicit_resolvers = {
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers]
        for first, resolvers in {**yaml.SafeDumper.yaml_implicit_resolvers, **Loader.yaml_implicit_resolvers}.items()
    }


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """PyYAML would read line ends other than LF, written as they are, as LF or as a space."""
    return dumper.represent_scalar(TAG + "str", text, style='"' if _UNUSUAL_LINE_ENDS.search(text) else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(TAG + "null", re.compile("^None$"), ["N"])


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain dicts, lists and scalars as YAML that `load_yaml` reads back equal."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
