"""Which layers of a network are quantised, and where: found from its traced graph."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from basicsr.config.quantization import Activations, QuantizationSettings
from basicsr.optim.parts import selected
from basicsr.quantization.layers import Affine, LayerPlan, OutputKind, quantizable_layers
from basicsr.utils.errors import OptionsError
from basicsr.utils.reparameterization import Mergeable, merge
from basicsr.utils.text import first_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram  # takes a second to import

_ATEN = torch.ops.aten
_LAYERS = {_ATEN.conv2d.default, _ATEN.conv2d.padding, _ATEN.linear.default}
_RELUS = {_ATEN.relu.default, _ATEN.relu_.default}
# What leaves values as they are, in any number, and channels in their places.
_KEEPING = {
    *(_ATEN.contiguous.default, _ATEN.clone.default, _ATEN.alias.default, _ATEN.detach.default, _ATEN.dropout.default),
    *(_ATEN.upsample_nearest2d.vec, _ATEN.upsample_nearest2d.default, _ATEN.to.dtype),
}
_CLAMPS = {_ATEN.clamp.default, _ATEN.clamp_.default}
_ROUNDING = 1e-5
_SIDE = (48, 64)  # of the image that is traced: multiples of usual windows


class _Affine(NamedTuple):
    """A factor and an offset, of one number or by channel, (C)."""

    gain: Tensor
    shift: Tensor

    @property
    def is_nothing(self) -> bool:
        """Whether they change nothing, within float32's rounding."""
        return bool(((self.gain - 1).abs() < _ROUNDING).all() and (self.shift.abs() < _ROUNDING).all())

    def for_plan(self) -> Affine:
        """As plain numbers."""
        gain, shift = (tuple(part.flatten().tolist()) for part in self)
        return Affine(gain, shift)


_NOTHING = _Affine(torch.tensor(1.0), torch.tensor(0.0))


def plan_layers(network: nn.Module, settings: QuantizationSettings, channels: int = 3) -> dict[str, LayerPlan]:
    """Which layers are quantised, by name, and how; what is not in it stays in float.

    Args:
        network: takes images (B, `channels`, H, W) in [0, 1].
        settings: what is asked for.
        channels: of the network's input.

    Raises:
        OptionsError: the network cannot be traced, nothing is left to quantise, or a setting has no effect.
    """
    layers = quantizable_layers(network)
    graph = _Graph(_traced(network, channels), layers)
    plans = {name: graph.plan(name) for name in layers if graph.is_worthwhile(name)}
    if not plans:
        raise OptionsError(f"{type(network).__name__} has no convolution or linear layer that can be quantised")
    chosen = _chosen(type(network).__name__, plans, list(layers), settings)
    kept = {name: kind for name, kind in chosen.items() if kind != "float" and name in plans}
    if not kept:
        raise OptionsError("quantize: every layer is float, so nothing is quantised; give int8 or int16 for some")
    # Where a layer stays in float, the one before it has to quantise its own output.
    graph = _Graph(graph.program, {name: layers[name] for name in kept})
    return {name: graph.plan(name, kind) for name, kind in kept.items()}


def _chosen(
    network: str, plans: Mapping[str, LayerPlan], layers: Sequence[str], settings: QuantizationSettings
) -> dict[str, Activations]:
    """What the settings say of each layer; OptionsError where one of them has no effect."""
    chosen = dict.fromkeys(plans, settings.activations)
    ends = (
        ("first", settings.first, "takes", [name for name, plan in plans.items() if plan.image_in is not None]),
        ("last", settings.last, "makes", [name for name, plan in plans.items() if plan.image_out is not None]),
    )
    for key, activations, does, names in ends:
        if activations is not None and not names:
            raise OptionsError(
                f"quantize.{key}: no layer of {network} {does} the image itself; name layers in quantize.layers"
            )
        if activations is not None:
            chosen |= dict.fromkeys(names, activations)
    for pattern, activations in settings.layers.items():
        named = selected("quantize.layers", [pattern], layers, "the network")
        if activations != "float" and named.isdisjoint(plans):
            raise OptionsError(
                f"quantize.layers: '{pattern}' means {min(named)}, which stays in float: layers behind global pooling,"
                " and those that nothing uses, are not quantised; leave it out"
            )
        chosen |= dict.fromkeys(named, activations)
    return chosen


