"""ncnn, converted by pnnx: phones, and desktop programs such as Upscayl."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.descriptors import Limit
from basicsr.export.tracing import quiet, smallest_side, traceable
from basicsr.runtimes.ncnn_runtime import MAGIC, fact_name, read_layers
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.text import first_line

INPUT, OUTPUT = "data", "output"  # blobs, as Upscayl and Real-ESRGAN's program for ncnn name them
_PNNX_NAMES = {"in0": INPUT, "out0": OUTPUT}
_UPSCAYLS_SCALES = (1, 2, 3, 4, 8, 16)  # in the order in which its program looks for them in a name
_TRIAL = """
import sys
from pathlib import Path
import numpy
from basicsr.runtimes.ncnn_runtime import Ncnn
loaded = Ncnn().load(Path(sys.argv[1]), threads=1)
for shape in sys.argv[2:]:
    loaded(numpy.zeros([int(side) for side in shape.split("x")], numpy.float32))
"""


@EXPORT_REGISTRY.register()
class NcnnTarget(ExportFormat):
    """`.param` and `.bin`, with the blobs `data` and `output`, as Upscayl takes them; one image, height and width free.

    In fp16 the weights are stored in it; features and arithmetic are the runtime's choice.
    """

    name, ending, further, order, runtime, extra = "ncnn", ".param", (".bin",), 12, "ncnn", "ncnn"
    packages = ("pnnx",)
    limits = {
        "attention in windows": Limit("ncnn's tensors have four axes, windows need six"),
        "attention between channels": Limit("pnnx converts its normalisation to something else"),
        "bicubic enlargement inside": Limit("ncnn has no layer that mirrors rows"),
        "folding by strides": Limit("ncnn cuts without strides"),
        "a channel of the noise level": Limit("ncnn cannot compute with the sizes of images", with_size=True),
        "pooling into parts of the image": Limit("ncnn cannot compute with the sizes of images", with_size=True),
        "sides extended to multiples": Limit("ncnn cannot compute with the sizes of images", with_size=True),
    }

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        network = job.student.pretrained
        smallest = smallest_side(network.network) if job.size is None else 1
        with tempfile.TemporaryDirectory(prefix="pnnx-") as folder:
            _convert(job, Path(folder), smallest)
            layers = _renamed(read_layers(Path(folder) / "net.ncnn.param"), _facts(job, smallest))
            blobs = {blob for layer in layers for blob in layer[4 : 4 + int(layer[2]) + int(layer[3])]}
            lines = [MAGIC, f"{len(layers)} {len(blobs)}", *map(" ".join, layers)]
            path.write_text("\n".join(lines) + "\n", "ascii")
            path.with_suffix(".bin").write_bytes((Path(folder) / "net.ncnn.bin").read_bytes())
        _try_apart(job, path, smallest)
        if smallest > 1:
            job.remarks.append(f"the ncnn file takes images of at least {smallest}x{smallest} pixels")
        job.remarks += upscayls_remarks(path.stem, network.scale, network.in_channels, job.size)
        checks = job.compare_loaded(f"{self.name}, {job.precision}", self.load(path), smallest=smallest)
        return checks + (_checks_of_features(job, smallest) if job.precision == "fp16" else [])


def _convert(job: ExportJob, folder: Path, smallest: int) -> None:
    """Writes `net.ncnn.param` and `net.ncnn.bin` by pnnx, from a trace; CheckpointError if that fails."""
    import pnnx

    network = job.student.pretrained
    wrapped = traceable(network.network, "float32", any_size=job.size is None)
    # Two sizes show pnnx which numbers are sizes.
    sides = [(max(24, smallest + 3), max(32, smallest + 8)), (max(36, smallest + 9), max(44, smallest + 20))]
    shapes = [(1, network.in_channels, *size) for size in ([job.size] if job.size else sides)]
    try:
        with torch.no_grad(), quiet():
            traced = torch.jit.trace(wrapped, torch.rand(shapes[0]), check_trace=False)
            torch.jit.save(traced, str(folder / "net.pt"))
    except Exception as error:  # whatever PyTorch raises on a network unlike ours
        raise CheckpointError(f"{network.architecture} cannot be traced ({first_line(error)})") from error
    options = [f"inputshape{'2' * at}=[{','.join(map(str, shape))}]" for at, shape in enumerate(shapes)]
    command = [pnnx.EXEC_PATH, "net.pt", *options, f"fp16={int(job.precision == 'fp16')}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise CheckpointError(f"pnnx does not start: {error.strerror}") from error
    said = f"{done.stdout}\n{done.stderr}".splitlines()
    if done.returncode or not (folder / "net.ncnn.bin").is_file():
        last = next((line for line in reversed(said) if line.strip()), "it says nothing")
        raise CheckpointError(f"pnnx cannot convert {network.architecture} (exit code {done.returncode}: {last})")
    unknown = {layer[0] for layer in read_layers(folder / "net.ncnn.param") if "." in layer[0]}
    if unknown:  # what pnnx leaves in PyTorch's words
        raise CheckpointError(f"{network.architecture} has operations that ncnn has not: {', '.join(sorted(unknown))}")
    if notes := [line for line in said if "unsupported" in line or "not supported" in line]:
        raise CheckpointError(f"pnnx cannot convert {network.architecture} ({notes[0].strip()})")


def _facts(job: ExportJob, smallest: int) -> dict[str, str]:
    """What the file says of itself, in little room."""
    network = job.student.pretrained
    facts = {
        "scale": str(network.scale),
        "channels": str(network.in_channels),
        "precision": job.precision,
        "smallest": str(smallest),
        "network": re.sub(r"\W", "", network.architecture)[:40],
        "sha256": job.student.sha256,
    }
    return facts if job.size is None else {**facts, "size": f"{job.size[0]}x{job.size[1]}"}


def _renamed(layers: Sequence[Sequence[str]], facts: dict[str, str]) -> list[list[str]]:
    """The layers with our names of the input and the output, and the facts in the name of the input's layer."""
    renamed = []
    for kind, name, inputs, outputs, *rest in layers:
        blobs = int(inputs) + int(outputs)
        words = [_PNNX_NAMES.get(word, word) for word in rest[:blobs]] + rest[blobs:]
        renamed.append([kind, fact_name(facts) if kind == "Input" else name, inputs, outputs, *words])
    return renamed


