"""Feature taps on real networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.feature_hooks import FeatureHooks, folded, probe_image
from basicsr.utils.errors import OptionsError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 3)))


def test_named_outputs_are_collected_with_their_gradients_and_only_inside_the_block():
    net, image = network(), torch.rand(1, 3, 8, 8)
    with FeatureHooks(net, ["0", "1.1"]) as features:
        output = net(image)
    assert torch.equal(features["1.1"], output)
    features["0"].sum().backward()
    assert net[0].weight.grad is not None
    held = features["0"]
    net(torch.zeros(1, 3, 8, 8))
    assert features["0"] is held
    assert not any(module._forward_hooks for module in net.modules())


def test_a_wrong_path_lists_the_right_ones():
    with pytest.raises(OptionsError, match=r"no module '1\.7'.*; in '1' there are: 1\.0, 1\.1$"):
        FeatureHooks(network(), ["1.7"])


class Tokens(nn.Module):
    """Stands for a transformer: extends its input to multiples of 4 and works on tokens."""

    def __init__(self, keep_grid: bool) -> None:
        super().__init__()
        self.inside, self.keep_grid = nn.Identity(), keep_grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = nn.functional.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4)).permute(0, 2, 3, 1)
        return self.inside(grid if self.keep_grid else grid.flatten(1, 2))


@pytest.mark.parametrize("keep_grid", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (6, 9)])
def test_token_maps_are_folded(size, keep_grid):
    image = torch.rand(2, 5, *size)
    net = Tokens(keep_grid)
    with FeatureHooks(net, ["inside"]) as features:
        net(image)
    folded = features["inside"]
    assert folded.shape == (2, 5, -(-size[0] // 4) * 4, -(-size[1] // 4) * 4)
    assert torch.equal(folded[..., : size[0], : size[1]], image)


def test_feature_maps_are_left_as_they_are():
    net, image = network(), torch.rand(1, 3, 8, 8)
    with FeatureHooks(net, ["1.1", "0"]) as features:
        output = net(image)
    assert features["1.1"] is output
    square = torch.rand(2, 8, 8, 8)  # channels, height and width alike
    assert folded(square, (8, 8), "it") is square


def test_what_is_no_feature_map_is_refused_by_name():
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(OptionsError, match=r"Sequential's module '1' gives \(1, 4\), no feature map"):
        with FeatureHooks(net, ["1"]):
            net(torch.rand(1, 3, 8, 8))


def test_features_of_swinir_inside_and_between_its_groups_have_the_same_layout():
    net = build_network(
        {
            "type": "SwinIR", "upscale": 2, "img_size": 16, "window_size": 8, "embed_dim": 12, "depths": [2, 2],
            "num_heads": [2, 2], "upsampler": "pixelshuffledirect",
        }
    ).eval()  # fmt: skip
    paths = ["layers.0.residual_group.blocks.0", "layers.0.residual_group", "layers.0", "norm"]
    with FeatureHooks(net, paths) as features, torch.no_grad():
        net(torch.rand(1, 3, 13, 20))
    assert {features[path].shape for path in paths} == {(1, 12, 16, 24)}


def test_a_wrong_path_deep_inside_lists_what_lies_beside_it():
    rcan = {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_group": 9, "num_block": 9}
    with pytest.raises(OptionsError) as caught:
        FeatureHooks(build_network({**rcan, "squeeze_factor": 2}), ["body.7.residual_group.20"])
    assert "; in 'body.7.residual_group' there are: body.7.residual_group.0, body.7.residual_group.1" in str(
        caught.value
    )
    with pytest.raises(OptionsError, match=r"; there are: 0, 1, 1\.0, 1\.1$"):
        FeatureHooks(network(), ["nowhere"])


def swinir(**options):
    block = {
        "type": "SwinIR", "upscale": 2, "img_size": 16, "window_size": 8, "embed_dim": 16, "depths": [2],
        "num_heads": [2], "upsampler": "pixelshuffledirect", **options,
    }  # fmt: skip
    return build_network(block).eval()


def test_token_maps_are_told_from_feature_maps_even_where_all_sides_are_alike():
    net, inside = swinir(), "layers.0.residual_group"
    taps = FeatureHooks(net, [inside, "layers.0"])
    taps.probe()
    raw = {}
    for path in (inside, "layers.0"):
        net.get_submodule(path).register_forward_hook(lambda module, i, output, path=path: raw.update({path: output}))
    with taps as features, torch.no_grad():
        net(torch.rand(1, 3, 16, 16))
    assert raw[inside].shape == raw["layers.0"].shape == (1, 16, 16, 16)
    assert torch.equal(features[inside], raw[inside].permute(0, 3, 1, 2))
    assert torch.equal(features["layers.0"], raw["layers.0"])


def test_what_a_later_layer_changes_in_place_is_kept_as_it_was():
    net, image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(inplace=True)), torch.rand(1, 3, 20, 20)
    taps = FeatureHooks(net, ["0"])
    taps.probe()
    with taps as features:
        net(image)
    assert torch.equal(features["0"], net[0](image)) and (features["0"] < 0).any()


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (network(), (16, 24)),
        (swinir(window_size=7, img_size=21), (21, 28)),
        (swinir(window_size=16, img_size=32, ape=True), (32, 32)),
        (nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 5, 1)), (16, 24)),
    ],
)
def test_networks_of_all_kinds_can_be_probed(net, size):
    image = probe_image(net)
    assert tuple(image.shape) == (1, 3, *size) and not image.any()


def test_a_probe_leaves_nothing_behind():
    net = swinir(drop_path_rate=0.5).train()
    before, state = {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()
    taps = FeatureHooks(net, ["layers.0"])
    assert taps.probe() == {"": (3, 16, 24), "layers.0": (16, 16, 24)}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
