"""VDSR, SRCNN and the bicubic enlargement that they begin with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from basicsr.archs.bicubic_arch import Bicubic
from basicsr.archs.srcnn_arch import SRCNN
from basicsr.archs.vdsr_arch import VDSR
from basicsr.utils.errors import OptionsError
from basicsr.utils.matlab_functions import imresize
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained, network_for


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 6)])
def test_bicubic_is_imresize(scale: int, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([imresize(image, scale) for image in images])
    network = Bicubic(upscale=scale)
    assert torch.allclose(network(images), expected, atol=1e-7)
    assert torch.allclose(network(images.float()).double(), expected, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(network(images.float()).double(), expected, atol=1e-6)


def test_bicubic_has_gradients() -> None:
    images = torch.rand(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    network = Bicubic(upscale=3)
    direction = torch.randn(1, 2, 12, 9, dtype=torch.float64)
    (given,) = torch.autograd.grad((network(images) * direction).sum(), images)
    # It is linear: the gradient at a pixel is what an image of that pixel alone gives.
    unit = torch.zeros(1, 2, 4, 3, dtype=torch.float64)
    unit[0, 1, 2, 0] = 1
    assert given[0, 1, 2, 0].item() == pytest.approx((network(unit) * direction).sum().item(), abs=1e-9)


@pytest.mark.parametrize("scale", [2, 3, 4])
@torch.no_grad()
def test_vdsr_by_its_definition(scale: int) -> None:
    torch.manual_seed(0)
    network, image = VDSR(num_feat=6, num_layer=5, upscale=scale).eval(), torch.rand(1, 5, 7).double()
    state = {key: value.double() for key, value in network.state_dict().items()}
    enlarged = imresize(image, scale)[None]
    y = F.conv2d(enlarged, state["input.weight"], padding=1).relu()
    for layer in range(3):
        y = F.conv2d(y, state[f"residual_layer.{layer}.conv.weight"], padding=1).relu()
    expected = F.conv2d(y, state["output.weight"], padding=1) + enlarged
    assert torch.allclose(network(image[None].float()).double(), expected, atol=1e-5)


@torch.no_grad()
def test_srcnn_by_its_definition() -> None:
    torch.manual_seed(0)
    network = SRCNN(num_feats=(6, 4), kernel_sizes=(9, 1, 5), upscale=3).eval()
    image = torch.rand(1, 5, 7).double()
    y = imresize(image, 3)[None]
    for number, padding in ((1, 4), (2, 0), (3, 2)):
        layer = network.get_submodule(f"conv{number}")
        y = F.conv2d(y, layer.weight.double(), layer.bias.double(), padding=padding)
        y = y.relu() if number < 3 else y
    assert torch.allclose(network(image[None].float()).double(), y, atol=1e-5)
    with pytest.raises(OptionsError, match="has an even number"):
        SRCNN(kernel_sizes=(9, 2, 5))


OTHER_NAMES = {
    "VDSR": [("input", "conv1.0"), ("residual_layer", "trunk"), ("output", "conv2")],
    "SRCNN": [("conv1", "features.0"), ("conv2", "map.0"), ("conv3", "reconstruction")],
}


@pytest.mark.parametrize("network", [VDSR(num_feat=6, num_layer=5), SRCNN(num_feats=(6, 4), kernel_sizes=(9, 1, 5))])
def test_both_public_layouts_are_recognised_for_three_scales(network: Any) -> None:
    name, state = type(network).__name__, network.state_dict()
    other = state
    for ours, theirs in OTHER_NAMES[name]:
        other = {key.replace(ours, theirs): value for key, value in other.items()}
    for published in (state, other):
        found = recognise(published)
        assert found is not None and (found.architecture, found.scales) == (name, (2, 3, 4))
        assert found.state.keys() == state.keys()
        assert found.at(3).options["upscale"] == 3
        assert found.options["img_channel"] == 1


def test_the_scale_asked_for_is_taken_of_those_that_the_weights_are_for(tmp_path: Any) -> None:
    network = VDSR(num_feat=6, num_layer=5)
    torch.save(network.state_dict(), tmp_path / "published.pth")
    block = {"type": "VDSR", "num_feat": 6, "num_layer": 5, "upscale": 3}
    torch.save({"params": network.state_dict(), "network": block}, tmp_path / "ours.pth")
    assert load_pretrained(tmp_path / "published.pth").scale == 2
    for scale in (2, 3, 4):
        built, _ = network_for(None, tmp_path / "published.pth", scale=scale)
        assert built(torch.zeros(1, 1, 4, 5)).shape == (1, 1, 4 * scale, 5 * scale)
    assert load_pretrained(tmp_path / "ours.pth").scale == 3  # it was trained for one
    assert "of x2, x3, x4 that its weights are for" in str(load_pretrained(tmp_path / "published.pth").remark)
