"""What upscale.py runs a network by: PyTorch, a runtime with the checkpoint's graph, or an exported file's runtime."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from basicsr.archs.luma import LumaNetwork
from basicsr.export.graph_cache import (
    Graph,
    GraphKey,
    can_make,
    find_graph,
    forget_graph,
    make_graph,
    precision_of,
    refusal_of,
)
from basicsr.files.atomic_files import write_atomically
from basicsr.inference.file_networks import FileNetwork
from basicsr.inference.runner import evaluating
from basicsr.inference.sources import is_video
from basicsr.runtimes.base import LoadedFile, Runtime, runtime_for, runtimes
from basicsr.utils.errors import CheckpointError, MachineError, OptionsError, UserError
from basicsr.utils.pass_times import processor
from basicsr.utils.precision import Precision, choose_device, keep_output_precise
from basicsr.utils.timing import in_turn
from basicsr.weights.recognise import Pretrained

PYTORCH = "pytorch"
OF_CHECKPOINTS = ("openvino", "onnxruntime")
"""What runs graphs of checkpoints, the usually faster one first."""

_PAYS_SECONDS = 30.0  # of work by PyTorch, from which on making a graph pays
_MOST_SECONDS = 180.0  # for a graph that nobody asked for by name
_TRIED_SIDE = 96  # pixels
_ROUNDS = 3
_CHOICE = "choice.json"
_FRAMES_OF_UNKNOWN = 250

Say = Callable[[str], object]


@dataclass(frozen=True)
class Backend:
    """A network that is ready for `ImageRunner`, and what that must know of it.

    Attributes:
        name: 'pytorch', or the runtime's.
        told: what runs it and why, for a line.
        network: takes images of the kind that the command's are.
        device: where.
        precision: of PyTorch's autocast.
        overlap, multiple, only_size, follows_pooling: as of `ImageRunner`.
    """

    name: str
    told: str
    network: nn.Module
    device: torch.device
    precision: Precision
    overlap: int | None = None
    multiple: int | None = None
    only_size: tuple[int, int] | None = None
    follows_pooling: bool = True


@dataclass(frozen=True)
class Model:
    """What --model names: a checkpoint's network, or the runtime of an exported file."""

    path: Path
    scale: int
    channels: int
    pretrained: Pretrained | None = None
    file: FileNetwork | None = None
    runtime: str = ""

    @property
    def names_itself(self) -> str:
        """As a line begins about it."""
        if self.pretrained is None:
            return f"{self.path}: an exported file, x{self.scale}"
        return f"{self.path}: {self.pretrained.architecture} x{self.scale} ({self.pretrained.layout})"


def names() -> list[str]:
    """What --backend takes."""
    return ["auto", *runtimes()]


def is_exported(path: str) -> bool:
    """Whether a runtime reads files of this name, rather than a checkpoint being loaded."""
    endings = {ending for entry in runtimes().values() for ending in entry.endings}
    return path.lower().endswith(tuple(endings))


def load_exported(arguments: argparse.Namespace) -> Model:
    """The file in its runtime; raises OptionsError, MachineError or CheckpointError."""
    path = Path(arguments.model)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}: check --model")
    if arguments.param_key is not None:
        raise OptionsError(
            f"--param_key chooses weights of a checkpoint; {path.name} is an exported file: leave it out"
        )
    if arguments.device == "cuda":
        raise OptionsError(f"--device cuda: {path.name} runs on the CPU here; give --device cpu, or a checkpoint")
    runtime = runtime_for(path, None if arguments.backend == "auto" else arguments.backend)
    if arguments.backend == "auto":
        fitting = [runtimes()[name] for name in OF_CHECKPOINTS if path.name.lower().endswith(runtimes()[name].endings)]
        runtime = next((entry for entry in fitting if entry.installed()), runtime)
    loaded = _load(runtime, path, arguments.precision)
    network = FileNetwork(loaded, path.name)
    told = f"{runtime.name} {runtime.version()}, {loaded.computes_in}"
    return Model(path, network.scale, network.in_channels, file=network, runtime=told)


