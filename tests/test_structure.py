"""How the package is put together; `scripts/structure.py` counts it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def structure():
    return importlib.import_module("structure")


def test_no_circles_and_no_upward_imports(structure):
    graph = structure.import_graph()
    assert len(graph) > 100
    assert structure.circles(graph) == []
    assert structure.upward_imports(graph) == []


def test_circles_and_upward_imports_are_found(structure):
    graph = {"basicsr.utils.a": {"basicsr.utils.b"}, "basicsr.utils.b": {"basicsr.utils.c"}, "basicsr.utils.c": set()}
    assert structure.circles(graph) == []
    graph["basicsr.utils.c"] = {"basicsr.utils.a", "basicsr.engine.status"}
    graph["basicsr.engine.status"] = {"basicsr.files.images", "basicsr.test"}
    graph |= {"basicsr.files.images": set(), "basicsr.test": set()}
    assert structure.circles(graph) == [["basicsr.utils.a", "basicsr.utils.b", "basicsr.utils.c"]]
    assert structure.upward_imports(graph) == [
        "basicsr.engine.status -> basicsr.test",
        "basicsr.utils.c -> basicsr.engine.status",
    ]


def test_utils_holds_few_leaves(structure):
    assert len(list((structure.PACKAGE / "utils").glob("*.py"))) <= 20
