"""onnxruntime: the ONNX file, for computers of any kind."""

from __future__ import annotations

from pathlib import Path

from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.onnx_format import ONNX, write_onnx
from basicsr.quantization.lowering import LoweredForm
from basicsr.utils.registry import EXPORT_REGISTRY

# What its integer kernels take; without int32 biases it adds them in float32.
_FORM = LoweredForm(activations="uint8", int32_bias=True)


@EXPORT_REGISTRY.register()
class OnnxRuntimeTarget(ExportFormat):
    """One file, weights inside, with `input` and `output`; batch, height and width are free."""

    name, ending, order, runtime = "onnxruntime", ".onnx", 10, "onnxruntime"
    packages = ONNX.packages
    precisions = ("float32", "fp16", "int8")

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        write_onnx(job, path, _FORM)
        return job.compare_loaded(f"{self.name}, {job.precision}", self.load(path), smallest=job.smallest)
