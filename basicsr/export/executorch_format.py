"""ExecuTorch with XNNPACK: programs for apps of PyTorch's own runtime on phones and computers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from torch.fx import GraphModule, Node

from basicsr.export.base import Check, ExportFormat, ExportJob
from basicsr.export.descriptors import Limit
from basicsr.export.graph_passes import without_aliases
from basicsr.export.graph_rewrites import (
    finished,
    own_dequantize_for_each_user,
    quantize_before_shuffles,
)
from basicsr.export.tracing import quiet
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY
from basicsr.utils.silence import silent_stderr
from basicsr.utils.text import first_line

_LONGEST_SIDE = 256  # of a file for any size: memory is laid out for the largest image


@EXPORT_REGISTRY.register()
class ExecuTorchTarget(ExportFormat):
    """One file whose work XNNPACK does, for one image at a time; see docs/targets/executorch.md."""

    name, ending, order, runtime, extra = "executorch", ".pte", 50, "executorch", "executorch"
    packages = ("executorch", "torchao")
    precisions = ("float32", "int8")
    limits = dict.fromkeys(
        (
            *("attention in windows", "folding by strides", "pooling into parts of the image"),
            *("resizing to the image's size", "sides extended to multiples"),
        ),
        Limit("ExecuTorch does not compute with the sizes of images", with_size=True),
    )

    def write(self, job: ExportJob, path: Path) -> list[Check]:
        """See `ExportFormat.write`."""
        write_executorch(job, path)
        if job.size is None:
            job.remarks.append(
                f"the executorch file takes images up to {_LONGEST_SIDE}x{_LONGEST_SIDE}, and its memory is laid out"
                " for these; --size H W makes one for one size"
            )
        return job.compare_loaded(f"executorch, {job.precision}", self.load(path), smallest=job.smallest)


def write_executorch(job: ExportJob, path: Path) -> None:
    """Writes the file; raises CheckpointError if ExecuTorch cannot express the network, or XNNPACK takes too little."""
    program, channels = job.program, job.student.pretrained.in_channels
    about = {**job.metadata(), "sizes": "x".join(map(str, job.size)) if job.size else "any"}
    try:
        with quiet(), silent_stderr():
            module = program.module(check_guards=False)
            assert isinstance(module, GraphModule)
            without_aliases(module.graph)  # ExecuTorch's own copy of one fails
            quantize_before_shuffles(module)
            own_dequantize_for_each_user(module)
            lowered = _lowered(finished(module), channels, job.size, json.dumps(about))
            work = Work.of(lowered.exported_program().graph_module)
            content = lowered.to_executorch().buffer
    except Exception as error:  # its exceptions have no common ancestor
        raise CheckpointError(f"the network cannot be written for ExecuTorch ({first_line(error)})") from error
    if work.outside and (kind := next((name for name in work.outside if "convolution" in name), None)):
        raise CheckpointError(f"XNNPACK does not take {work.outside[kind]} of the network's convolutions")
    if job.precision == "int8" and not work.integer_convolutions:
        raise CheckpointError("XNNPACK computes none of the network's convolutions in int8")
    job.remarks.append(str(work) if job.precision == "int8" else work.share)
    path.write_bytes(content)


def _lowered(module: GraphModule, channels: int, size: tuple[int, int] | None, about: str) -> Any:
    """ExecuTorch's program, with a method `about` that returns a text."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    longest = Dim.AUTO(min=1, max=_LONGEST_SIDE)
    sizes: Any = None if size else ({2: longest, 3: longest},)
    example = torch.zeros(1, channels, *(size or (_LONGEST_SIDE, _LONGEST_SIDE - 8)))
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=sizes, strict=False)
        return to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={"about": about}
        )


@dataclass(frozen=True)
class Work:
    """What of a program XNNPACK does.

    Attributes:
        inside: how many operators it does.
        outside: those of ExecuTorch's own, by name.
        convolutions: how many XNNPACK does.
        integer_convolutions: how many of these between integers, with integer weights.
    """

    inside: int
    outside: Counter[str]
    convolutions: int
    integer_convolutions: int

    @classmethod
    def of(cls, program: GraphModule) -> Work:
        """Of a lowered program."""
        outside = Counter(_name(node) for node in _calls(program) if not _is_plumbing(node))
        parts = [getattr(program, str(node.target)) for node in program.graph.nodes if node.op == "get_attr"]
        inside = [node for part in parts for node in _calls(part.original_module.graph_module)]
        convolutions = [node for node in inside if "convolution" in _name(node)]
        integers = sum(map(_is_of_integers, convolutions))
        return cls(len(inside), outside, len(convolutions), integers)

    @property
    def share(self) -> str:
        """How much of the program XNNPACK does."""
        own = f"; ExecuTorch's own do {', '.join(sorted(self.outside))}" if self.outside else ""
        return f"XNNPACK does {self.inside} of {self.inside + self.outside.total()} operators{own}"

    def __str__(self) -> str:
        return f"{self.share}; {self.integer_convolutions} of {self.convolutions} convolutions in int8"


def _calls(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "call_function"]


def _name(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_plumbing(node: Node) -> bool:
    """Whether a call only leads to XNNPACK and back, or computes a size."""
    value = node.meta.get("val")
    return "delegate" in _name(node) or _name(node) == "getitem" or not isinstance(value, torch.Tensor)


def _is_of_integers(node: Node) -> bool:
    """Whether a convolution's input and weight come from integers, and its output becomes some."""
    given = all(isinstance(one, Node) and "dequantize" in _name(one) for one in node.args[:2])
    users = list(node.users)
    if len(users) == 1 and any(kind in _name(users[0]) for kind in ("relu", "hardtanh", "clamp")):
        users = list(users[0].users)
    return (
        given
        and bool(users)
        and all(_name(user).startswith(("quantize", "quantized_decomposed.quantize")) for user in users)
    )
