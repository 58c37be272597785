"""LiteRT (TensorFlow Lite): files for phones, tablets and small computers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from basicsr.export import graph_rewrites
from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.descriptors import Limit
from basicsr.export.tracing import quiet
from basicsr.runtimes.litert_runtime import LiteRT
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.silence import silent_stderr
from basicsr.utils.text import first_line

_STATED_SIZE = (128, 128)  # of a file for any size, as long as no program asks for another
_HIGHEST_RANK = 4  # of tensors: GPU delegates take no higher one


@EXPORT_REGISTRY.register()
class LiteRTTarget(ExportFormat):
    """One file of LiteRT's own operators, one image in and one out, channels first or last; docs/targets/litert.md."""

    name, ending, order, runtime, extra = "litert", ".tflite", 40, "litert", "litert"
    packages = ("litert_torch",)
    precisions = ("float32", "int8")
    takes_nhwc = True
    limits = dict.fromkeys(
        (
            *("attention in windows", "bicubic enlargement inside", "folding by strides", "layer norm over channels"),
            *("a channel of the noise level", "pooling into parts of the image", "resizing to the image's size"),
            *("sides extended to multiples", "bilinear enlargement", "channels cut apart"),
        ),
        Limit("LiteRT's files hold the sizes that they were made for", with_size=True),
    )

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        content = litert_content(job)
        path.write_bytes(content)
        if job.size is None:
            height, width = _STATED_SIZE
            job.remarks.append(
                f"the litert file states {height}x{width}: for other sizes programs resize its input; or give --size"
            )
        if (rank := max(one.rank for one in operators(content))) > _HIGHEST_RANK:
            job.remarks.append(
                f"the litert file has tensors of {rank} axes, GPU delegates take {_HIGHEST_RANK}: it is for CPUs"
            )
        checks = []
        for kind, xnnpack in ((f"{self.name}, {job.precision}", True), (f"{self.name} without XNNPACK", False)):
            loaded = LiteRT().load(path, threads=torch.get_num_threads(), settings={"xnnpack": xnnpack})
            try:
                checks += job.compare_loaded(kind, loaded, smallest=job.smallest)
            except CheckpointError as error:
                if job.size is not None:
                    raise
                raise CheckpointError(f"{error}; if the network computes with sizes, give --size H W") from error
        return checks


def litert_content(job: ExportJob) -> bytes:
    """The file; raises CheckpointError if the converter cannot express the network."""
    size = job.size or _STATED_SIZE
    program = replace(job, size=size).program
    example = torch.zeros(1, job.student.pretrained.in_channels, *size)
    try:
        with quiet(), silent_stderr():
            module: nn.Module = _graph(program)
            if job.nhwc:
                module, example = _ChannelsLast(module), example.permute(0, 2, 3, 1).contiguous()
            content = _described(_converted(module, example, job.precision == "int8"), job)
    except Exception as error:  # the converter's exceptions have no common ancestor
        raise CheckpointError(f"the network cannot be written for LiteRT ({first_line(error)})") from error
    if foreign := {one.name for one in operators(content)} & {"CUSTOM", "STABLEHLO_COMPOSITE"}:
        raise CheckpointError(f"the network needs operators that are none of LiteRT's own ({', '.join(foreign)})")
    return content


