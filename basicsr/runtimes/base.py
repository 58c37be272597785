"""What runs an exported file: its interface, and how the runtime for a file is found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from basicsr.utils.errors import CheckpointError, MachineError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY

_TRIED = 64  # pixels a side


@dataclass(frozen=True)
class FileFacts:
    """What a loaded file says of itself.

    Attributes:
        scale: factor of enlargement.
        channels: of the images that it takes.
        size: height and width of the one size that it takes; None: any.
        most: the largest height and width that it takes; None: any.
        batches: whether it takes several images at once.
        precision: 'float32', 'fp16', 'bf16' or 'int8', in which it was written.
    """

    scale: int
    channels: int
    size: tuple[int, int] | None = None
    most: tuple[int, int] | None = None
    batches: bool = False
    precision: str = "float32"


class LoadedFile(ABC):
    """An exported file that is ready to run.

    Attributes:
        facts: what it takes and gives.
        computes_in: the precision that the runtime computes in, as far as it tells.
    """

    facts: FileFacts
    computes_in: str

    @abstractmethod
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps float32 (B, C, H, W) in [0, 1] to float32 (B, C, sH, sW), not clipped by us.

        The result is the caller's: later calls leave it as it is. Raises what the runtime raises.
        """


def tried_scale(run: Callable[[np.ndarray], np.ndarray], channels: int, size: tuple[int, int] | None) -> int:
    """The factor of enlargement of a file that does not state it, from an image of zeros.

    Raises CheckpointError if it enlarges by no whole number, and what `run` raises.
    """
    height, width = size or (_TRIED, _TRIED)
    made = run(np.zeros((1, channels, height, width), np.float32)).shape
    scale = made[-1] // width if len(made) == 4 else 0
    if scale < 1 or made[-2:] != (height * scale, width * scale):
        raise CheckpointError(
            f"it makes {'x'.join(map(str, made))} of 1x{channels}x{height}x{width}: no images, enlarged"
        )
    return scale


class Runtime(ABC):
    """A program that runs files; subclasses are registered with `RUNTIME_REGISTRY`, one in each file `*_runtime.py`.

    Attributes:
        name: of the runtime, such as 'openvino'.
        extra: pip's extra that installs it.
        packages: what must be importable.
        distribution: whose version is stated.
        endings: of the files that it runs; the first runtime in the registry's order is a file's default.
        beside: endings of files that belong to it, of the same name, such as the weights of a graph.
    """

    name: ClassVar[str]
    extra: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    distribution: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """Loads a file for the CPU with a number of threads; CheckpointError where it is refused.

        `settings` are the runtime's own, such as a precision to compute in; OptionsError for unknown ones.
        """

    @classmethod
    def companions(cls, path: Path) -> list[Path]:
        """The files that belong to a file, as far as they are there."""
        found = [path.with_suffix(ending) for ending in cls.beside]
        return [companion for companion in found if companion.is_file()]

    @classmethod
    def installed(cls) -> bool:
        """Whether its packages are there."""
        return all(importlib.util.find_spec(package) is not None for package in cls.packages)

    @classmethod
    def require(cls) -> None:
        """Raises MachineError where it is not installed."""
        if not cls.installed():
            raise MachineError(f"{cls.name} is not installed here: pip install -e '.[{cls.extra}]'")

    @classmethod
    def version(cls) -> str:
        """Of the installed distribution."""
        return importlib.metadata.version(cls.distribution)


def runtimes() -> dict[str, Runtime]:
    """All registered runtimes by name."""
    return {entry.name: entry for entry in (cls() for _, cls in RUNTIME_REGISTRY)}


def runtime_for(path: Path, name: str | None = None) -> Runtime:
    """The runtime called `name`, else the installed one for the file's ending; OptionsError where there is none."""
    known = runtimes()
    if name is not None and name not in known:
        raise OptionsError(f"there is no runtime {name}: give one of {', '.join(known)}")
    fitting = [entry for entry in known.values() if path.name.lower().endswith(entry.endings)]
    if not fitting:
        endings = sorted({ending for entry in known.values() for ending in entry.endings})
        raise OptionsError(f"{path}: no runtime here takes files of this name; known endings: {', '.join(endings)}")
    if name is None:
        return next((entry for entry in fitting if entry.installed()), fitting[0])
    if known[name] not in fitting:
        raise OptionsError(f"{name} does not run {path.name}; {', '.join(entry.name for entry in fitting)} would")
    return known[name]
