"""Networks of spandrel's, which extend, halve and average in ways of their own, in tiles."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from basicsr.inference.runner import ImageRunner
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.spandrel_networks import SpandrelNetwork

NAFNET = {"width": 8, "middle_blk_num": 1, "enc_blk_nums": [1] * 4, "dec_blk_nums": [1] * 4}
OMNISR = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "res_num": 1, "up_scale": 2, "window_size": 8}


def built(name: str, options: dict) -> SpandrelNetwork:
    """With random weights under which no part of it is idle."""
    import_torchvision()
    torch.manual_seed(0)
    network = getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)(**options)
    for key, parameter in network.named_parameters():
        if name == "NAFNet" and key.endswith(("beta", "gamma")):
            nn.init.normal_(parameter, std=0.3)
    return SpandrelNetwork(network.state_dict()).eval()


def picture(height: int, width: int) -> torch.Tensor:
    """Noise on a slope: no tile has the picture's mean."""
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return 0.5 * noise + torch.linspace(0, 0.5, width)


@torch.no_grad()
def difference(network: SpandrelNetwork, lq: torch.Tensor, **options) -> tuple[float, list[str]]:
    """Between tiles and the whole, and the lines that were reported."""
    lines: list[str] = []
    tiled = ImageRunner(network, network.scale, torch.device("cpu"), report=lines.append, **options)(lq)
    return (tiled - network(lq)).abs().max().item(), lines


@pytest.mark.parametrize("overlap", [None, 32])
@pytest.mark.parametrize("size", [(40, 210), (97, 131)])
def test_nafnet_which_extends_inside_itself_equals_the_whole(size, overlap):
    apart, lines = difference(built("NAFNet", NAFNET), picture(*size), tile=48, tile_overlap=overlap)
    assert apart < 1e-3 and not lines


def test_omnisr_extends_to_its_windows_also_where_tiles_begin_at_larger_multiples():
    """It attends over the whole image, too, so tiles differ from it; but its averages are followed."""
    apart, lines = difference(built("OmniSR", OMNISR), picture(97, 131), tile=64, tile_overlap=8, multiple=64)
    assert apart < 0.2 and not lines
