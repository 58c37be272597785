"""ONNX files in onnxruntime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime, tried_scale
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY
from basicsr.utils.text import first_line


@RUNTIME_REGISTRY.register()
class OnnxRuntime(Runtime):
    """Runs `.onnx` files."""

    name, extra, packages, distribution, endings = "onnxruntime", "export", ("onnxruntime",), "onnxruntime", (".onnx",)

    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """See `Runtime.load`; there are no settings."""
        if settings:
            raise OptionsError(f"onnxruntime has no setting {next(iter(settings))}")
        self.require()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            return _Loaded(session)
        except Exception as error:  # onnxruntime's exceptions have no common ancestor
            raise CheckpointError(f"onnxruntime does not load {path.name} ({first_line(error)})") from error


class _Loaded(LoadedFile):
    def __init__(self, session: Any) -> None:
        self._session = session
        taken = session.get_inputs()[0]
        self._name = taken.name
        batch, channels, height, width = taken.shape
        about = session.get_modelmeta().custom_metadata_map
        fixed = isinstance(height, int) and isinstance(width, int)
        size = (height, width) if fixed else None
        scale = int(about["scale"]) if "scale" in about else tried_scale(self, channels, size)
        self.facts = FileFacts(
            scale=scale,
            channels=channels,
            size=size,
            batches=not isinstance(batch, int),
            precision=about.get("precision", "float32"),
        )
        self.computes_in = self.facts.precision

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._session.run(None, {self._name: images})[0]
