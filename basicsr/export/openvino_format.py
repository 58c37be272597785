"""OpenVINO: Intel's processors, and others of their kind."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.onnx_format import ONNX, onnx_model
from basicsr.quantization.layers import quantized_layers
from basicsr.quantization.lowering import LoweredForm
from basicsr.utils.registry import EXPORT_REGISTRY

_FORM = LoweredForm(activations="uint8")


@EXPORT_REGISTRY.register()
class OpenVinoTarget(ExportFormat):
    """The graph, and the weights beside it; batch, height and width are free.

    Read from the ONNX graph. In fp16 the weights are stored in it and computing is the runtime's choice.
    """

    name, ending, further, order, runtime, extra = "openvino", ".xml", (".bin",), 11, "openvino", "openvino"
    packages = ONNX.packages
    precisions = ("float32", "fp16", "int8")

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        import openvino

        halved = job.precision == "fp16"
        if job.precision == "int8":
            job = job.changed(without_inner_roundings)
        content = onnx_model(job.in_float() if halved else job, _FORM).SerializeToString()
        model = openvino.Core().read_model(content)
        model.set_rt_info(job.precision, ["framework", "precision"])
        try:
            openvino.save_model(model, path, compress_to_fp16=halved)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        return job.compare_loaded(f"{self.name}, {job.precision}", self.load(path), smallest=job.smallest)


def without_inner_roundings(network: nn.Module) -> None:
    """Leaves sums and activation functions between layers in float32: OpenVINO makes them part of convolutions."""
    for layer in quantized_layers(network).values():
        if layer.plan.output == "calibrated":
            layer.output_quantizer = None
