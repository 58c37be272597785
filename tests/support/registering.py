"""Classes of tests in the registries for the length of a module; other tests list what is registered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
