"""NAFNet and Restormer in tiles: one averages over the whole image, which is followed; the other attends over it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.inference.runner import ImageRunner
from basicsr.inference.tiling import Region, multiple_of, with_context

CPU = torch.device("cpu")
NAFNET = {"type": "NAFNet", "width": 8, "middle_blk_num": 1, "enc_blk_nums": [1] * 4, "dec_blk_nums": [1] * 4}
RESTORMER = {"type": "Restormer", "dim": 4, "num_blocks": [1] * 4, "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]}


def built(block: dict) -> nn.Module:
    """With random weights under which no part of it is idle."""
    torch.manual_seed(0)
    network = build_network(block)
    for key, parameter in network.named_parameters():
        if key.endswith(("beta", "gamma")):
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


def picture(height: int, width: int) -> torch.Tensor:
    """Noise on a slope: no tile has the picture's mean."""
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return 0.5 * noise + torch.linspace(0, 0.5, width)


@torch.no_grad()
def difference(network: nn.Module, lq: torch.Tensor, **options) -> tuple[float, list[str]]:
    """Between tiles and the whole, and the lines that were reported."""
    lines: list[str] = []
    tiled = ImageRunner(network, 1, CPU, report=lines.append, **options)(lq)
    return (tiled - network(lq)).abs().max().item(), lines


@pytest.mark.parametrize(("levels", "multiple"), [(1, 2), (4, 16)])
def test_nafnet_wants_multiples_of_its_halvings(levels, multiple):
    block = {**NAFNET, "enc_blk_nums": [1] * levels, "dec_blk_nums": [1] * levels}
    assert multiple_of(built(block)) == multiple


def test_restormer_wants_multiples_of_8():
    assert multiple_of(built(RESTORMER)) == 8


@pytest.mark.parametrize("overlap", [None, 32])
@pytest.mark.parametrize("size", [(40, 210), (97, 131)])
def test_nafnet_equals_the_whole(size, overlap):
    apart, lines = difference(built(NAFNET), picture(*size), tile=48, tile_overlap=overlap)
    assert apart < 1e-3 and not lines


def test_nafnet_equals_the_whole_on_its_eight_views():
    network, lq = built(NAFNET), picture(50, 90)
    with torch.no_grad():
        whole = ImageRunner(network, 1, CPU, self_ensemble=True)(lq)
        tiled = ImageRunner(network, 1, CPU, self_ensemble=True, tile=48)(lq)
    assert (tiled - whole).abs().max() < 1e-3


def test_nafnet_would_not_if_each_tile_had_means_of_its_own():
    network, lq = built(NAFNET), picture(40, 210)
    region = with_context(Region(0, 0, 40, 48), 40, 210, 32, 16)
    with torch.no_grad():
        alone = network(lq[(..., *region.slices)])[..., :48]
        assert (alone - network(lq)[..., :48]).abs().max() > 1e-3


def test_restormers_difference_to_the_whole_is_told_and_measured():
    network = built(RESTORMER)
    apart, lines = difference(network, picture(40, 340), tile=48)
    assert 1e-5 < apart < 0.05
    assert len(lines) == 1
    assert "Restormer sees further than the" in lines[0]
    assert (
        "results in tiles may differ from those of the whole image; those of a small image of noise do by" in lines[0]
    )


def test_restormer_on_an_image_of_one_tile_is_run_whole():
    assert difference(built(RESTORMER), picture(40, 48), tile=48) == (0.0, [])


def test_restormer_differs_less_with_larger_tiles():
    network, lq = built(RESTORMER), picture(97, 211)
    small, large = (difference(network, lq, tile=tile, tile_overlap=16)[0] for tile in (32, 128))
    assert large < small
