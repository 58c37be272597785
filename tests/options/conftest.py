"""The options files that are shipped, each with the command it is for."""

from __future__ import annotations

from pathlib import Path

OPTIONS = Path(__file__).resolve().parents[2] / "options"
SHIPPED = sorted([*OPTIONS.glob("train/*.yml"), *OPTIONS.glob("test/*.yml")])


def pytest_generate_tests(metafunc):
    """Runs a test that asks for `shipped` once for every shipped file."""
    if "shipped" in metafunc.fixturenames:
        metafunc.parametrize("shipped", SHIPPED, ids=[f"{file.parent.name}/{file.stem}" for file in SHIPPED])