def _traced(network: nn.Module, channels: int) -> ExportedProgram:
    merged = merge(copy.deepcopy(network).cpu().eval().requires_grad_(False))
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(merged, (torch.zeros(1, channels, *_SIDE),), strict=False)
    except Exception as error:  # whatever PyTorch raises on a network unlike ours
        name = type(network).__name__
        raise OptionsError(f"{name} cannot be traced, so not quantised ({first_line(error)})") from error
    finally:
        logging.disable(disabled)


class TracedGraph:
    """A traced network, and what in it is the image up to factors and offsets.

    Attributes:
        program: the graph, with its constants.
        output: the node that is the network's output.
        images: nodes that are the network's input times a factor plus an offset, in any arrangement of its pixels.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        signature = program.graph_signature
        self._constants = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._constants |= signature.inputs_to_lifted_tensor_constants
        self._inputs = {node for node in program.graph.nodes if node.name in signature.user_inputs}
        (output,) = [node for node in program.graph.nodes if node.op == "output"]
        self.output: Node = output.args[0][0]
        self.images = self._images()

    def constant(self, value: Any) -> Tensor | None:
        """A number, or a constant by channel, as a tensor of one number or (C); None for all else."""
        if isinstance(value, (int, float)):
            return torch.tensor(float(value))
        name = self._constants.get(value.name) if isinstance(value, Node) else None
        if name is None:
            return None
        tensor = self.program.state_dict.get(name, self.program.constants.get(name))
        if tensor is None or (tensor.numel() > 1 and (tensor.ndim != 4 or tensor.numel() != tensor.shape[1])):
            return None
        return tensor.detach().flatten().float() if tensor.numel() > 1 else tensor.detach().reshape(()).float()

    def _images(self) -> dict[Node, _Affine]:
        """All that is the network's input up to a factor and a colour, in any arrangement of its pixels."""
        found: dict[Node, _Affine] = dict.fromkeys(self._inputs, _NOTHING)
        for node in self.program.graph.nodes:
            source = node.args[0] if node.args else None
            if not isinstance(source, Node) or source not in found:
                continue
            if node.target in _KEEPING:
                found[node] = found[source]
            elif node.target == _ATEN.pixel_unshuffle.default:
                found[node] = _Affine(*(_repeated(part, node.args[1]) for part in found[source]))
            elif (step := self.affine_step(node)) is not None:
                gain, shift = found[source]
                found[node] = _Affine(gain * step.gain, shift * step.gain + step.shift)
        return found

    def affine_step(self, node: Node) -> _Affine | None:
        """What a node does to its first argument, where that is a factor and an offset."""
        if len(node.args) < 2 or (value := self.constant(node.args[1])) is None:
            return None
        alpha = float(cast(Any, node.kwargs.get("alpha", 1)))
        steps: dict[Any, _Affine] = {
            _ATEN.mul: _NOTHING._replace(gain=value),
            _ATEN.div: _NOTHING._replace(gain=1 / value),
            _ATEN.add: _NOTHING._replace(shift=value * alpha),
            _ATEN.sub: _NOTHING._replace(shift=-value * alpha),
        }
        return steps.get(getattr(node.target, "overloadpacket", None))

    def behind(self, node: Node, affine: _Affine, stop: Container[Node]) -> tuple[list[Node], _Affine] | None:
        """A chain of factors, offsets and pixel shuffles, from `node` back to what is in `stop` or is none of them.

        Returns the nodes, and image = value of the last one * gain + shift, where `affine` says so of `node`. None
        where something else uses one of them.
        """
        chain = [node]
        while len(node.users) == 1:
            source = node.args[0] if node.args and isinstance(node.args[0], Node) else None
            gain, shift = affine
            if source is None or node in stop:
                return chain, affine
            if node.target == _ATEN.pixel_shuffle.default:
                affine = _Affine(*(_repeated(part, node.args[1]) for part in affine))
            elif (step := self.affine_step(node)) is not None:
                affine = _Affine(gain * step.gain, gain * step.shift + shift)
            elif node.target not in _KEEPING and not _is_clip(node, affine):
                return chain, affine
            node = source
            chain.append(node)
        return None

    def image_before(self, node: Node) -> Node:
        """The image that `node` is, with the factors and offsets between that undo each other left out."""
        before = node
        while self.affine_step(before) is not None:
            before = _source(before)
        ends = self.images.get(node), self.images.get(before)
        return before if all(affine is not None and affine.is_nothing for affine in ends) else node

    def superfluous_after(self, ends: Container[Node]) -> list[Node]:
        """Factors, offsets and clipping that do nothing between a node in `ends` that is the image, and the output."""
        found = self.behind(self.output, _NOTHING, ends)
        if found is None or found[0][-1] not in ends or not found[1].is_nothing:
            return []
        return [node for node in found[0] if node.target in _CLAMPS or self.affine_step(node) is not None]


