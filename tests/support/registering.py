"""Classes of tests and of documents in the registries for a while; other tests list what is registered."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from basicsr.utils.registry import Registry


@contextmanager
def registered(registry: Registry, *classes: type[Any]) -> Iterator[None]:
    """Registers classes under their own names within the block."""
    for one in classes:
        registry.register()(one)
    try:
        yield
    finally:
        for one in classes:
            del registry._members[one.__name__]


@contextmanager
def documented_file(document: str, path: str, folder: Path, registry: Registry) -> Iterator[None]:
    """Drops the example of a document for the file `path` of a package into it, as a user would; in `folder`."""
    text = (Path(__file__).resolve().parents[2] / document).read_text("utf-8")
    source = text.split(f"`{path}`:")[1].split("```python\n")[1].split("```")[0]
    (folder / Path(path).name).write_text(source)
    module = path.removesuffix(".py").replace("/", ".")
    package = importlib.import_module(module.rpartition(".")[0])
    assert package.__spec__ is not None
    folders = [*package.__path__, str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_members", dict(registry._members))
        patch.setattr(package, "__path__", folders)
        patch.setattr(package.__spec__, "submodule_search_locations", folders)
        try:
            yield
        finally:
            sys.modules.pop(module, None)
