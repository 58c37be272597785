"""ONNX: writing a traced network, and running the file in onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from basicsr.export.tracing import first_line, quiet
from basicsr.utils.errors import CheckpointError, MachineError

# The exporter writes 18 and, by conversion, what is newer.
OPSETS = (18, 19, 20, 21, 22, 23)
DEFAULT_OPSET = 18
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages() -> None:
    """Raises MachineError, saying what to install, where a package is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MachineError(
            f"--formats onnx needs {', '.join(missing)}, not installed here: pip install -e '.[export]',"
            " or leave onnx out of --formats"
        )


def write_onnx(
    program: ExportedProgram, path: Path, *, opset: int, scale: int, metadata: Mapping[str, str], description: str
) -> None:
    """Writes a program as an ONNX file of its own, weights inside; input and output are called so.

    Args:
        program: of a network that maps (B, C, H, W) to (B, C, sH, sW).
        path: the file.
        opset: version of ONNX's operators.
        scale: factor of enlargement, for the names of the output's sizes.
        metadata: kept as the model's properties.
        description: what it is, for those who open it in a viewer.

    Raises:
        CheckpointError: the exporter cannot express the network in this opset.
        OSError: the file cannot be written.
    """
    import onnx

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
        model = exported.model_proto if exported is not None else None
        if model is None:
            raise RuntimeError("PyTorch made no model")
        _tidy(model, scale)
        onnx.helper.set_model_props(model, dict(metadata))
        model.doc_string = description
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the exporter's and the checker's exceptions have no common ancestor
        raise CheckpointError(
            f"the network cannot be written as ONNX of opset {opset} ({first_line(error)})"
        ) from error
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise CheckpointError(f"--opset {opset}: this PyTorch wrote opset {written}; give --opset {written}")
    onnx.save(model, str(path))


def _tidy(model: Any, scale: int) -> None:
    """Names the free sizes, and drops notes of the exporter: they tell the folders of this machine."""
    graph = model.graph
    enlarged = "" if scale == 1 else f"{scale}*"
    names = {graph.input[0].name: ("height", "width"), graph.output[0].name: (f"{enlarged}height", f"{enlarged}width")}
    for value in (graph.input[0], graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        dims[2].dim_param, dims[3].dim_param = names[value.name]
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


def onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Loads an ONNX file into onnxruntime on the CPU.

    Returns:
        A function from (B, C, H, W) to (B, C, sH, sW), float32.

    Raises:
        CheckpointError: onnxruntime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common ancestor
        raise CheckpointError(f"onnxruntime does not load {path.name} ({first_line(error)})") from error

    def run(lq: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": lq.numpy()})[0])

    return run