class _ChannelsLast(nn.Module):
    """A network of images (B, H, W, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, sH, sW, C)."""
        return self.network(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _graph(program: ExportedProgram) -> GraphModule:
    """A network's graph for one size, with what LiteRT has operators for."""
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    _register_operators()
    graph_rewrites.repeats_as_concatenations(module)
    graph_rewrites.quantize_before_shuffles(module)
    graph_rewrites.replace_prelus(module, _prelu)
    graph_rewrites.replace_shuffles(module, _depth_to_space)
    graph_rewrites.replace_enlargements(module, _repeated_pixels)
    graph_rewrites.own_dequantize_for_each_user(module)
    graph_rewrites.weights_as_values(module)
    return graph_rewrites.finished(module)


def _depth_to_space(x: Tensor, factor: int) -> Tensor:
    """DEPTH_TO_SPACE, for (B, r r C, H, W): a pixel shuffle in one step, where reshapes would need six axes."""
    return torch.ops.mcadkd.depth_to_space(x.permute(0, 2, 3, 1), factor).permute(0, 3, 1, 2)


def _repeated_pixels(x: Tensor, factor: int) -> Tensor:
    """Copies of all channels, and DEPTH_TO_SPACE: LiteRT's own operator for it holds the size of the result."""
    copies = torch.cat([x.permute(0, 2, 3, 1)] * factor**2, 3)
    return torch.ops.mcadkd.depth_to_space(copies, factor).permute(0, 3, 1, 2)


def _prelu(x: Tensor, slopes: Tensor) -> Tensor:
    """PRELU, for (B, C, H, W), where the converter would write four operators."""
    return torch.ops.mcadkd.prelu(x.permute(0, 2, 3, 1), slopes).permute(0, 3, 1, 2)


@cache
def _register_operators() -> None:
    """Makes operators of LiteRT known to PyTorch, and to the converter."""
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo
    from litert_torch.backend.lowerings import registry, utils

    def lowered(context: Any, name: str, inputs: list[Any], **attributes: Any) -> Any:
        return stablehlo.custom_call(
            result=utils.node_meta_to_ir_types(context.node),
            inputs=inputs,
            call_target_name=ir.StringAttr.get(name),
            has_side_effect=ir.BoolAttr.get(False),
            backend_config=ir.StringAttr.get(str(ir.DictAttr.get(attributes))),
        )

    @torch.library.custom_op("mcadkd::depth_to_space", mutates_args=())
    def depth_to_space(x: Tensor, factor: int) -> Tensor:
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height, width, factor, factor, channels // factor**2).transpose(2, 3)
        return x.reshape(batch, height * factor, width * factor, channels // factor**2)

    @depth_to_space.register_fake
    def _(x: Tensor, factor: int) -> Tensor:
        batch, height, width, channels = x.shape
        return x.new_empty(batch, height * factor, width * factor, channels // factor**2)

    @registry.lower(torch.ops.mcadkd.depth_to_space.default)
    def _(context: Any, x: Any, factor: int) -> Any:
        size = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), factor)
        return lowered(context, "tfl.depth_to_space", [x], block_size=size)

    @torch.library.custom_op("mcadkd::prelu", mutates_args=())
    def prelu(x: Tensor, slopes: Tensor) -> Tensor:
        return torch.where(x > 0, x, x * slopes)

    @prelu.register_fake
    def _(x: Tensor, slopes: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @registry.lower(torch.ops.mcadkd.prelu.default)
    def _(context: Any, x: Any, slopes: Any) -> Any:
        return lowered(context, "tfl.prelu", [x, slopes])


def _converted(module: nn.Module, example: Tensor, quantized: bool) -> bytes:
    import litert_torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    litert_torch.config.show_progress = False
    settings = None
    if quantized:  # only tells that the graph holds quantised values: nothing is calibrated here
        quantizer = PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        settings = QuantConfig(pt2e_quantizer=quantizer)
    module.training = False
    return litert_torch.convert(module, (example,), quant_config=settings).model_content()


def _described(content: bytes, job: ExportJob) -> bytes:
    """The file with plain names of its input and output, and what it is."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    (graph,) = model.subgraphs
    for name, places, entries in (
        ("input", graph.inputs, model.signatureDefs[0].inputs),
        ("output", graph.outputs, model.signatureDefs[0].outputs),
    ):
        graph.tensors[places[0]].name = entries[0].name = name
    changed = {"sizes": "x".join(map(str, job.size)) if job.size else "any"}
    if job.nhwc:
        changed["axes"] = "batch, height, width, channel"
    for key, text in {**job.metadata(), **changed}.items():
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer, buffer.data = key, len(model.buffers), list(text.encode())
        model.buffers.append(buffer)
        model.metadata.append(entry)
    network = job.student.pretrained
    model.description = f"{network.architecture} x{network.scale}: {job.student.colours} images, {job.precision} inside"

    class Aligned(flatbuffers.Builder):  # as the schema asks of buffers
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
            return super().StartVector(elemSize, numElems, max(alignment, 16))

    builder = Aligned(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class Operator(NamedTuple):
    """One operator of a file: its name, the type of its first input, and the highest rank of its tensors."""

    name: str
    type: str
    rank: int


def operators(content: bytes) -> list[Operator]:
    """The operators of a file, in their order."""
    return list(_operators(content))


def _operators(content: bytes) -> Iterator[Operator]:
    from ai_edge_litert import schema_py_generated as schema

    names, types = (_by_number(kind) for kind in (schema.BuiltinOperator, schema.TensorType))
    model = schema.ModelT.InitFromPackedBuf(content)
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            used = [graph.tensors[place] for place in (*operator.inputs, *operator.outputs) if place >= 0]
            rank = max((len(tensor.shape) for tensor in used if tensor.shape is not None), default=0)
            yield Operator(names[max(code.builtinCode, code.deprecatedBuiltinCode)], types[used[0].type], rank)


def _by_number(kind: type) -> Mapping[int, str]:
    return {number: name for name, number in vars(kind).items() if isinstance(number, int)}
