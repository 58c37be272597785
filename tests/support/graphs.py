"""Small ONNX files with known contents, made without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_graph(
    path: Path, *, scale: int = 2, channels: int = 3, size: tuple[int, int] | None = None, seed: int = 0
) -> Path:
    """A 3x3 convolution and a pixel shuffle, random weights; `scale` stands in its metadata."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(0, 0.1, (channels * scale**2, channels, 3, 3)).astype(np.float32)
    height, width = size or ("height", "width")
    taken = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", channels, height, width])
    given = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", channels, None, None])
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["inner"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["inner"], ["output"], blocksize=scale, mode="CRD"),
    ]
    graph = helper.make_graph(nodes, "graph", [taken], [given], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"scale": str(scale)})
    onnx.save(model, str(path))
    return path
