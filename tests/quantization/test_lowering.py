"""Lowered networks: the same outputs as with fake quantisation, int8 weights, nothing superfluous in the graph."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from support.quantized import BLOCKS, image_8_bits
from torch import nn

from basicsr.archs import build_network
from basicsr.config.quantization import QuantizationSettings
from basicsr.export.tracing import trace, traceable
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.layers import quantized_layers
from basicsr.quantization.lowering import LoweredForm, LoweredLayer, lower, simplify
from basicsr.quantization.network import quantize_network
from basicsr.utils.errors import CheckpointError

FORMS = {"unsigned": LoweredForm("uint8", int32_bias=True), "signed": LoweredForm("int8")}


@pytest.fixture(scope="module", params=BLOCKS)
def quantized(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(BLOCKS[request.param]).eval()
    quantize_network(network, QuantizationSettings())
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    return network


def targets(program: torch.export.ExportedProgram) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_computes_what_fake_quantisation_does(quantized, form):
    copy = traceable(quantized, "float32")
    lower(copy, FORMS[form])
    program = simplify(trace(copy, 3))
    run = program.module()
    for size in ((1, 3, 24, 31), (2, 3, 16, 40)):
        image = image_8_bits(*size)
        with torch.no_grad():
            expected, output = quantized(image), run(image)
        off = (output - expected).abs()
        assert off.max() <= 2.01 / 255  # sums in another order are rounded to the next step here and there
        assert (off > 1e-4).double().mean() < (0.15 if FORMS[form].int32_bias else 0.02)
    stored = {name: value for name, value in program.state_dict.items() if name.endswith(".weight")}
    layers = [name for name, module in copy.named_modules() if isinstance(module, LoweredLayer)]
    assert len(layers) == len(quantized_layers(quantized))
    assert all(stored[f"{name}.weight"].dtype == torch.int8 for name in layers)
    assert all(int(stored[f"{name}.weight"].abs().max()) <= 63 for name in layers)


def test_factors_and_colours_are_gone_from_the_graph(tmp_path):
    torch.manual_seed(0)
    network = build_network(BLOCKS["EDSR"]).eval()
    quantize_network(network, QuantizationSettings())
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    copy = traceable(network, "float32")
    lower(copy, LoweredForm())
    program = simplify(trace(copy, 3))
    found = targets(program)
    assert not any(name in found for name in ("aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor"))
    assert found["aten.add.Tensor"] == 3  # two blocks and the trunk
    given = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    assert [str(user.target) for user in given.users] == ["aten.pad.default"]  # the colour's channel
    (output,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert str(output.target) == "quantized_decomposed.dequantize_per_tensor.default"
    assert output.args[1] == pytest.approx(1 / 255)
    torch.export.save(program, tmp_path / "x.pt2")
    image = image_8_bits(1, 3, 20, 24)
    assert torch.equal(torch.export.load(tmp_path / "x.pt2").module()(image), program.module()(image))


def test_what_was_not_calibrated_is_refused():
    network = build_network(BLOCKS["Compact"]).eval()
    quantize_network(network, QuantizationSettings())
    with pytest.raises(CheckpointError, match=r"body\.0\.output_quantizer has no range: calibrate"):
        lower(network, LoweredForm())


def test_the_bias_of_a_channel_without_weights_stays():
    """Its weights' step is as small as can be, so that its bias would not fit into 32 bits."""
    torch.manual_seed(0)
    network = build_network(BLOCKS["Compact"]).eval()
    with torch.no_grad():
        network.body[2].weight[3] = 0
        network.body[2].bias[3] = 0.7
    quantize_network(network, QuantizationSettings())
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    image = image_8_bits(1, 3, 16, 16)
    with torch.no_grad():
        expected = network(image)
        lower(network, LoweredForm("uint8", int32_bias=True))
        assert (network(image) - expected).abs().max() <= 2.01 / 255
    bias = network.body[2].bias[3] * network.body[2].bias_scales[3].double()
    assert bias.item() == pytest.approx(0.7, rel=1e-6)


class Shared(nn.Module):
    """A convolution under two names, and one of each channel by itself on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Conv2d(3, 3, 3, 1, 1, groups=3)
        self.first = nn.Conv2d(3, 3, 3, 1, 1)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(self.each(x - 0.5)))) + x


def test_a_shared_layer_is_quantised_and_lowered_once():
    torch.manual_seed(0)
    network = Shared().eval()
    plans = quantize_network(network, QuantizationSettings()).plans
    assert list(plans) == ["each", "first"] and plans["each"].image_in is None
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    image = image_8_bits(1, 3, 16, 16)
    with torch.no_grad():
        expected = network(image)
        lower(network, LoweredForm())
        assert isinstance(network.first, LoweredLayer) and network.first is network.second
        off = (network(image) - expected).abs()
    assert off.max() < 0.05 and (off > 1e-4).float().mean() < 0.02
