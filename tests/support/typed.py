"""Whether a value fits a type, by the check that options are held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from basicsr.utils.registry import find_problems


@cache
def _taking(hint: Any) -> Callable[..., None]:
    def function(value):
        pass

    function.__annotations__ = {"value": hint}
    return function


def type_mismatch(value: Any, hint: Any) -> str | None:
    """Says how `value` fails the type `hint`, or returns None if it fits."""
    problems = find_problems(_taking(hint), {"value": value}, {})
    return problems[0].message if problems else None
