"""The average over the eight flips and rotations."""

from __future__ import annotations

import pytest
import torch
from support.networks import nearest_edsr, self_ensemble
from torch import nn

from basicsr.inference.runner import ImageRunner
from basicsr.inference.tiling import EIGHT_VIEWS, Region

CPU = torch.device("cpu")


def convolution() -> nn.Module:
    """Not equivariant to flips or rotations."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1)


def image(height: int = 11, width: int = 17) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_the_eight_views_are_different_and_are_undone():
    lq = image()
    views = [view.of(lq) for view in EIGHT_VIEWS]
    assert sorted(tuple(view.shape[-2:]) for view in views) == [(11, 17)] * 4 + [(17, 11)] * 4
    for index, view in enumerate(EIGHT_VIEWS):
        assert torch.equal(view.inverse.of(views[index]), lq)
        for other in views[:index]:
            assert other.shape != views[index].shape or not torch.equal(other, views[index])


def test_regions_of_a_view_show_what_the_image_has_there():
    lq, region = image(), Region(2, 3, 6, 11)
    for view in EIGHT_VIEWS:
        seen = view.of_region(region, 11, 17)
        assert torch.equal(view.of(lq)[(..., *seen.slices)], view.of(lq[(..., *region.slices)]))
        assert view.inverse.of_region(seen, *view.of(lq).shape[-2:]) == region


@pytest.mark.parametrize("tile", [None, 6])
def test_it_is_the_mean_over_flips_and_rotations_written_out(tile):
    network, lq = convolution(), image()
    expected = torch.zeros(1, 3, 11, 17, dtype=torch.float64)
    with torch.no_grad():
        for flipped in (False, True):
            for turns in range(4):
                seen = torch.rot90(lq.flip(-1) if flipped else lq, turns, (-2, -1))
                output = torch.rot90(network(seen), -turns, (-2, -1)).double()
                expected += (output.flip(-1) if flipped else output) / 8
    result = ImageRunner(network, 1, CPU, self_ensemble=True, tile=tile)(lq)
    # float32 rounds at 6e-8 of values up to 1, eight times.
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() < 5e-7
    with torch.no_grad():
        assert (self_ensemble(network, lq) - expected).abs().max() < 5e-7


def test_a_network_that_commutes_with_flips_and_rotations_is_unchanged():
    network, _ = nearest_edsr(scale=2)
    once, averaged = (ImageRunner(network, 2, CPU, self_ensemble=chosen)(image()) for chosen in (False, True))
    assert (once - averaged).abs().max() < 1e-6


@pytest.mark.parametrize("tile", [None, 6])
def test_turning_the_image_turns_the_result(tile):
    runner, lq = ImageRunner(convolution(), 1, CPU, self_ensemble=True, tile=tile), image()
    result = runner(lq)
    for view in EIGHT_VIEWS:
        assert (runner(view.of(lq)) - view.of(result)).abs().max() < 1e-6
