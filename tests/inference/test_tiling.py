"""Where tiles lie, and how much context they need, measured on networks of which it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs.arch_util import pad_to_multiple
from basicsr.inference.runner import ImageRunner
from basicsr.inference.tiling import Region, cut_into_cores, measure_context, multiple_of, with_context

CPU = torch.device("cpu")
SIZES = [(1, 1), (37, 53), (64, 64), (71, 130), (17, 200), (129, 97)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [1, 8, 29, 64, None])
def test_cores_cover_every_pixel_once_and_are_no_larger_than_asked(size, tile):
    covered = np.zeros(size, int)
    for core in cut_into_cores(Region(0, 0, *size), tile):
        covered[core.slices] += 1
        assert max(core.height, core.width) <= (tile or max(size))
    assert (covered == 1).all()


def test_cores_differ_by_a_pixel_at_most():
    heights = {core.height for core in cut_into_cores(Region(0, 0, 300, 10), 256)}
    assert heights == {150}
    widths = [core.width for core in cut_into_cores(Region(0, 5, 10, 105), 33)]
    assert sorted(widths) == [25, 25, 25, 25]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 5, 16])
@pytest.mark.parametrize("multiple", [1, 7, 8])
def test_a_region_holds_its_context_and_keeps_to_the_grid_of_windows(size, overlap, multiple):
    height, width = size
    for core in cut_into_cores(Region(0, 0, *size), 24):
        region = with_context(core, height, width, overlap, multiple)
        assert region.top % multiple == region.left % multiple == 0
        assert region.top <= max(core.top - overlap, 0) and region.left <= max(core.left - overlap, 0)
        assert min(core.bottom + overlap, height) <= region.bottom <= height
        assert min(core.right + overlap, width) <= region.right <= width
        # A network extends images to full windows at the right and at the bottom: only where the whole image ends.
        assert region.bottom == height or region.height % multiple == 0
        assert region.right == width or region.width % multiple == 0
        assert region.height >= min(multiple, height) and region.width >= min(multiple, width)


def measure(network: nn.Module, scale: int = 1, multiple: int = 1):
    with torch.no_grad():
        return measure_context(network.eval(), 3, scale, CPU, multiple)


def averaging(radius: int) -> nn.Module:
    """The mean of the (2 radius + 1)^2 neighbours."""
    side = 2 * radius + 1
    return nn.Sequential(nn.AvgPool2d((side, 1), 1, (radius, 0)), nn.AvgPool2d((1, side), 1, (0, radius)))


@pytest.mark.parametrize(("radius", "overlap"), [(1, 8), (8, 8), (9, 16), (24, 24), (40, 40), (70, 72)])
def test_convolutions_need_their_radius_in_steps_of_eight(radius, overlap):
    context = measure(averaging(radius))
    assert context.overlap == overlap and context.error < 1e-6


def test_a_network_that_looks_at_no_neighbour_needs_no_context():
    assert measure(nn.Conv2d(3, 3, 1)).overlap == 0
    assert measure(nn.Upsample(scale_factor=4), scale=4).overlap == 0


def test_influence_that_fades_counts_until_it_is_negligible():
    """Each step halves: 2^-d falls below 1e-4 at 14 pixels."""

    class Fading(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = 0.5 ** torch.arange(1.0, 33.0)
            kernel = torch.cat([weight.flip(0), torch.zeros(1), weight]).expand(3, 1, 1, -1)
            return F.conv2d(x, kernel, padding=(0, 32), groups=3)

    assert measure(Fading()).overlap == 16


class Blocks(nn.Module):
    """Replaces blocks by their means, of an image extended to whole blocks."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = F.avg_pool2d(pad_to_multiple(x, self.side), self.side)
        return F.interpolate(blocks, scale_factor=self.side)[..., : x.shape[-2], : x.shape[-1]]


@pytest.mark.parametrize("side", [16, 64])
def test_steps_that_a_network_does_not_tell_are_found(side):
    network = Blocks(side)
    context = measure(network)
    assert context.error < 1e-6 and context.multiple % side == 0
    lq = torch.rand(1, 3, 177, 261, generator=torch.Generator().manual_seed(0))
    tiled = ImageRunner(network, 1, CPU, tile=70)(lq)
    assert (tiled - network(lq)).abs().max() < 1e-5


def test_a_network_that_sees_the_whole_image_otherwise_than_by_means_is_told_to_differ():
    lines: list[str] = []
    network = nn.Sequential(nn.InstanceNorm2d(3), nn.Sigmoid())
    ramp = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    ImageRunner(network, 1, CPU, tile=48, report=lines.append)(ramp)
    assert len(lines) == 1
    assert (
        lines[0].startswith("Sequential sees further than the") and "differ from those of the whole image" in lines[0]
    )


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_off_while_the_context_is_measured(allowed, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    network, seen = averaging(2), set()
    network.register_forward_hook(lambda *_: seen.add(torch.backends.cudnn.allow_tf32))
    measure(network)
    assert seen == {False}
    assert torch.backends.cudnn.allow_tf32 is allowed


class Faint(nn.Module):
    """Adds a little of the upper left corner, however far that is."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.strength * x[..., :1, :1]


@pytest.mark.parametrize(("strength", "told"), [(1e-5, False), (5e-4, True)])
def test_the_whole_images_influence_is_told_unless_it_is_negligible(strength, told):
    """Other images show more of it than the probe may: 0.0008 there was 0.006 in a picture."""
    lines: list[str] = []
    ImageRunner(Faint(strength), 1, CPU, tile=48, report=lines.append)(torch.rand(1, 3, 60, 60))
    assert [line.startswith("Faint sees further than the") for line in lines] == [True] * told


def test_the_multiple_is_that_of_all_windows():
    inner, outer = nn.Module(), nn.Module()
    inner.window_size, inner.split_size, outer.window_size = (8, 8), [8, 12], 16
    outer.inner = inner
    assert multiple_of(outer) == 48
    outer.padder_size = 32
    assert multiple_of(outer) == 96
    assert multiple_of(nn.Conv2d(3, 3, 3)) == 1


def test_the_overlap_is_measured_once_and_only_for_tiles():
    network = averaging(2)
    runs: list[torch.Size] = []
    network.register_forward_hook(lambda module, inputs, output: runs.append(inputs[0].shape[-2:]))
    runner = ImageRunner(network, 1, CPU, tile=40)
    runner(torch.rand(1, 3, 30, 40))
    assert runs == [(30, 40)]
    runner(torch.rand(1, 3, 40, 80))
    assert runs[1:] == [(129, 129), (64, 64), (96, 96), (40, 48), (40, 48)]
    runner(torch.rand(1, 3, 40, 80))
    assert runs[6:] == [(40, 48), (40, 48)]