class _Graph(TracedGraph):
    """A traced network whose convolutions and linear layers are known by their modules' names."""

    def __init__(self, program: ExportedProgram, layers: Mapping[str, nn.Module]) -> None:
        super().__init__(program)
        self.layers = layers
        self.nodes: dict[str, list[Node]] = {name: [] for name in layers}
        self._owners: dict[Node, str] = {}
        for node in program.graph.nodes:
            if node.target in _LAYERS and (owner := _owner(node, layers)) is not None:
                self.nodes[owner].append(node)
                self._owners[node] = owner
        self.ends = dict(self._ends())

    def is_worthwhile(self, name: str) -> bool:
        """Whether a layer is used, and on more than one pixel: those after global pooling cost next to nothing."""
        inputs = [_source(node).meta["val"] for node in self.nodes[name]]
        return any(value.ndim != 4 or value.shape[-2:] != (1, 1) for value in inputs)

    def plan(self, name: str, integers: Activations = "int8") -> LayerPlan:
        """Where a layer has quantisers."""
        assert integers != "float"
        nodes, image_in, image_out = self.nodes[name], None, None
        output: OutputKind | None = None
        layer = self.layers[name]
        is_whole = isinstance(layer, Mergeable) or getattr(layer, "groups", 0) == 1  # not linear, nor by channel
        if len(nodes) == 1 and is_whole:
            image_in = self.images.get(_source(nodes[0]))
            output, image_out = self.ends.get(nodes[0], (None, None))
        if output is None and any(map(self._needs_output, nodes)):
            output = "calibrated"
        relu = all(len(node.users) == 1 and next(iter(node.users)).target in _RELUS for node in nodes)
        affines = (None if affine is None else affine.for_plan() for affine in (image_in, image_out))
        return LayerPlan(integers, output, relu, *affines)

    def _needs_output(self, node: Node) -> bool:
        """Whether anything but a quantised layer uses a layer's output, or that after a ReLU."""
        for user in node.users:
            users = list(user.users) if user.target in _RELUS else [user]
            if any(final not in self._owners or final.args[0] not in (node, user) for final in users):
                return True
        return False

    def _ends(self) -> Iterator[tuple[Node, tuple[OutputKind, _Affine]]]:
        """The layer that makes the image, or what is added to it, and image = its output * gain + shift."""
        found = self.behind(self.output, _NOTHING, self._owners)
        if found is None:
            return
        (*_, node), affine = found
        if node in self._owners:
            yield node, ("image", affine)
        elif node.target == _ATEN.add.Tensor and not node.kwargs:
            first, second = node.args[:2]
            for branch, other in ((first, second), (second, first)):
                if isinstance(branch, Node) and other in self.images:
                    residual = self.behind(branch, affine._replace(shift=torch.tensor(0.0)), self._owners)
                    if residual is not None and residual[0][-1] in self._owners and not residual[1].shift.any():
                        yield residual[0][-1], ("residual", residual[1])


def _is_clip(node: Node, affine: _Affine) -> bool:
    """Whether a node clips images to [0, 1]."""
    if node.target not in _CLAMPS or not all(isinstance(end, (int, float)) for end in node.args[1:3]):
        return False
    ends = [float(end) * affine.gain + affine.shift for end in node.args[1:3]]  # type: ignore[arg-type]
    return len(ends) == 2 and not ends[0].any() and bool((ends[1] == 1).all())


def _source(node: Node) -> Node:
    """What a layer's operation is given."""
    return cast(Node, node.args[0])


def _repeated(values: Tensor, factor: Any) -> Tensor:
    """Values by channel, for the channels that a pixel shuffle makes of each."""
    return values if values.ndim == 0 else values.repeat_interleave(int(factor) ** 2)


def _owner(node: Node, layers: Mapping[str, nn.Module]) -> str | None:
    """The layer that a node is part of."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return next((path for path in reversed(paths) if path in layers), None)
