"""Networks with fake quantisers: what they keep of the float network, and what their layers compute."""

from __future__ import annotations

import copy

import pytest
import torch
from support.quantized import BLOCKS, image_8_bits
from torch import nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.config.quantization import QuantizationSettings
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.layers import quantized_layers
from basicsr.quantization.network import in_float, quantization_of, quantize_network
from basicsr.utils.errors import DataError, NonFiniteError, OptionsError


@pytest.fixture(scope="module", params=BLOCKS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A float network, and the same one quantised and calibrated."""
    torch.manual_seed(0)
    network = build_network(BLOCKS[request.param]).eval()
    quantized = copy.deepcopy(network)
    quantize_network(quantized, QuantizationSettings(weight_bits=8))
    calibrate(quantized, [("a", image_8_bits(3, 32, 48))])
    return network, quantized


def test_the_network_keeps_what_it_was(pair):
    network, quantized = pair
    assert type(quantized) is type(network)
    own = [key for key in quantized.state_dict() if "quantizer" not in key]
    assert own == list(network.state_dict())
    assert all(torch.equal(value, quantized.state_dict()[key]) for key, value in network.state_dict().items())
    image = image_8_bits(1, 3, 20, 24)
    with in_float(quantized), torch.no_grad():
        assert torch.equal(quantized(image), network(image))


def test_a_layer_is_what_is_computed_by_hand(pair):
    """In float64: integers of input, weight and output, from the scales alone."""
    _, quantized = pair
    name, layer = list(quantized_layers(quantized).items())[1]  # neither the first nor the last
    x = torch.randn(1, 8, 9, 11, generator=torch.Generator().manual_seed(2))
    weight, bias = (part.detach().double() for part in layer.kernel())

    def rounded(values, quantizer):
        scale, zero = quantizer.scale.double(), quantizer.zero_point
        return ((values / scale).round() + zero).clamp(0, 255).sub(zero) * scale

    steps = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    y = F.conv2d(rounded(x.double(), layer.input_quantizer), (weight / steps).round() * steps, bias, padding=1)
    step = 1e-5
    if layer.output_quantizer is not None:
        y, step = rounded(y, layer.output_quantizer), layer.output_quantizer.scale.item()
    off = (layer(x).double() - y).abs()
    assert off.max() <= 1.001 * step, name  # where float32 rounds to another integer
    assert (off > 1e-5).double().mean() < 0.01


def test_images_of_8_bits_come_in_and_go_out_exactly(pair):
    network, quantized = pair
    image = image_8_bits(1, 3, 16, 24)
    kept = []
    first = next(iter(quantized_layers(quantized).values()))
    handle = first.input_quantizer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        output = quantized(image)
    handle.remove()
    torch.testing.assert_close(kept[0], image, atol=1e-6, rtol=0)
    steps = output * 255
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    assert (output - network(image).clamp(0, 1)).abs().mean() < 0.02


def test_the_colour_of_the_first_layer_stops_at_the_border():
    """A mean that is subtracted before zeros are put around is none of the border's."""
    torch.manual_seed(0)
    network = build_network(BLOCKS["EDSR"])
    convolution, image = network.conv_first, image_8_bits(1, 3, 8, 8)
    expected = convolution((image - network.mean) * 255)
    quantize_network(network, QuantizationSettings(weight_bits=8, layers={"body.*": "float"}))
    weight, bias = convolution.operands()
    x = convolution.quantized_input((image - network.mean) * 255)
    torch.testing.assert_close(F.conv2d(x, weight, bias, padding=1), expected, atol=1e-3, rtol=1e-5)


def test_gradients_reach_the_branches(pair):
    _, quantized = pair
    quantized = copy.deepcopy(quantized)
    quantized(image_8_bits(1, 3, 16, 16)).mean().backward()
    used = {name: weight.grad for name, weight in quantized.named_parameters()}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in used.values())


def test_calibration_is_the_same_twice_and_leaves_the_mode(pair):
    _, quantized = pair
    again = copy.deepcopy(quantized).train()
    calibrate(again, [("a", image_8_bits(3, 32, 48))])
    assert again.training and all(layer.quantizes for layer in quantized_layers(again).values())
    for key, value in quantized.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("ranges", ["percentile", "mse"])
def test_other_ranges_are_inside_of_the_whole_one(ranges):
    torch.manual_seed(0)
    network = build_network(BLOCKS["EDSR"])
    quantize_network(network, QuantizationSettings(ranges=ranges, layers={"body.*": "float"}))
    layer = network.conv_after_body
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    spread = layer.input_quantizer.scale * 255
    other = copy.deepcopy(quantization_of(network).settings.model_copy(update={"ranges": "minmax"}))
    whole = build_network(BLOCKS["EDSR"])
    whole.load_state_dict({k: v for k, v in network.state_dict().items() if "quantizer" not in k})
    quantize_network(whole, other)
    calibrate(whole, [("a", image_8_bits(3, 32, 48))])
    assert 0 < spread <= whole.conv_after_body.input_quantizer.scale * 255


def test_mistakes_are_told_in_one_line(pair):
    network, quantized = pair
    with pytest.raises(DataError, match="no image to calibrate with"):
        calibrate(quantized, [])
    with pytest.raises(OptionsError, match="is not quantised"):
        calibrate(network, [("a", image_8_bits(3, 16, 16))])
    with pytest.raises(OptionsError, match="quantised already"):
        quantize_network(quantized, QuantizationSettings())
    broken = image_8_bits(3, 16, 16)
    broken[0, 3, 3] = torch.nan
    first = next(iter(quantized_layers(quantized)))
    with pytest.raises(NonFiniteError, match=rf"the input of {first} .* on photo\.png"):
        calibrate(quantized, [("photo.png", broken)])
    with pytest.raises(OptionsError, match="'bodi' matches no module"):
        quantize_network(copy.deepcopy(network), QuantizationSettings(layers={"bodi": "float"}))
    with pytest.raises(OptionsError, match="every layer is float"):
        quantize_network(copy.deepcopy(network), QuantizationSettings(activations="float"))


RCAN = {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 1, "num_block": 1, "upscale": 2,
        "squeeze_factor": 4}  # fmt: skip
SRCNN = {"type": "SRCNN", "img_channel": 3, "num_feats": (4, 4), "upscale": 2}


@pytest.mark.parametrize(
    ("block", "settings", "message"),
    [
        (RCAN, {"layers": {"*attention*": "int16"}}, r"layers: '\*attention\*' means body\..* in float"),
        (SRCNN, {"first": "float"}, r"quantize\.first: no layer of SRCNN takes the image"),
    ],
)  # fmt: skip
def test_settings_without_effect_are_refused(block, settings, message):
    with pytest.raises(OptionsError, match=message):
        quantize_network(build_network(block), QuantizationSettings(**settings))


def test_layers_that_stay_in_float_may_be_named_so():
    network = build_network(RCAN)
    quantize_network(network, QuantizationSettings(layers={"*attention*": "float"}))
    assert not any("attention" in name for name in quantized_layers(network))
