"""Changes to a graph of torch.export that keep its values, for converters that know fewer operations than PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from basicsr.export.tracing import quiet

aten = torch.ops.aten


def simplified(program: ExportedProgram, shapes: Any) -> ExportedProgram:
    """The program with what is constant computed, without aliases, and with factors in additions as products.

    `shapes` are the `dynamic_shapes` that it was traced with. Whole numbers of 64 bits become ones of 32.
    """
    with torch.no_grad(), quiet():
        module = program.run_decompositions({}).module(check_guards=False)
        assert isinstance(module, fx.GraphModule)
        without_aliases(module.graph)
        _compute_constants(module)
        _without_factors(module.graph)
        module.graph.eliminate_dead_code()
        module.recompile()
        arguments, _ = program.example_inputs
        return torch.export.export(module, arguments, dynamic_shapes=shapes, strict=False).run_decompositions({})


def without_aliases(graph: fx.Graph) -> None:
    """Removes operations that give what they get, in place."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target == aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _compute_constants(module: fx.GraphModule) -> None:
    """Replaces tensors that depend on no input, such as indices and masks, by their values."""
    graph, values = module.graph, dict[fx.Node, Tensor]()
    for node in graph.nodes:
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            values[node] = getattr(module.get_submodule(owner), name)
        elif node.op == "call_function" and _is_constant(node, values):
            arguments, options = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*arguments, **options)
    for number, node in enumerate(list(graph.nodes)):
        if node.op == "call_function" and node in values and any(user not in values for user in node.users):
            value = values[node].detach().clone(memory_format=torch.contiguous_format)
            module.register_buffer(f"computed_{number}", value.int() if value.dtype == torch.int64 else value)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(f"computed_{number}"))


def _is_constant(node: fx.Node, values: dict[fx.Node, Tensor]) -> bool:
    return isinstance(node.meta.get("val"), Tensor) and all(given in values for given in node.all_input_nodes)


def _without_factors(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and node.target == aten.add.Tensor and node.kwargs.get("alpha", 1) != 1:
            with graph.inserting_before(node):
                product = graph.call_function(aten.mul.Tensor, (node.args[1], node.kwargs["alpha"]))
            node.args, node.kwargs = (node.args[0], product), {}
