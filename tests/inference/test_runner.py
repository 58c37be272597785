"""Networks run whole and in tiles give the same image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.networks import nearest_edsr, self_ensemble
from torch import nn

from basicsr.archs import build_network
from basicsr.files.images import tensor2img
from basicsr.inference.runner import ImageRunner
from basicsr.utils.errors import NonFiniteError, OptionsError
from basicsr.utils.precision import Precision

CPU = torch.device("cpu")
NETWORKS = Path(__file__).resolve().parents[2] / "options/networks"
ODD_SIZES = [(37, 53), (64, 64), (71, 130), (17, 200), (129, 97)]
SMALL = {
    "EDSR": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_block": 4},
    "RCAN": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "num_group": 2, "num_block": 3, "squeeze_factor": 4},
    "SwinIR": {
        "img_size": 48,
        "window_size": 8,
        "depths": (2, 2),
        "num_heads": (2, 2),
        "embed_dim": 16,
        "upsampler": "pixelshuffle",
    },
}


def small(name: str, seed: int = 0) -> nn.Module:
    """A shallow network at x2 whose random weights are larger than at the start of training: more context counts."""
    torch.manual_seed(seed)
    network = build_network({"type": name, "upscale": 2, **SMALL[name]}).eval()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if ("body" in key or "layers" in key) and parameter.dim() > 1:
                parameter.mul_(1.5)
    return network


def shipped(name: str) -> nn.Module:
    torch.manual_seed(0)
    block = yaml.safe_load((NETWORKS / f"{name}.yml").read_text(encoding="utf-8"))
    return build_network({**block, "upscale": 2}).eval()


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Blocks and noise: edges, flat areas and texture."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(1, channels, -(-height // 9), -(-width // 9), generator=generator)
    blocks = nn.functional.interpolate(coarse, scale_factor=9)[..., :height, :width]
    return (blocks + 0.1 * torch.randn(blocks.shape, generator=generator)).clamp(0, 1)


@torch.no_grad()
def assert_tiled_equals_whole(network: nn.Module, lq: torch.Tensor, **options) -> None:
    lines: list[str] = []
    whole, tiled = network(lq), ImageRunner(network, 2, CPU, report=lines.append, **options)(lq)
    assert not lines
    assert tiled.dtype == torch.float32 and tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 1e-3
    levels = tensor2img([whole, tiled])
    apart = np.abs(levels[0].astype(int) - levels[1].astype(int))
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("name", SMALL)
def test_tiled_equals_whole_at_odd_sizes(name, size):
    assert_tiled_equals_whole(small(name), picture(*size), tile=48)


@pytest.mark.parametrize("name", ["edsr_student", "rcan_student", "swinir_student"])
def test_tiled_equals_whole_for_the_shipped_students(name):
    assert_tiled_equals_whole(shipped(name), picture(28, 52), tile=28)


@pytest.mark.parametrize("tile", [20, 29])
@pytest.mark.parametrize("name", SMALL)
def test_tiles_need_not_be_multiples_of_the_window(name, tile):
    assert_tiled_equals_whole(small(name), picture(37, 53), tile=tile)


@pytest.mark.parametrize("name", SMALL)
def test_self_ensemble_in_tiles_equals_that_of_the_whole(name):
    network, lq = small(name), picture(37, 53)
    with torch.no_grad():
        expected = self_ensemble(network, lq)
    whole, tiled = (ImageRunner(network, 2, CPU, tile=tile, self_ensemble=True)(lq) for tile in (None, 30))
    assert (whole - expected).abs().max() < 1e-6
    assert (tiled - expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_images_smaller_than_a_tile_are_run_whole_and_once(name):
    network, lq = small(name), picture(20, 31)
    with torch.no_grad():
        expected = network(lq)
    runs: list[int] = []
    network.register_forward_hook(lambda *_: runs.append(1))
    assert torch.equal(ImageRunner(network, 2, CPU, tile=31)(lq), expected)
    assert len(runs) == 1


def test_windows_must_fall_where_they_do_in_the_whole_image():
    network, lq = small("SwinIR"), picture(61, 75)
    with torch.no_grad():
        whole = network(lq)
    for overlap in (20, 27):
        aligned, astray = (
            ImageRunner(network, 2, CPU, tile=21, tile_overlap=overlap, multiple=multiple)(lq) for multiple in (None, 1)
        )
        assert (aligned - whole).abs().max() < 1e-4
        assert (astray - whole).abs().max() > 1e-3


def test_without_overlap_only_what_looks_at_neighbours_differs():
    lq = picture(25, 33)
    torch.manual_seed(0)
    pointwise = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        assert (ImageRunner(pointwise, 1, CPU, tile=16, tile_overlap=0)(lq) - pointwise(lq)).abs().max() < 1e-6
    for name in SMALL:
        network = small(name)
        with torch.no_grad():
            apart = (ImageRunner(network, 2, CPU, tile=16, tile_overlap=0)(lq) - network(lq)).abs().amax((0, 1))
        assert apart.shape == (50, 66)
        # Cores of 12 and 13 rows, of 11 columns: seams lie between them.
        assert apart[22:26].max() > 1e-3 and apart[:, 20:24].max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_tiled_equals_whole_in_bf16_as_far_as_bf16_goes(name):
    network, lq = small(name), picture(37, 53)
    precision = Precision("cpu", "bf16")
    whole, tiled = (ImageRunner(network, 2, CPU, tile=tile, precision=precision)(lq) for tile in (None, 24))
    assert tiled.dtype == torch.float32
    # bf16 has 8 significant bits: 1/256 of values up to 1, and more where features are larger than the image.
    exact = ImageRunner(network, 2, CPU)(lq)
    assert (tiled - whole).abs().max() < max(2 * (whole - exact).abs().max(), 1 / 128)


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_are_rounded_and_clipped_in_the_networks_order_of_colours(dtype, channels, tile):
    network, _ = nearest_edsr(scale=3, channels=channels)
    lq = picture(23, 35, channels) * 1.2 - 0.1
    full = np.iinfo(dtype).max
    expected = (lq[0].clamp(0, 1).double() * full).round().numpy().transpose(1, 2, 0).repeat(3, 0).repeat(3, 1)
    array = ImageRunner(network, 3, CPU, tile=tile).to_array(lq, dtype)
    assert array.dtype == dtype and array.shape == (69, 105, channels)
    # The network subtracts and adds its mean colour in float32, which may turn a half.
    assert np.abs(array.astype(int) - expected).max() <= 1 and (array != expected).mean() < 0.02


def test_a_network_without_pooling_runs_once_on_each_tile():
    network = small("EDSR")
    runs: list[torch.Size] = []
    network.register_forward_hook(lambda module, inputs, output: runs.append(inputs[0].shape))
    ImageRunner(network, 2, CPU, tile=20, tile_overlap=4)(picture(40, 60))
    assert runs == [(1, 3, 24, 24), (1, 3, 24, 28), (1, 3, 24, 24)] * 2


class Failing(nn.Module):
    """Doubles an image in both directions, and raises at the third run."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5))
        self.inner[1].eval()
        self.error: BaseException | None = error
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.inner.training
        self.runs += 1
        if self.runs == 3 and self.error is not None:
            raise self.error
        return nn.functional.interpolate(x * self.inner(x), scale_factor=2)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_an_interrupted_network_is_left_as_it_was(error):
    network, lq = Failing(error), picture(20, 30)
    network.train()
    network.inner[1].eval()
    runner = ImageRunner(network, 2, CPU, tile=10, tile_overlap=0)
    with pytest.raises(type(error)):
        runner(lq)
    assert network.runs == 3
    assert network.training and network.inner.training and not network.inner[1].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    network.error = None
    assert (
        runner(lq) - nn.functional.interpolate(lq * lq.mean((2, 3), keepdim=True), scale_factor=2)
    ).abs().max() < 1e-5


def test_gradients_are_not_kept():
    network = small("EDSR")
    assert not ImageRunner(network, 2, CPU)(picture(16, 16)).requires_grad
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_another_scale_than_the_networks_is_refused():
    with pytest.raises(OptionsError, match=r"EDSR makes 48x32 pixels of 24x16, which is not scale 4: give its own"):
        ImageRunner(small("EDSR"), 4, CPU)(picture(16, 24))


def test_another_scale_than_the_networks_is_refused_in_tiles():
    with pytest.raises(OptionsError, match=r"EDSR makes \d+x\d+ pixels of \d+x\d+, which is not scale 4: give its own"):
        ImageRunner(small("EDSR"), 4, CPU, tile=32)(picture(80, 80))


def test_output_that_is_not_finite_makes_no_picture():
    network = small("EDSR")
    network.conv_last.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match="EDSR puts out numbers that are not finite"):
        ImageRunner(network, 2, CPU).to_array(picture(16, 16), np.uint8)