def choose(
    model: Model, names_of_files: Iterable[str], arguments: argparse.Namespace, whole: bool, say: Say
) -> Backend:
    """What runs the network; raises OptionsError and MachineError where what is asked for cannot be.

    A network that has no graph runs in PyTorch, and a line says why. `whole`: no picture is cut into tiles.
    """
    if model.file is not None:
        return _of_file(model)
    assert model.pretrained is not None
    asked, device = arguments.backend, choose_device(arguments.device)
    in_pytorch = partial(_in_pytorch, model.pretrained, arguments, device)
    if asked == PYTORCH:
        return in_pytorch("as asked for")
    if asked != "auto":
        _check_asked(asked, arguments)
    elif device.type != "cpu":
        return in_pytorch("for the GPU")
    able = [asked] if asked != "auto" else [name for name in OF_CHECKPOINTS if runtimes()[name].installed()]
    able = [name for name in able if _takes(name, arguments.precision)]
    if not able or not can_make():
        return in_pytorch("pip install -e '.[openvino]' brings a faster one" if arguments.precision != "fp16" else "")
    key = GraphKey(model.path, arguments.param_key, arguments.scale, precision_of(model.pretrained))
    try:
        graph = _graph(key, model.pretrained, names_of_files, asked, say)
        if isinstance(graph, str):
            return in_pytorch(graph)
        if graph.pools and not whole:
            return in_pytorch("tiles follow what the network averages over the whole image in PyTorch only")
        return _of_graph(graph, key, able, model.pretrained, arguments, say)
    except (CheckpointError, MachineError) as error:
        return in_pytorch(str(error))


def _check_asked(asked: str, arguments: argparse.Namespace) -> None:
    if asked not in OF_CHECKPOINTS:
        raise OptionsError(
            f"--backend {asked} runs exported files: write one by scripts/export.py --target {asked}, and give it as"
            " --model"
        )
    if arguments.device == "cuda":
        raise OptionsError(f"--backend {asked} runs on the CPU: give --device cpu, or --backend pytorch")
    if not _takes(asked, arguments.precision):
        raise OptionsError(
            f"--precision {arguments.precision}: {asked} computes in the file's precision; give --precision none, or"
            " --backend openvino or pytorch"
        )
    runtimes()[asked].require()
    if not can_make():
        raise MachineError(f"--backend {asked} needs the exporter: pip install -e '.[export]'")


def _takes(runtime: str, precision: str) -> bool:
    return precision == "none" or (precision == "bf16" and runtime == "openvino")


def _load(runtime: Runtime, path: Path, precision: str) -> LoadedFile:
    settings = None if precision == "none" else {"precision": precision}
    try:
        return runtime.load(path, threads=torch.get_num_threads(), settings=settings)
    except OptionsError as error:
        error.extend(before=f"--precision {precision}: ")
        raise


def _graph(key: GraphKey, pretrained: Pretrained, names_of_files: Iterable[str], asked: str, say: Say) -> Graph | str:
    """The checkpoint's graph; for `auto` only where it pays, else why not."""
    if (graph := find_graph(key)) is not None:
        return graph
    if asked != "auto":
        return make_graph(key, say)
    if (reason := refusal_of(key)) is not None:
        return reason
    seconds = seconds_of(pretrained, names_of_files)
    if seconds < _PAYS_SECONDS:
        return f"about {seconds:.1g} s of work; a graph for a faster one pays from {_PAYS_SECONDS:.0f} s on"
    return make_graph(key, say, _MOST_SECONDS)


def _of_graph(
    graph: Graph, key: GraphKey, able: Sequence[str], pretrained: Pretrained, arguments: argparse.Namespace, say: Say
) -> Backend:
    """The fastest of the runtimes with this graph, or PyTorch, if that is faster than they.

    Only what is chosen is loaded, unless their speeds are still to be measured.
    """
    told, chosen = "", able[0]
    loaded: dict[str, nn.Module] = {}
    if arguments.backend == "auto":
        speeds = _kept_speeds(graph, [*able, PYTORCH], arguments.precision)
        if not speeds:
            graph, loaded = _loaded(graph, key, able, pretrained, arguments, say)
            sides = {**loaded, PYTORCH: pretrained.network}
            speeds = _measured_speeds(graph, sides, pretrained.in_channels, arguments.precision)
        chosen = min(speeds, key=lambda name: speeds[name])
        others = ", ".join(f"{name} {speeds[name]:.3g}" for name in speeds if name != chosen)
        told = f": {speeds[chosen]:.3g} s a megapixel here ({others})"
        if chosen == PYTORCH:
            return _in_pytorch(pretrained, arguments, torch.device("cpu"), told.removeprefix(": "))
    if chosen not in loaded:
        graph, loaded = _loaded(graph, key, [chosen], pretrained, arguments, say)
    runtime = runtimes()[chosen]
    precision = "bf16" if arguments.precision == "bf16" else key.precision
    return Backend(
        name=chosen,
        told=f"{chosen} {runtime.version()}, {precision}{told}",
        network=_for_colours(loaded[chosen], pretrained.scale, pretrained.in_channels),
        device=torch.device("cpu"),
        precision=Precision("cpu"),
        overlap=graph.overlap,
        multiple=graph.multiple,
        follows_pooling=False,
    )


