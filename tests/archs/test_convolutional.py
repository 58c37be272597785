"""EDSR, RCAN, MSRResNet and the blocks that they share."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.arch_util import (
    ResidualBlockNoBN,
    Upsample,
    default_init_weights,
    make_layer,
    pixel_unshuffle,
    to_2tuple,
    trunc_normal_,
)
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.srresnet_arch import MSRResNet
from basicsr.utils.errors import OptionsError

COLOUR = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2}
RCAN_ARGUMENTS = {**COLOUR, "num_group": 1, "squeeze_factor": 4}


@pytest.mark.parametrize(("network", "arguments"), [(EDSR, COLOUR), (RCAN, RCAN_ARGUMENTS), (MSRResNet, COLOUR)])
@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_output_is_upscale_times_as_large(network: type[nn.Module], arguments: dict, upscale: int) -> None:
    assert network(**arguments, upscale=upscale)(torch.rand(1, 3, 5, 7)).shape == (1, 3, 5 * upscale, 7 * upscale)


@pytest.mark.parametrize(("network", "arguments"), [(EDSR, COLOUR), (RCAN, RCAN_ARGUMENTS)])
def test_the_mean_colour_passes_through_a_network_whose_last_layer_is_zero(network, arguments: dict) -> None:
    net = network(**arguments, rgb_mean=(0.1, 0.2, 0.3))
    nn.init.zeros_(net.conv_last.weight)
    nn.init.zeros_(net.conv_last.bias)
    output = net(torch.rand(1, 3, 4, 4))
    assert output.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert "mean" not in net.state_dict()


def test_a_grey_network_takes_one_mean() -> None:
    net = EDSR(num_in_ch=1, num_out_ch=1, num_feat=8, num_block=1, rgb_mean=(0.5,))
    assert net(torch.rand(1, 1, 4, 4)).shape == (1, 1, 16, 16)


def test_msrresnet_adds_a_bilinear_enlargement() -> None:
    net = MSRResNet(num_feat=8, num_block=1, upscale=2)
    nn.init.zeros_(net.conv_last.weight)
    x = torch.tensor([[0.0, 4.0]]).expand(1, 3, 1, 2)
    assert net(x)[0, 0, 0].tolist() == pytest.approx([0.0, 1.0, 3.0, 4.0])


def remember(seen: list, module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    seen.append((module, output, output.clone()))


def test_features_seen_by_a_hook_are_not_changed_afterwards() -> None:
    for net in (EDSR(**COLOUR), RCAN(**RCAN_ARGUMENTS), MSRResNet(**COLOUR)):
        seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
        for module in net.modules():
            module.register_forward_hook(partial(remember, seen))
        with torch.no_grad():
            net(torch.rand(1, 3, 4, 4))
        assert len(seen) > 10
        for module, output, at_once in seen:
            assert torch.equal(output, at_once), f"{type(net).__name__}: {module}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "EDSR", **COLOUR, "upscale": 6}, "upscale: 6 is not supported: give a power of two or 3"),
        ({"type": "EDSR", **COLOUR, "upscale": 0}, "upscale: input should be greater than or equal to 1, got 0"),
        ({"type": "EDSR", **COLOUR, "num_in_ch": 1}, "rgb_mean: has 3 entries for num_in_ch 1 and num_out_ch 3"),
        ({"type": "EDSR", "num_out_ch": 3}, "num_in_ch: is required"),
        ({"type": "EDSR", **COLOUR, "num_feats": 8}, "did you mean 'num_feat'?"),
        ({"type": "EDSR", **COLOUR, "num_feat": "8"}, "num_feat: input should be a valid integer, got '8'"),
        ({"type": "RCAN", **RCAN_ARGUMENTS, "upscale": 5}, "upscale: 5 is not supported"),
        ({"type": "RCAN", **COLOUR}, "squeeze_factor: 16 is not between 1 and num_feat, 8"),
        ({"type": "MSRResNet", "upscale": 8}, "upscale: 8 is not supported: give 2, 3 or 4"),
        ({"type": "MSRResNet", "num_in_ch": 1}, "num_out_ch: 3 is not num_in_ch 1"),
        ({"type": "EDRS"}, "did you mean 'EDSR'?"),
    ],
)
def test_unsupported_options_are_refused_in_one_line(options: dict, message: str) -> None:
    with pytest.raises(OptionsError) as raised:
        build_network(options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_residual_block_takes_arguments_in_basicsr_order() -> None:
    block = ResidualBlockNoBN(4, 0.5, True)
    x = torch.rand(1, 4, 5, 5)
    wanted = x + 0.5 * block.conv2(block.conv1(x).clamp_min(0))
    torch.testing.assert_close(block(x), wanted)


def test_upsample_of_scale_one_is_the_identity() -> None:
    x = torch.rand(1, 4, 3, 3)
    assert torch.equal(Upsample(1, 4)(x), x)
    assert [type(layer).__name__ for layer in Upsample(8, 4)] == ["Conv2d", "PixelShuffle"] * 3


def test_pixel_unshuffle_undoes_pixel_shuffle() -> None:
    x = torch.rand(2, 3, 6, 4)
    assert pixel_unshuffle(x, 2).shape == (2, 12, 3, 2)
    assert torch.equal(nn.PixelShuffle(2)(pixel_unshuffle(x, 2)), x)


def test_make_layer_builds_separate_blocks() -> None:
    layers = make_layer(ResidualBlockNoBN, 3, num_feat=4)
    assert len(layers) == 3
    assert not torch.equal(layers[0].conv1.weight, layers[1].conv1.weight)


def test_default_initialisation_has_kaiming_deviation_times_scale() -> None:
    torch.manual_seed(0)
    conv, linear, norm = nn.Conv2d(64, 64, 3), nn.Linear(512, 64), nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    default_init_weights([conv, nn.Sequential(linear, norm)], 0.1, bias_fill=0.25)
    assert conv.weight.std().item() == pytest.approx(0.1 * (2 / (64 * 9)) ** 0.5, rel=0.02)
    assert linear.weight.std().item() == pytest.approx(0.1 * (2 / 512) ** 0.5, rel=0.02)
    assert norm.weight.tolist() == [1.0] * 8
    for layer in (conv, linear, norm):
        assert set(layer.bias.tolist()) == {0.25}


def test_truncated_normal_stays_within_its_limits() -> None:
    torch.manual_seed(0)
    values = trunc_normal_(torch.empty(20000), 0.0, 1.0, -1.0, 1.0)
    assert values.abs().max() <= 1
    # The variance of a normal distribution cut off at one deviation is 1 - 2 phi(1) / (2 Phi(1) - 1).
    assert values.var().item() == pytest.approx(0.2911, abs=0.01)


def test_to_2tuple_repeats_a_number_and_keeps_a_pair() -> None:
    assert to_2tuple(3) == (3, 3)
    assert to_2tuple((3, 4)) == (3, 4)
