"""SPAN: its merged convolutions against those they are merged from, and its published layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr.archs.span_arch import SPAN, Conv3XC
from basicsr.export.tracing import Precision, traceable
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise


def span(**options: Any) -> SPAN:
    torch.manual_seed(0)
    return SPAN(**{"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2, **options}).eval()


def four_convolutions(module: Conv3XC, x: Tensor) -> Tensor:
    """As it is defined, without merging."""
    first, middle, last = module.conv
    y = F.conv2d(F.pad(x, (1, 1, 1, 1)), first.weight, first.bias)
    y = F.conv2d(F.conv2d(y, middle.weight, middle.bias), last.weight, last.bias)
    return y + F.conv2d(x, module.sk.weight, module.sk.bias)


def test_a_merged_convolution_has_the_output_and_the_gradients_of_the_four() -> None:
    torch.manual_seed(0)
    module, x = Conv3XC(3, 5, merged=False).double(), torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    outputs = module(x), four_convolutions(module, x)
    assert torch.allclose(*outputs, atol=1e-12)
    wanted = [x, *module.parameters()]
    given, expected = (torch.autograd.grad((output * direction).sum(), wanted) for output in outputs)
    assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(given, expected, strict=True))


@pytest.mark.parametrize("options", [{}, {"upscale": 4, "feature_channels": 12}], ids=str)
@torch.no_grad()
def test_outputs_are_spandrels(options: dict[str, Any]) -> None:
    import_torchvision()
    import spandrel

    network, x = span(**options), torch.rand(2, 3, 9, 7)
    theirs = spandrel.ModelLoader().load_from_state_dict(dict(network.state_dict()))
    assert theirs.architecture.id == "SPAN"
    expected = theirs.model.eval()(x)
    assert torch.allclose(network(x), expected, atol=1e-5 * expected.abs().max().item())
    found = recognise(network.state_dict())
    assert found is not None and not found.options["merged"]
    assert {key: found.options[key] for key in options} == options


@torch.no_grad()
def test_a_file_of_merged_weights_is_the_same_network() -> None:
    network, x = span(cat_channels=5), torch.rand(1, 3, 8, 8)
    parts = (".sk.", ".conv.")
    slim = {key: value for key, value in network.state_dict().items() if not any(part in key for part in parts)}
    found = recognise(slim)
    assert found is not None and found.options["merged"] and found.options["cat_channels"] == 5
    merged = SPAN(**{key: value for key, value in found.options.items() if key != "type"}).eval()
    merged.load_state_dict(found.state)
    assert torch.allclose(merged(x), network(x), atol=1e-5)
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_a_saved_state_has_the_merged_kernels_of_the_weights_as_they_are() -> None:
    network = span()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    state = network.state_dict()
    weight, bias = network.conv_2.kernel()
    assert torch.equal(state["conv_2.eval_conv.weight"], weight)
    assert torch.equal(state["conv_2.eval_conv.bias"], bias)


def test_a_file_for_images_as_they_are_says_so() -> None:
    found = recognise({**span(upscale=1).state_dict(), "no_norm": torch.zeros(1)})
    assert found is not None and found.assumed == ()
    assert (found.options["img_range"], found.options["rgb_mean"], found.scale) == (1.0, (0.0, 0.0, 0.0), 1)


def test_weights_of_another_network_of_the_authors_are_not_taken() -> None:
    state = span().state_dict()
    assert recognise({key: value for key, value in state.items() if not key.startswith("block_6.")}) is None
    assert recognise({**state, "block_7.c1_r.sk.weight": torch.zeros(8, 8, 1, 1)}) is None


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-5), ("fp16", 1e-2)])
@torch.no_grad()
def test_what_is_exported_has_the_merged_convolutions_alone(precision: Precision, allowed: float) -> None:
    network, x = span(), torch.rand(2, 3, 9, 7)
    expected = network(x)
    wrapped = traceable(network, precision)
    assert not any(".sk." in key or ".conv." in key for key in wrapped.state_dict())
    assert not network.conv_1.merged and torch.equal(network(x), expected)
    assert torch.allclose(wrapped(x), expected, rtol=0, atol=allowed * expected.abs().max().item())
