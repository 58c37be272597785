"""Core ML, converted by coremltools: iPhones, iPads, Macs."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.descriptors import Limit
from basicsr.export.graph_passes import simplified
from basicsr.export.mil_evaluation import MilProgram
from basicsr.export.tracing import quiet, smallest_side, traceable
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.text import first_line

_SMALLEST = 2  # pixels a side: a graph of PyTorch's for several sizes is not for a single pixel
LONGEST = 2048  # pixels a side, of a file for images of several sizes: Core ML wants an end
_WITHOUT_SIZES = "coremltools converts no sizes and indices computed from the image's"


@EXPORT_REGISTRY.register()
class CoreMLTarget(ExportFormat):
    """An ML program for iOS 16 and macOS 13 on, a folder; one image, height and width up to 2048 pixels.

    In fp16 all is, but the input, the output, the first and the last convolution. Only Apple's systems have Core ML:
    elsewhere the file's operations are evaluated by PyTorch.
    """

    name, ending, order, runtime, extra = "coreml", ".mlpackage", 15, "coreml", "coreml"
    packages = ("coremltools",)
    limits = {
        "attention in windows": Limit(_WITHOUT_SIZES, with_size=True),
        "attention between channels": Limit(_WITHOUT_SIZES, with_size=True),
        "a channel of the noise level": Limit(_WITHOUT_SIZES, with_size=True),
        "folding by strides": Limit(_WITHOUT_SIZES, with_size=True),
        "pooling into parts of the image": Limit(_WITHOUT_SIZES, with_size=True),
        "resizing to the image's size": Limit("Core ML resizes by fixed factors", with_size=True),
        "sides extended to multiples": Limit(_WITHOUT_SIZES, with_size=True),
    }

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        network = job.student.pretrained
        smallest = max(_SMALLEST, smallest_side(network.network)) if job.size is None else 1
        model = _converted(job, smallest)
        model.short_description = f"{network.architecture} x{network.scale}: {job.student.colours} images in [0, 1]"
        told = job.metadata()
        model.user_defined_metadata.update(told if job.size is None else {**told, "size": "x".join(map(str, job.size))})
        model.save(str(path))
        if job.size is None:
            least = f"{smallest}x{smallest}"
            job.remarks.append(f"the coreml file takes images of {least} to {LONGEST}x{LONGEST} pixels")
        program = MilProgram(path)

        def run(lq: Tensor) -> Tensor:
            return torch.cat([program(image) for image in lq.split(1)])

        checks = job.compare(f"coreml, {job.precision} (operations by PyTorch)", run, smallest=smallest)
        if sys.platform == "darwin":
            return checks + job.compare_loaded(f"coreml, {job.precision}", self.load(path), smallest=smallest)
        job.remarks.append("the coreml file was not run by Core ML, which this system has not")
        return checks


def _converted(job: ExportJob, smallest: int) -> Any:
    """coremltools' model; CheckpointError if it cannot make one."""
    import coremltools

    network = job.student.pretrained
    half = coremltools.transform.FP16ComputePrecision(op_selector=_is_inside) if job.precision == "fp16" else None
    try:
        with _silent():
            program = _program(job, smallest)
            model = coremltools.convert(
                program,
                convert_to="mlprogram",
                outputs=[coremltools.TensorType("output", dtype=np.float32)],
                minimum_deployment_target=coremltools.target.iOS16,
                compute_precision=half or coremltools.precision.FLOAT32,
                skip_model_load=True,
            )
            spec = model.get_spec()
            coremltools.utils.rename_feature(spec, program.graph_signature.user_inputs[0], "input")
            return coremltools.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True)
    except Exception as error:  # whatever PyTorch and coremltools raise on a network unlike ours
        raise CheckpointError(f"{network.architecture} cannot be written for coreml ({first_line(error)})") from error


def _is_inside(operation: Any) -> bool:
    """Whether it lies between the first and the last convolution: 11 bits are too few for an image."""
    operations = list(operation.enclosing_block.operations)
    convolutions = [at for at, other in enumerate(operations) if other.op_type == "conv"]
    return bool(convolutions) and convolutions[0] < operations.index(operation) < convolutions[-1]


def _program(job: ExportJob, smallest: int) -> ExportedProgram:
    """The network's graph, for one image."""
    network = job.student.pretrained
    wrapped = traceable(network.network, "float32", any_size=job.size is None)
    sides = job.size or (max(24, smallest + 3), max(32, smallest + 9))
    free = Dim.AUTO(min=smallest, max=LONGEST)
    shapes = None if job.size else ({2: free, 3: free},)
    example = (torch.zeros(1, network.in_channels, *sides),)
    with torch.no_grad(), quiet():
        return simplified(torch.export.export(wrapped, example, dynamic_shapes=shapes, strict=False), shapes)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides coremltools' progress bars and warnings."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
