"""The options files that are shipped, each with the command it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

OPTIONS = Path(__file__).resolve().parents[2] / "options"
SHIPPED = sorted(file for folder in ("train", "recipes", "test") for file in OPTIONS.glob(f"{folder}/*.yml"))


def pytest_generate_tests(metafunc):
    """Runs a test that asks for `shipped` once for every shipped file.

    One that asks for `shipped_with_new_keys` sees the files of x3 and x4, which have the keys of x2, only at length.
    """
    if "shipped" in metafunc.fixturenames:
        metafunc.parametrize("shipped", [_named(file) for file in SHIPPED])
    if "shipped_with_new_keys" in metafunc.fixturenames:
        repeats = [file for file in SHIPPED if file.stem.endswith(("_x3", "_x4"))]
        metafunc.parametrize(
            "shipped_with_new_keys", [_named(file, [pytest.mark.long] * (file in repeats)) for file in SHIPPED]
        )


def _named(file: Path, marks: Any = ()) -> Any:
    return pytest.param(file, marks=marks, id=f"{file.parent.name}/{file.stem}")
