"""Networks as stem, stages and reconstruction: the parts are the whole, and features can change trains between them."""

from __future__ import annotations

import pytest
import torch

from basicsr.archs import build_network
from basicsr.archs.arch_util import StagedNetwork
from basicsr.utils.registry import ARCH_REGISTRY

STAGED = {
    "EDSR": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 3, "upscale": 2}, 3),
    "RCAN": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 3, "num_block": 1, "squeeze_factor": 2}, 3),
    "SwinIR": (
        {
            "upscale": 2, "img_size": 8, "window_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2],
            "upsampler": "pixelshuffledirect", "drop_path_rate": 0.0,
        },
        2,
    ),
    "MSRResNet": ({"num_feat": 8, "num_block": 2, "upscale": 3}, 2),
    "RRDBNet": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 3, "num_grow_ch": 4, "scale": 2}, 3),
    "DnCNN": ({"num_feat": 8, "num_layer": 5}, 3),
    "FDnCNN": ({"num_feat": 8, "num_layer": 5}, 3),
    "FFDNet": ({"num_feat": 8, "num_layer": 5}, 3),
    "VDSR": ({"img_channel": 3, "num_feat": 8, "num_layer": 5, "upscale": 3}, 3),
    "SRVGGNetCompact": ({"num_feat": 8, "num_conv": 3, "upscale": 3}, 3),
    "IMDN": ({"num_feat": 16, "num_block": 3, "upscale": 2}, 3),
    "RFDN": ({"num_feat": 8, "num_block": 3, "upscale": 2}, 3),
    "RLFN": ({"num_feat": 8, "esa_channels": 4, "num_block": 3, "upscale": 2}, 3),
    "BSRN": ({"num_feat": 16, "num_block": 3, "upscale": 2}, 3),
    "LKDN": ({"num_feat": 8, "num_block": 3, "upscale": 2}, 3),
    "PAN": ({"num_feat": 8, "num_up_feat": 4, "num_block": 3, "upscale": 2}, 3),
    "MDSR": ({"num_feat": 8, "num_block": 3, "scales": [2, 3], "upscale": 2}, 3),
    "SAFMN": ({"num_feat": 8, "num_block": 3, "upscale": 2}, 3),
    "PlainSR": ({"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_conv": 3, "upscale": 2}, 3),
    "SAFMNPP": ({"num_feat": 8, "num_block": 3, "upscale": 2}, 3),
}  # fmt: skip


def build(name: str) -> StagedNetwork:
    torch.manual_seed(0)
    network = build_network({"type": name, **STAGED[name][0]}).eval()
    assert isinstance(network, StagedNetwork)
    return network


def test_every_staged_network_is_tested_here():
    classes = [network for _, network in ARCH_REGISTRY if isinstance(network, type)]
    assert {network.__name__ for network in classes if issubclass(network, StagedNetwork)} == set(STAGED)


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("cut", [0, 1, 2])
@torch.no_grad()
def test_the_parts_are_the_whole_wherever_it_is_cut(name, cut):
    network, image = build(name), torch.rand(2, 3, 11, 14)
    features, kept = network.stem(image)
    shape = features.shape
    for stages in ((0, cut), (cut, None)):
        features = network.run_stages(features, kept, *stages)
        assert features.shape == shape
    assert torch.equal(network.reconstruct(features, kept), network(image))


@pytest.mark.parametrize("name", STAGED)
def test_stages_are_named_as_in_the_network(name):
    network, modules = build(name), dict(build(name).named_modules())
    assert len(network.stage_names) == STAGED[name][1]
    assert all(stage in modules for stage in network.stage_names)
    seen = []
    for stage in network.stage_names:
        network.get_submodule(stage).register_forward_hook(lambda module, i, output, stage=stage: seen.append(stage))
    network(torch.rand(1, 3, 8, 8))
    assert tuple(seen) == network.stage_names


@torch.no_grad()
def test_features_of_one_network_go_on_through_another_of_the_same_width():
    torch.manual_seed(0)
    edsr = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "upscale": 2}
    first, second = (build_network({**edsr, "num_block": blocks}) for blocks in (2, 5))
    image = torch.rand(1, 3, 9, 9)
    features, kept = first.stem(image)
    features = first.run_stages(features, kept, 0, 1)
    _, kept = second.stem(image)
    given = second.reconstruct(second.run_stages(features, kept, 4), kept)
    mixed = torch.nn.Sequential(first.body[0], second.body[4])
    deep = second.conv_after_body(mixed(first.conv_first((image - first.mean) * first.img_range)))
    shallow = second.conv_first((image - second.mean) * second.img_range)
    expected = second.conv_last(second.upsample(deep + shallow)) / second.img_range + second.mean
    assert torch.allclose(given, expected, atol=1e-6)


@torch.no_grad()
def test_where_all_stages_are_gathered_those_that_were_skipped_are_the_networks_own():
    first, second = build("IMDN"), build("IMDN")
    for parameter in second.parameters():
        parameter.mul_(1.5)
    image = torch.rand(1, 3, 9, 9)
    features, kept = first.stem(image)
    features = first.run_stages(features, kept, 0, 2)
    _, kept = second.stem(image)
    given = second.reconstruct(second.run_stages(features, kept, 2), kept)
    shallow = second.fea_conv(image)
    own = [second.IMDB1(shallow)]
    own.append(second.IMDB2(own[0]))
    gathered = second.LR_conv(second.c(torch.cat([*own, second.IMDB3(features)], dim=1)))
    assert torch.allclose(given, second.upsampler(gathered + shallow), atol=1e-6)