def _loaded(
    graph: Graph,
    key: GraphKey,
    names: Sequence[str],
    pretrained: Pretrained,
    arguments: argparse.Namespace,
    say: Say,
) -> tuple[Graph, dict[str, nn.Module]]:
    """The graph in runtimes; made again where it was damaged since it was made."""

    def load(graph: Graph) -> dict[str, nn.Module]:
        return {
            name: FileNetwork(_load(runtimes()[name], graph.path, arguments.precision), pretrained.architecture)
            for name in names
        }

    try:
        return graph, load(graph)
    except CheckpointError:
        forget_graph(graph)
        graph = make_graph(key, say)
        return graph, load(graph)


def _of_file(model: Model) -> Backend:
    assert model.file is not None
    network = _for_colours(model.file, model.scale, model.channels)
    return Backend(
        name=model.runtime.split()[0],
        told=model.runtime,
        network=network,
        device=torch.device("cpu"),
        precision=Precision("cpu"),
        only_size=model.file.only_size,
        follows_pooling=False,
    )


def _in_pytorch(pretrained: Pretrained, arguments: argparse.Namespace, device: torch.device, why: str) -> Backend:
    if arguments.precision != "none":
        keep_output_precise(pretrained.network)
    network = _for_colours(pretrained.network, pretrained.scale, pretrained.in_channels).to(device)
    told = f"{PYTORCH} {torch.__version__}" + (f": {why}" if why else "")
    return Backend(PYTORCH, told, network, device, Precision.of(device, arguments.precision))


def _for_colours(network: nn.Module, scale: int, channels: int) -> nn.Module:
    return network if channels > 1 else LumaNetwork(network, scale)


def _measured_on(names: Iterable[str], precision: str) -> str:
    """What the speeds of backends depend on, beside the graph."""
    versions = {name: runtimes()[name].version() for name in names}
    return json.dumps([processor()[0], torch.get_num_threads(), precision, versions])


def _kept_speeds(graph: Graph, names: Iterable[str], precision: str) -> dict[str, float]:
    """As `_measured_speeds` found them on this machine; empty if it did not."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((graph.folder / _CHOICE).read_bytes())[_measured_on(names, precision)]
        return {name: float(kept[name]) for name in names}
    return {}


def _measured_speeds(graph: Graph, sides: Mapping[str, nn.Module], channels: int, precision: str) -> dict[str, float]:
    """Seconds a megapixel of each, kept beside the graph."""
    image = torch.rand(1, channels, _TRIED_SIDE, _TRIED_SIDE, generator=torch.Generator().manual_seed(0))
    times = in_turn({name: partial(_seconds, network, image, precision) for name, network in sides.items()}, _ROUNDS)
    speeds = {name: min(seconds) * 1e6 / _TRIED_SIDE**2 for name, seconds in times.items()}
    with suppress(OSError, UserError):
        content = json.dumps({_measured_on(sides, precision): speeds}).encode()
        write_atomically(graph.folder / _CHOICE, lambda file: file.write(content))
    return speeds


@torch.no_grad()
def _seconds(network: nn.Module, image: torch.Tensor, precision: str) -> float:
    with evaluating(network), Precision.of(torch.device("cpu"), precision).autocast():
        started = time.perf_counter()
        network(image)
        return time.perf_counter() - started


def seconds_of(pretrained: Pretrained, names_of_files: Iterable[str]) -> float:
    """About how long PyTorch would take for all files, as far as it matters: not much more than what decides."""
    image = torch.rand(1, pretrained.in_channels, _TRIED_SIDE, _TRIED_SIDE)
    _seconds(pretrained.network, image, "none")
    each = _seconds(pretrained.network, image, "none") / _TRIED_SIDE**2
    total = 0.0
    for name in names_of_files:
        total += each * _pixels(name)
        if total >= _PAYS_SECONDS:
            break
    return total


def _pixels(name: str) -> int:
    """Of a picture or of all frames of a video; 0 where that is not easily known."""
    with suppress(Exception):  # the run itself tells what is wrong with a file
        if is_video(name):
            from basicsr.inference.video_files import VideoFile

            video = VideoFile(name)
            return video.width * video.height * (video.total or _FRAMES_OF_UNKNOWN)
        with Image.open(name) as image:
            return image.width * image.height
    return 0
