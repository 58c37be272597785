"""ONNX: a graph with its weights, checked in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from basicsr.export.base import ExportFormat, ExportJob
from basicsr.export.checks import Check
from basicsr.export.tracing import quiet
from basicsr.quantization.layers import quantized_layers
from basicsr.quantization.lowering import LoweredForm
from basicsr.runtimes.base import LoadedFile, runtimes
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.text import first_line

_INT16_OPSET = 21


@EXPORT_REGISTRY.register()
class ONNX(ExportFormat):
    """One file, weights inside, with `input` and `output`; batch, height and width are free."""

    name, ending, order = "onnx", ".onnx", 2
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        write_onnx(job, path)
        return job.compare_loaded("onnx (onnxruntime)", load_in_onnxruntime(path), smallest=job.smallest)


def load_in_onnxruntime(path: Path) -> LoadedFile:
    """On as many threads as PyTorch has; raises CheckpointError if it is refused."""
    return runtimes()["onnxruntime"].load(path, threads=torch.get_num_threads())


def write_onnx(job: ExportJob, path: Path, form: LoweredForm | None = None) -> None:
    """Writes the file; raises as `onnx_model`."""
    import onnx

    onnx.save(onnx_model(job, form), str(path))


def onnx_model(job: ExportJob, form: LoweredForm | None = None) -> Any:
    """The graph, an `onnx.ModelProto`, in int8 with integers of this form.

    Raises CheckpointError if it cannot be expressed in this opset.
    """
    import onnx

    network, opset = job.student.pretrained, job.opset
    layers = quantized_layers(network.network).values()
    if opset < _INT16_OPSET and any(layer.plan.integers == "int16" for layer in layers):
        raise CheckpointError(f"ONNX has int16 activations from opset {_INT16_OPSET} on: give --opset {_INT16_OPSET}")
    program = job.program_of(form)  # whose own message says all
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(
                program,
                input_names=["input"],
                output_names=["output"],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        assert exported is not None, "PyTorch made no model"
        model = exported.model_proto
        _tidy(model, network.scale)
        onnx.helper.set_model_props(model, job.metadata())
        model.doc_string = (
            f"{network.architecture} x{network.scale}: {job.student.colours} images in [0, 1], {job.precision} inside"
        )
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the exporter's and the checker's exceptions have no common ancestor
        raise CheckpointError(
            f"the network cannot be written as ONNX of opset {opset} ({first_line(error)})"
        ) from error
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise CheckpointError(f"--opset {opset}: this PyTorch wrote opset {written}; give --opset {written}")
    return model


def _tidy(model: Any, scale: int) -> None:
    """Names the free sizes, and drops the exporter's notes: they hold folders of this machine."""
    graph = model.graph
    free = [axis for axis, dim in enumerate(graph.input[0].type.tensor_type.shape.dim) if not dim.dim_value]
    enlarged = "" if scale == 1 else f"{scale}*"
    for value, factor in ((graph.input[0], ""), (graph.output[0], enlarged)):
        dims = value.type.tensor_type.shape.dim
        for axis, named in ((0, "batch"), (2, f"{factor}height"), (3, f"{factor}width")):
            if axis in free:
                dims[axis].dim_param = named
    del graph.value_info[:]
    inner = [node for function in model.functions for node in function.node]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions, *inner):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
