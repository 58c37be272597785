"""Averages over the whole image inside networks that see it in tiles."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.archs.arch_util import pad_to_multiple
from basicsr.inference.runner import ImageRunner

CPU = torch.device("cpu")
POOLINGS = {
    "module": nn.AdaptiveAvgPool2d(1),
    "function": lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean, axes from the end": lambda x: torch.mean(x, dim=[-1, -2])[..., None, None],
    "module, channels last": lambda x: F.adaptive_avg_pool2d(x.to(memory_format=torch.channels_last), 1),
}


def image(height: int = 37, width: int = 53) -> torch.Tensor:
    """Brighter towards the lower right: no tile has the image's mean."""
    ramp = torch.linspace(0, 1, height)[:, None] + torch.linspace(0, 1, width)[None, :]
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return 0.4 * ramp + 0.2 * noise


class Gate(nn.Module):
    """Multiplies an image by its mean colours, after `before` and with `after` on top."""

    def __init__(self, pool, before=nn.Identity(), after=nn.Identity()) -> None:  # noqa: B008
        super().__init__()
        self.pool, self.before, self.after = pool, before, after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        features = self.before(x)
        return self.after(features * self.pool(features))[..., :height, :width]


class Extended(nn.Module):
    """Extends an image to whole multiples, as networks with attention windows do, before all else."""

    def __init__(self, multiple: int = 8) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pad_to_multiple(x, self.multiple)


@pytest.mark.parametrize("name", POOLINGS)
def test_the_mean_is_the_whole_images_however_it_is_written(name):
    network, lq = Gate(POOLINGS[name]), image()
    tiled = ImageRunner(network, 1, CPU, tile=16, tile_overlap=4)(lq)
    # Sums in float64 against PyTorch's in float32.
    assert (tiled - lq * lq.mean((2, 3), keepdim=True)).abs().max() < 1e-6


def test_features_smaller_or_larger_than_the_tile_are_averaged_over_its_core():
    lq = image(36, 52)
    for before, after, multiple in (
        (nn.PixelUnshuffle(2), nn.PixelShuffle(2), 2),
        (nn.Upsample(scale_factor=3), nn.AvgPool2d(3), 1),
    ):
        network = Gate(POOLINGS["module"], before, after)
        tiled = ImageRunner(network, 1, CPU, tile=16, tile_overlap=4, multiple=multiple)(lq)
        assert (tiled - network(lq)).abs().max() < 1e-6


def test_what_a_network_extends_the_image_by_counts_as_in_the_whole_image():
    network, lq = Gate(POOLINGS["module"], Extended()), image(37, 53)
    assert (network(lq) - lq * lq.mean((2, 3), keepdim=True)).abs().max() > 1e-3
    tiled = ImageRunner(network, 1, CPU, tile=16, tile_overlap=4, multiple=8)(lq)
    assert (tiled - network(lq)).abs().max() < 1e-6


def test_a_network_may_extend_to_less_than_the_multiple_of_tiles():
    network, lq = Gate(POOLINGS["module"], Extended(8)), image(90, 133)
    tiled = ImageRunner(network, 1, CPU, tile=64, tile_overlap=4, multiple=64)(lq)
    assert (tiled - network(lq)).abs().max() < 1e-6


@pytest.mark.parametrize("size", [(40, 330), (70, 98), (97, 131)])
def test_features_of_a_network_that_extends_and_then_halves_are_told_from_other_ratios(size):
    """70x98, extended to 80x112, is 5x7 in sixteenths: as much as 70x98 in fourteenths."""
    before = nn.Sequential(Extended(16), nn.PixelUnshuffle(16))
    network, lq = Gate(POOLINGS["module"], before, nn.PixelShuffle(16)), image(*size)
    lines: list[str] = []
    tiled = ImageRunner(network, 1, CPU, tile=32, report=lines.append)(lq)
    assert (tiled - network(lq)).abs().max() < 1e-5
    assert not lines


class Cropping(nn.Module):
    """Multiplies an image by the mean of all but its margin."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x[..., 3:-3, 3:-3].mean((2, 3), keepdim=True)


class RowByRow(nn.Module):
    """Multiplies every eight rows of an image by their mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows * rows.mean((2, 3), keepdim=True) for rows in x.split(8, 2)], 2)


class Halving(nn.Module):
    """Multiplies an image by the mean of its halves, which leave out the last row of an odd number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * nn.functional.avg_pool2d(x, 2).mean((2, 3), keepdim=True)


@pytest.mark.parametrize("network", [Cropping(), RowByRow(), Halving()], ids=lambda network: type(network).__name__)
def test_means_that_cannot_be_gathered_are_told_and_stop_nothing(network):
    lines: list[str] = []
    runner = ImageRunner(network, 1, CPU, tile=20, tile_overlap=0, report=lines.append)
    for _ in range(2):
        assert runner(image(45, 40)).isfinite().all()
    assert len(lines) == 1
    assert lines[0].startswith(f"{type(network).__name__} averages over the whole image in a way that tiles cannot")


def test_every_view_of_a_self_ensemble_has_means_of_its_own():
    before = nn.Conv2d(3, 3, 3, padding=1)
    torch.manual_seed(0)
    nn.init.normal_(before.weight)
    network, lq = Gate(POOLINGS["module"], before, nn.Sequential(before, nn.Tanh())), image(30, 40)
    whole, tiled = (
        ImageRunner(network, 1, CPU, tile=tile, tile_overlap=4, self_ensemble=True)(lq) for tile in (None, 16)
    )
    assert (tiled - whole).abs().max() < 1e-5


def test_one_pooling_takes_three_passes():
    """The first pass gathers, the second is right, the third says so."""
    network, runs = Gate(POOLINGS["module"]), []
    network.register_forward_hook(lambda *_: runs.append(1))
    ImageRunner(network, 1, CPU, tile=20, tile_overlap=0)(image(40, 40))
    assert len(runs) == 3 * 4


def test_channel_attention_of_each_tile_alone_would_be_wrong():
    torch.manual_seed(0)
    network = build_network(
        {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_group": 2, "num_block": 3, "upscale": 2}
    ).eval()
    for parameter in network.body.parameters():
        parameter.data *= 1.5
    lq = image(40, 60)
    with torch.no_grad():
        whole = network(lq)
        alone = network(lq[..., :36, :36])[..., :40, :40]
    assert (alone - whole[..., :40, :40]).abs().max() > 1e-3
    tiled = ImageRunner(network, 2, CPU, tile=20, tile_overlap=16)(lq)
    assert (tiled - whole).abs().max() < 1e-4


def test_passes_that_do_not_settle_are_told():
    class Unstable(nn.Module):
        """Its output depends on how often it ran."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.runs = getattr(self, "runs", 0) + 1
            return x * x.mean((2, 3), keepdim=True) * self.runs

    lines: list[str] = []
    ImageRunner(Unstable(), 1, CPU, tile=20, tile_overlap=0, report=lines.append)(image(40, 40))
    assert len(lines) == 1
    assert lines[0].startswith("Unstable averages over the whole image, and after 10 passes its output still changed")
