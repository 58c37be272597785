"""TensorRT: an ONNX file for NVIDIA's GPUs, from which `trtexec` builds an engine; not run by TensorRT here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.onnx_format import ONNX, write_onnx
from basicsr.quantization.layers import QuantLayer, quantized_layers
from basicsr.quantization.lowering import LoweredForm
from basicsr.utils.registry import EXPORT_REGISTRY

_FORM = LoweredForm(activations="int8")
_MIDDLE = 128  # the integer that stands for zero, counted from 0; for TensorRT zero itself


@EXPORT_REGISTRY.register()
class TensorRTTarget(ExportFormat):
    """One ONNX file; batch, height and width are free, and `trtexec` is to be given their ranges.

    In int8 all scales are explicit and symmetric. The layers on the image and those that make it stay in float: 8-bit
    images need all 256 steps, and symmetric integers leave 128 for them.
    """

    name, ending, order, runtime = "tensorrt", ".onnx", 12, "onnxruntime"
    packages = ONNX.packages
    precisions = ("float32", "fp16", "int8")

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        if job.precision == "int8":
            job = job.changed(symmetric)
        write_onnx(job, path, _FORM)
        job.remarks.append(
            "the file for tensorrt was run by onnxruntime, not by TensorRT: build and measure it on your GPU"
        )
        return job.compare_loaded(f"{self.name}, {job.precision}", self.load(path), smallest=job.smallest)


def symmetric(network: nn.Module) -> None:
    """Gives all activations a zero point of zero, over ranges as large; layers at the image become float ones."""
    for layer in quantized_layers(network).values():
        if layer.plan.image_in is not None or layer.plan.image_out is not None:
            _in_float(layer)
            continue
        for quantizer in (layer.input_quantizer, layer.output_quantizer):
            if quantizer is not None and quantizer.integers == "int8":
                low, high = (float(quantizer.scale) * (end - int(quantizer.zero_point)) for end in (0, 255))
                quantizer.set_step(max(-low / _MIDDLE, high / (_MIDDLE - 1)), _MIDDLE)


def _in_float(layer: QuantLayer) -> None:
    """Makes a layer what it was before, with its weights."""
    kind: Any = next(base for base in type(layer).__mro__ if not issubclass(base, QuantLayer))
    layer.__class__ = kind
    for name in ("input_quantizer", "output_quantizer"):
        delattr(layer, name)
