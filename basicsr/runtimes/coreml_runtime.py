"""Core ML's packages in Core ML, which only Apple's systems have."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime
from basicsr.utils.errors import CheckpointError, MachineError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY
from basicsr.utils.text import first_line

_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "neural_engine": "CPU_AND_NE"}


@RUNTIME_REGISTRY.register()
class CoreML(Runtime):
    """Runs `.mlpackage` folders, on macOS; several images one after the other."""

    name, extra, packages, distribution = "coreml", "coreml", ("coremltools",), "coremltools"
    endings = (".mlpackage",)

    @classmethod
    def installed(cls) -> bool:
        """Whether the system is Apple's, and coremltools there."""
        return sys.platform == "darwin" and super().installed()

    @classmethod
    def require(cls) -> None:
        """See `Runtime.require`."""
        if sys.platform != "darwin":
            raise MachineError("coreml: only Apple's systems run Core ML; on others the file can be made and checked")
        super().require()

    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """See `Runtime.load`; the number of threads is Core ML's choice.

        Settings: `units`, 'cpu', the default, 'gpu', 'neural_engine' or 'all', the last three if Core ML likes.
        """
        asked = dict(settings or {})
        units = asked.pop("units", "cpu")
        if asked:
            raise OptionsError(f"coreml has no setting {next(iter(asked))}; it has units")
        if units not in _UNITS:
            raise OptionsError(f"coreml: units {units}: give one of {', '.join(_UNITS)}")
        self.require()
        import coremltools

        try:
            model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[_UNITS[units]])
        except Exception as error:  # Core ML's own, through coremltools
            raise CheckpointError(f"coreml does not load {path.name} ({first_line(error)})") from error
        return _Loaded(model)


class _Loaded(LoadedFile):
    def __init__(self, model: Any) -> None:
        told = model.user_defined_metadata
        self._model = model
        self.facts = FileFacts(
            scale=int(told["scale"]),
            channels=int(told["channels"]),
            size=tuple(map(int, told["size"].split("x"))) if "size" in told else None,  # type: ignore[arg-type]
            batches=True,
            precision=told["precision"],
        )
        self.computes_in = self.facts.precision

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.concatenate([self._model.predict({"input": image[None]})["output"] for image in images])
