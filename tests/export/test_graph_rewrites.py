"""Rewrites of graphs: what is written differently computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from basicsr.export import graph_rewrites

Q = torch.ops.quantized_decomposed
STEPS = 0.02, -3, -128, 127, torch.int8


def by_place(x: Tensor, factor: int) -> Tensor:
    """DEPTH_TO_SPACE as its definition says, for channels first: from channel place C + c."""
    batch, channels, height, width = x.shape
    result = x.new_zeros(batch, channels // factor**2, height * factor, width * factor)
    for row in range(factor):
        for column in range(factor):
            first = (row * factor + column) * result.shape[1]
            result[:, :, row::factor, column::factor] = x[:, first : first + result.shape[1]]
    return result


class Shuffled(nn.Module):
    """A convolution, something, a pixel shuffle."""

    def __init__(self, between: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.convolution, self.between = nn.Conv2d(3, 18, 3, padding=1, bias=bias), between

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.between(self.convolution(x)), 3)


class Quantized(nn.Module):
    """A convolution of integers, a pixel shuffle, and rounding behind it, used twice."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("weight", torch.randint(-63, 64, (12, 3, 3, 3), generator=generator).to(torch.int8))
        self.register_buffer("scales", torch.rand(12, generator=generator) / 100 + 0.001)
        self.register_buffer("zeros", torch.zeros(12, dtype=torch.int64))
        self.register_buffer("bias", torch.rand(12, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        weight = Q.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        y = F.pixel_shuffle(F.conv2d(x, weight, self.bias, padding=1), 2)
        y = Q.dequantize_per_tensor(Q.quantize_per_tensor(y, *STEPS), *STEPS)
        return y * 2 + y


def traced(network: nn.Module) -> GraphModule:
    torch.manual_seed(0)
    example = torch.rand(1, 3, 5, 7)
    module = torch.export.export(network.eval().requires_grad_(False), (example,)).module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def targets(module: GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


IMAGE = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "between",
    [nn.Identity(), nn.ReLU(), nn.PReLU(18, init=0.3), nn.Conv2d(18, 18, 1, groups=18)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("bias", [True, False])
def test_pixel_shuffles_take_their_channels_by_place(between, bias):
    module = traced(Shuffled(between, bias))
    expected = module(IMAGE)
    graph_rewrites.replace_shuffles(module, by_place)
    graph_rewrites.finished(module)
    torch.testing.assert_close(module(IMAGE), expected, rtol=0, atol=1e-6)
    gathers = targets(module).count(torch.ops.aten.index_select.default)
    assert gathers == isinstance(between, (nn.PReLU, nn.Conv2d))  # else the convolution gives them in order


def test_integers_are_moved_and_stay_what_they_are():
    module = traced(Quantized())
    expected = module(IMAGE)
    graph_rewrites.quantize_before_shuffles(module)
    graph_rewrites.replace_shuffles(module, by_place)
    graph_rewrites.own_dequantize_for_each_user(module)
    graph_rewrites.weights_as_values(module)
    graph_rewrites.finished(module)
    torch.testing.assert_close(
        module(IMAGE), expected, rtol=0, atol=0.0201 * 3
    )  # a sum may be rounded to the other side
    assert ((module(IMAGE) - expected).abs() > 1e-6).double().mean() < 0.01
    order = [node for node in module.graph.nodes if node.target == Q.quantize_per_tensor.default]
    assert len(order) == 2 and order[0].args[0].target == torch.ops.aten.conv2d.default
    assert order[1].args[0].target is by_place
    users = [len(node.users) for node in module.graph.nodes if node.target == Q.dequantize_per_tensor.default]
    assert users == [1, 1, 1]
    (weight,) = [node for node in module.graph.nodes if node.target == Q.dequantize_per_channel.default]
    again = Q.quantize_per_channel(
        *(graph_rewrites._constant(module, one) for one in weight.args[0].args[:3]), 0, -127, 127, torch.int8
    )
    assert sorted(again.flatten().tolist()) == sorted(Quantized().weight.flatten().tolist())


class Repeats(nn.Module):
    """Channels repeated, pixels repeated, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.PReLU(6)
        nn.init.uniform_(self.act.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x.repeat(1, 2, 1, 1) - 0.5)
        return F.interpolate(x, scale_factor=3, mode="nearest")


def test_repeats_and_prelus_are_written_in_other_operators():
    module = traced(Repeats())
    expected = module(IMAGE)
    graph_rewrites.repeats_as_concatenations(module)
    graph_rewrites.replace_prelus(module, lambda x, slopes: torch.where(x > 0, x, x * slopes.reshape(1, -1, 1, 1)))
    graph_rewrites.replace_enlargements(module, lambda x, factor: by_place(torch.cat([x] * factor**2, 1), factor))
    graph_rewrites.finished(module)
    assert torch.equal(module(IMAGE), expected)
    aten = torch.ops.aten
    assert not {aten.repeat.default, aten.prelu.default, aten.upsample_nearest2d.vec} & set(targets(module))
