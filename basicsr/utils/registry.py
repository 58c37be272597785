"""Registries: from a name in the options file to a class or function, found on first use.

A registry knows the folder its members live in. Asking for a name imports the one file that defines it, so that a
broken or heavy file costs only those who use it. Files written for BasicSR work unchanged:

    from basicsr.utils.registry import ARCH_REGISTRY

    @ARCH_REGISTRY.register()
    class MyArch(nn.Module): ...

saved as `basicsr/archs/my_arch.py`, is `network_g: {type: MyArch}` in the options.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from basicsr.utils.errors import OptionsError
from basicsr.utils.signatures import bind_arguments, call_style, thaw, unknown_name


class Registry:
    """Maps names to the classes or functions registered under them.

    Args:
        kind: what the members are, in the words of error messages ('network', 'loss').
        package: dotted name of the package whose files register members.
        suffix: only files whose stem ends so are searched ('_arch' finds `edsr_arch.py`); '' searches all.
    """

    def __init__(self, kind: str, package: str, suffix: str = "") -> None:
        self.kind = kind
        self._package = package
        self._suffix = suffix
        self._members: dict[str, Callable[..., Any]] = {}

    def register(self, obj: Callable[..., Any] | None = None, suffix: str | None = None) -> Callable[..., Any]:
        """Registers `obj` under its `__name__` (plus `_suffix`); without `obj`, returns a decorator that does so.

        Raises:
            ValueError: the name is taken.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, suffix)
        name = obj.__name__ if suffix is None else f"{obj.__name__}_{suffix}"
        if name in self._members:
            taken = self._members[name].__module__
            raise ValueError(f"{self.kind} '{name}' of {obj.__module__} is already registered by {taken}; rename one")
        self._members[name] = obj
        return obj

    def get(self, name: str, suffix: str = "basicsr") -> Callable[..., Any]:
        """Returns the member called `name` (or `name_suffix`), importing the file that defines it if needed.

        Raises:
            OptionsError: there is no such member; lists those there are and the nearest name.
        """
        for defining in (name, None):  # the one file that defines it, else all
            if name not in self._members:
                self._import_files(defining)
            for known in (name, f"{name}_{suffix}"):
                if known in self._members:
                    return self._members[known]
        names = self.names()
        raise OptionsError(unknown_name(self.kind, name, names).message)

    def names(self) -> list[str]:
        """All names, sorted; imports every file of the registry's folder."""
        self._import_files()
        return sorted(self._members)

    def build(self, options: Mapping[str, Any], **provided: Any) -> Any:
        """Builds the member that `options['type']` names from the remaining keys.

        Args:
            options: `type` and the arguments of the member's constructor.
            **provided: values of the framework's own (scale, phase), passed where the constructor has a parameter
                of that name and `options` does not set it.

        Raises:
            OptionsError: `type` is missing or unknown, or a key does not fit the constructor.
        """
        if "type" not in options:
            raise OptionsError(f"a {self.kind} needs a 'type'; there are: {', '.join(self.names())}")
        factory = self.get(options["type"])
        if call_style(factory) == "opt":
            return factory({**thaw(options), **provided})
        given = {key: value for key, value in options.items() if key != "type"}
        return factory(**bind_arguments(factory, given, provided, f"{self.kind} {options['type']}"))

    def __contains__(self, name: str) -> bool:
        try:
            self.get(name)
        except OptionsError:
            return False
        return True

    def __iter__(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        return iter([(name, self._members[name]) for name in self.names()])

    def keys(self) -> list[str]:
        """As `names`; BasicSR's name for it."""
        return self.names()

    def _import_files(self, defining: str | None = None) -> None:
        """Imports the registry's files: all of them, or those whose text defines the class or function `defining`."""
        spec = importlib.util.find_spec(self._package)
        if spec is None or not spec.submodule_search_locations:
            return
        definition = re.compile(rf"^\s*(class|def)\s+{re.escape(defining)}\b", re.MULTILINE) if defining else None
        for folder in spec.submodule_search_locations:
            for file in sorted(Path(folder).glob(f"*{self._suffix}.py")):
                if file.stem.startswith("_") or (definition and not definition.search(file.read_text("utf-8"))):
                    continue
                try:
                    importlib.import_module(f"{self._package}.{file.stem}")
                except Exception as error:  # whatever a file of the user's own raises
                    raise OptionsError(f"{file} does not import: {type(error).__name__}: {error}") from error


ARCH_REGISTRY = Registry("network", "basicsr.archs", "_arch")
DATASET_REGISTRY = Registry("dataset", "basicsr.data", "_dataset")
LOSS_REGISTRY = Registry("loss", "basicsr.losses", "_loss")
METRIC_REGISTRY = Registry("metric", "basicsr.metrics")
EXPORT_REGISTRY = Registry("export format", "basicsr.export", "_format")
METHOD_REGISTRY = Registry("distillation method", "basicsr.distill")
