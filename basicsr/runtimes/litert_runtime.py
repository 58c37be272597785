"""LiteRT (TensorFlow Lite) files in its interpreter, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY
from basicsr.utils.silence import silent_stderr
from basicsr.utils.text import first_line


@RUNTIME_REGISTRY.register()
class LiteRT(Runtime):
    """Runs `.tflite` files of one image as input and one as output, in float32, int8 or uint8.

    Its setting `xnnpack: false` leaves all work to LiteRT's own kernels, as accelerators see the file.
    """

    name, extra, packages, distribution = "litert", "litert", ("ai_edge_litert",), "ai-edge-litert"
    endings = (".tflite",)

    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """See `Runtime.load`."""
        given = dict(settings or {})
        xnnpack = given.pop("xnnpack", True)
        if given:
            raise OptionsError(f"litert has no setting {next(iter(given))}: give xnnpack")
        self.require()
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        kernels = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            content = path.read_bytes()
            with silent_stderr():  # it tells that it uses XNNPACK
                interpreter = Interpreter(
                    model_content=content, num_threads=threads, experimental_op_resolver_type=kernels
                )
                interpreter.allocate_tensors()
            return _Loaded(interpreter, metadata_of(content))
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        except Exception as error:  # whatever the interpreter or flatbuffers raise on a damaged file
            raise CheckpointError(f"litert does not load {path.name} ({first_line(error)})") from error


def metadata_of(content: bytes) -> dict[str, str]:
    """What a file's own entries say, those that are text, by name."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    found = {}
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        data = model.Buffers(entry.Buffer()).DataAsNumpy()
        if isinstance(data, np.ndarray):
            found[entry.Name().decode()] = data.tobytes().rstrip(b"\0").decode(errors="replace")
    return found


class _Loaded(LoadedFile):
    def __init__(self, interpreter: Any, about: Mapping[str, str]) -> None:
        self._interpreter = interpreter
        (self._taken,), (self._given,) = interpreter.get_input_details(), interpreter.get_output_details()
        taken, given = self._taken["shape"].tolist(), self._given["shape"].tolist()
        if len(taken) != 4 or len(given) != 4:
            raise ValueError(f"it maps {taken} to {given}: one image in, one image out is run here")
        self._channels_last = about.get("axes", "").endswith("channel") if "axes" in about else taken[-1] in (1, 3)
        size = tuple(taken[1:3] if self._channels_last else taken[2:])
        height = given[1 if self._channels_last else 2]
        is_integer = self._taken["dtype"] in (np.int8, np.uint8)
        self.facts = FileFacts(
            scale=int(about.get("scale", height // size[0])),
            channels=taken[-1] if self._channels_last else taken[1],
            size=None if about.get("sizes") == "any" else size,
            precision=about.get("precision", "int8" if is_integer else "float32"),
        )
        self.computes_in = self.facts.precision

    def __call__(self, images: np.ndarray) -> np.ndarray:
        facts = self.facts
        if len(images) != 1:
            raise ValueError("it takes one image at a time")
        if images.shape[1] != facts.channels:
            raise ValueError(f"it takes images of {facts.channels} channels")
        if facts.size is not None and images.shape[2:] != facts.size:
            raise ValueError(f"it takes images of {facts.size[0]}x{facts.size[1]} only")
        values = np.ascontiguousarray(images.transpose(0, 2, 3, 1) if self._channels_last else images)
        place = self._taken["index"]
        if values.shape != tuple(self._interpreter.get_input_details()[0]["shape"]):
            with silent_stderr():
                self._interpreter.resize_tensor_input(place, values.shape)
                self._interpreter.allocate_tensors()
        self._interpreter.set_tensor(place, _as_integers(values, self._taken))
        self._interpreter.invoke()
        output = _as_floats(self._interpreter.get_tensor(self._given["index"]), self._given)
        return np.ascontiguousarray(output.transpose(0, 3, 1, 2)) if self._channels_last else output


def _as_integers(values: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """Float32 as the file's input wants it."""
    dtype = tensor["dtype"]
    if dtype == np.float32:
        return values
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values / np.float32(scale)) + zero_point, limits.min, limits.max).astype(dtype)


def _as_floats(values: np.ndarray, tensor: Mapping[str, Any]) -> np.ndarray:
    """The file's output as float32."""
    if values.dtype == np.float32:
        return values
    scale, zero_point = tensor["quantization"]
    return (values.astype(np.float32) - zero_point) * np.float32(scale)
