"""ncnn's files, in ncnn, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from basicsr.runtimes.base import FileFacts, LoadedFile, Runtime
from basicsr.utils.errors import CheckpointError, DataError, OptionsError
from basicsr.utils.registry import RUNTIME_REGISTRY

MAGIC = "7767517"
"""First line of a `.param` file."""
_PRECISIONS = ("float32", "fp16", "bf16")
_TRIED = 32  # pixels a side of the image that shows the scale of a file that does not state it


@RUNTIME_REGISTRY.register()
class Ncnn(Runtime):
    """Runs `.param` files with the `.bin` beside them; several images are run one after the other."""

    name, extra, packages, distribution, endings = "ncnn", "ncnn", ("ncnn",), "ncnn", (".param",)
    beside = (".bin",)

    def load(self, path: Path, *, threads: int, settings: Mapping[str, Any] | None = None) -> LoadedFile:
        """See `Runtime.load`.

        Settings: `precision` of features and arithmetic: 'float32', the default, 'bf16', or 'fp16', which ncnn ignores
        on CPUs without instructions for it. `winograd`: False computes all convolutions directly; True, the default, is
        faster, and in float32 less exact by a factor of about ten. Packed layouts and matrix products are always on.
        """
        asked = dict(settings or {})
        precision, winograd = asked.pop("precision", "float32"), asked.pop("winograd", True)
        if asked:
            raise OptionsError(f"ncnn has no setting {next(iter(asked))}; it has precision and winograd")
        if precision not in _PRECISIONS:
            raise OptionsError(f"ncnn: precision {precision}: give one of {', '.join(_PRECISIONS)}")
        self.require()
        layers = read_layers(path)
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise CheckpointError(f"ncnn: {path.name} has no weights beside it: there is no {weights.name}")
        import ncnn

        for layer in layers:
            if ncnn.layer_to_index(layer[0]) < 0:  # loading or running such a file can end the process
                raise CheckpointError(f"ncnn does not load {path.name} (it knows no layer {layer[0]})")
        network = ncnn.Net()
        for name, value in _options(precision, winograd, threads).items():
            setattr(network.opt, name, value)
        if network.load_param(str(path)) or network.load_model(str(weights)):
            raise CheckpointError(f"ncnn does not load {path.name} and {weights.name}: they are no pair, or cut short")
        return _Loaded(network, layers, precision)


def _options(precision: str, winograd: bool, threads: int) -> dict[str, bool | int]:
    """All of ncnn's options that change numbers, none left to its defaults, and the threads."""
    half, brain = precision == "fp16", precision == "bf16"
    return {
        "num_threads": threads,
        "use_vulkan_compute": False,
        "use_fp16_storage": half,
        "use_fp16_packed": half,
        "use_fp16_arithmetic": half,
        "use_bf16_storage": brain,
        "use_bf16_packed": brain,
        "use_int8_inference": False,
        "use_int8_storage": False,
        "use_int8_packed": False,
        "use_int8_arithmetic": False,
        "use_packing_layout": True,
        "use_sgemm_convolution": True,
        "use_winograd_convolution": winograd,
    }


def read_layers(path: Path) -> list[list[str]]:
    """The layers of a `.param` file as words: type, name, counts of inputs and outputs, blobs, parameters.

    Raises CheckpointError if it is none.
    """
    try:
        magic, counts, *lines = path.read_text("ascii").splitlines()
        layers = [line.split() for line in lines]
        if magic != MAGIC or len(layers) != int(counts.split()[0]) or not all(len(layer) >= 4 for layer in layers):
            raise ValueError
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no .param file of ncnn, or is cut short") from error
    return layers


class _Loaded(LoadedFile):
    def __init__(self, network: Any, layers: list[list[str]], precision: str) -> None:
        self._network, self.computes_in = network, precision
        self._input, self._output = network.input_names()[0], network.output_names()[0]
        told = facts_in(layers)
        self._smallest = int(told.get("smallest", 1))
        sides = [int(side) for side in told["size"].split("x")] if "size" in told else None
        self.facts = FileFacts(
            scale=int(told["scale"]) if "scale" in told else self._tried_scale(),
            channels=int(told.get("channels", 3)),
            size=(sides[0], sides[1]) if sides else None,
            batches=True,
            precision=told.get("precision", "float32"),
        )

    def _tried_scale(self) -> int:
        return int(self._run(np.zeros((3, _TRIED, _TRIED), np.float32)).shape[-1]) // _TRIED

    def __call__(self, images: np.ndarray) -> np.ndarray:
        height, width = images.shape[-2:]
        if self.facts.size not in (None, (height, width)) or min(height, width) < self._smallest:
            # ncnn would compute something else, or end the process.
            takes = "x".join(map(str, self.facts.size or ())) or f"{self._smallest}x{self._smallest} and larger"
            raise DataError(f"ncnn: the file is for images of {takes}, not {height}x{width}")
        if images.shape[1] != self.facts.channels:  # ncnn does not check
            raise DataError(f"ncnn: the file is for images of {self.facts.channels} channels, not {images.shape[1]}")
        return np.stack([self._run(image) for image in images])

    def _run(self, image: np.ndarray) -> np.ndarray:
        import ncnn

        # In memory of its own: ncnn's layers work in place, and their instructions want it aligned.
        pixels = np.ascontiguousarray(image, np.float32)  # which must live until it is copied: Mat only points to it
        given = ncnn.Mat(pixels).clone()
        with self._network.create_extractor() as extractor:
            extractor.input(self._input, given)
            failed, output = extractor.extract(self._output)
            if failed:
                raise RuntimeError(f"ncnn's error {failed}, of memory or of shapes")
            return np.array(output)


def facts_in(layers: list[list[str]]) -> dict[str, str]:
    """What the name of the input's layer says of the file, as `fact_name` writes it; {} of files by others."""
    name = next((layer[1] for layer in layers if layer[0] == "Input"), "")
    return dict(part.split("=", 1) for part in name.split(";") if "=" in part)


def fact_name(facts: Mapping[str, str]) -> str:
    """Facts as the name of a layer: the one free text in ncnn's files, without spaces, of at most 255 letters."""
    return ";".join(f"{key}={value}" for key, value in facts.items())
