"""OpenVINO's files, and ONNX files, in OpenVINO, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime, tried_scale
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY
from basicsr.utils.silence import silent_stderr

_METADATA = "framework"  # where OpenVINO's reader puts an ONNX file's metadata, and its files keep them
_PRECISIONS = {"float32": "f32", "bf16": "bf16", "fp16": "f16"}


@RUNTIME_REGISTRY.register()
class OpenVino(Runtime):
    """Runs `.xml` files with the `.bin` beside them, and `.onnx` files."""

    name, extra, packages, distribution, endings = "openvino", "openvino", ("openvino",), "openvino", (".xml", ".onnx")
    beside = (".bin",)

    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """See `Runtime.load`. Settings: `precision`, of what is not int8: 'float32', the default, 'bf16' or 'fp16'.

        OpenVINO's own default is bf16 or fp16 where the CPU has instructions for it.
        """
        asked = dict(settings or {})
        precision = asked.pop("precision", "float32")
        if asked:
            raise OptionsError(f"openvino has no setting {next(iter(asked))}; it has precision")
        if precision not in _PRECISIONS:
            raise OptionsError(f"openvino: precision {precision}: give one of {', '.join(_PRECISIONS)}")
        self.require()
        import openvino

        config = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        }
        try:
            core = openvino.Core()
            with silent_stderr():  # its readers of other formats try a damaged file, and print
                model = core.read_model(path)
            return _Loaded(model, core.compile_model(model, "CPU", config), precision)
        except Exception as error:  # a RuntimeError, of lines that name OpenVINO's own files first
            reason = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
            raise CheckpointError(f"openvino does not load {path.name} ({''.join(reason[:1])})") from error


class _Loaded(LoadedFile):
    def __init__(self, model: Any, compiled: Any, computes_in: str) -> None:
        self._request = compiled.create_infer_request()
        batch, channels, height, width = model.input(0).partial_shape
        size = (height.get_length(), width.get_length()) if height.is_static and width.is_static else None
        scale = self._told(model, "scale")
        self.facts = FileFacts(
            scale=tried_scale(self, channels.get_length(), size) if scale is None else int(scale),
            channels=channels.get_length(),
            size=size,
            batches=batch.is_dynamic,
            precision=self._told(model, "precision") or "float32",
        )
        self.computes_in = "int8" if self.facts.precision == "int8" else computes_in

    @staticmethod
    def _told(model: Any, key: str) -> str | None:
        path = [_METADATA, key]
        return model.get_rt_info(path).astype(str) if model.has_rt_info(path) else None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.array(self._request.infer({0: images})[0])  # a copy: the request writes its own again
