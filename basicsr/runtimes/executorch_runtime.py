"""ExecuTorch programs in its Python runtime, on the CPU."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY
from basicsr.utils.silence import silent_stderr
from basicsr.utils.text import first_line


@RUNTIME_REGISTRY.register()
class ExecuTorch(Runtime):
    """Runs `.pte` files, one image at a time.

    Its Python package needs PyTorch; its C++ library, on a device, does not.
    """

    name, extra, packages, distribution = "executorch", "executorch", ("executorch", "torch"), "executorch"
    endings = (".pte",)

    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """See `Runtime.load`; there are no settings."""
        if settings:
            raise OptionsError(f"executorch has no setting {next(iter(settings))}")
        self.require()
        try:
            return _Loaded(path.read_bytes(), threads)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
        except Exception as error:  # its exceptions have no common ancestor
            raise CheckpointError(f"executorch does not load {path.name} ({first_line(error)})") from error


class _Threads:
    """The threads of all programs in this process; programs loaded before a change must be loaded again."""

    def __init__(self) -> None:
        self.changes = 0

    def become(self, number: int) -> None:
        """Sets their number, where it is another one."""
        bindings = _bindings()
        if bindings._threadpool_get_thread_count() != number:
            with silent_stderr():
                bindings._unsafe_reset_threadpool(number)
            self.changes += 1


_THREADS = _Threads()


@cache
def _bindings() -> Any:
    with silent_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import executorch.extension.pybindings.portable_lib as bindings

        bindings._threadpool_get_thread_count()  # looks at the processor, and tells what it does not find
    return bindings


class _Loaded(LoadedFile):
    def __init__(self, content: bytes, threads: int) -> None:
        self._content, self._threads = content, threads
        self._program, self._method = self._load()
        meta = self._method.metadata
        taken, given = meta.input_tensor_meta(0).sizes(), meta.output_tensor_meta(0).sizes()
        about, most = self._about(), (taken[2], taken[3])
        self.facts = FileFacts(
            scale=int(about.get("scale", given[2] // taken[2])),
            channels=taken[1],
            size=None if about.get("sizes") == "any" else most,
            most=most,
            precision=about.get("precision", "float32"),
        )
        self.computes_in = self.facts.precision

    def _load(self) -> tuple[Any, Any]:
        """The program and its method, on the right number of threads."""
        _THREADS.become(self._threads)
        self._changes = _THREADS.changes
        with silent_stderr():
            from executorch.runtime import Runtime as Programs

            program = Programs.get().load_program(self._content)
            return program, program.load_method("forward")

    def _about(self) -> dict[str, str]:
        """What the file says of itself."""
        if "about" not in self._program.method_names:
            return {}
        (text,) = self._program.load_method("about").execute([])
        return json.loads(text)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import torch

        assert self.facts.most is not None
        height, width = self.facts.most
        if len(images) != 1:
            raise ValueError("it takes one image at a time")
        if self.facts.size is not None and images.shape[2:] != self.facts.size:
            raise ValueError(f"it takes images of {height}x{width} only")
        if images.shape[2] > height or images.shape[3] > width:
            raise ValueError(f"it takes images of at most {height}x{width}: run larger ones in tiles")
        _THREADS.become(self._threads)
        if self._changes != _THREADS.changes:  # what was loaded knows threads that are gone
            self._program, self._method = self._load()
        (output,) = self._method.execute([torch.from_numpy(np.ascontiguousarray(images))])
        return output.numpy()