def _try_apart(job: ExportJob, path: Path, smallest: int) -> None:
    """Runs the file in a process of its own first, which ncnn's code ends on shapes that do not fit."""
    channels = job.student.pretrained.in_channels
    height, width = job.size or (smallest, max(smallest, 40))
    command = [sys.executable, "-c", _TRIAL, str(path), f"1x{channels}x{height}x{width}"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise CheckpointError(
            f"{path.name} was not written: ncnn crashes on {job.student.pretrained.architecture} (signal"
            f" {-done.returncode})"
        )
    if done.returncode:
        last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        raise CheckpointError(f"{path.name} was not written: ncnn does not run it ({last})")


def _checks_of_features(job: ExportJob, smallest: int) -> list[Check]:
    """What ncnn's fp16 on phones and GPUs makes of the features, by PyTorch: ncnn for this CPU has no fp16."""
    halved = traceable(job.student.pretrained.network, "fp16", any_size=job.size is None)
    return job.compare("ncnn, features in fp16 (by PyTorch)", halved, smallest=smallest)


def upscayls_remarks(stem: str, scale: int, channels: int, size: tuple[int, int] | None) -> list[str]:
    """What keeps Upscayl from running a file of this name, in sentences.

    Its program finds the scale in the name: the first of 1, 2, 3, 4, 8, 16 that is there as x2 or 2x, else 4.
    """
    if channels != 3 or size is not None or scale not in _UPSCAYLS_SCALES[1:5]:
        return ["Upscayl cannot run the ncnn file: it takes RGB networks of any size for x2, x3, x4"]
    read = next((one for one in _UPSCAYLS_SCALES if f"x{one}" in stem or f"{one}x" in stem), 4)
    if read == scale:
        return []
    return [f"Upscayl takes {stem} for x{read}, by its name: give another --name, where x{scale} comes without others"]
