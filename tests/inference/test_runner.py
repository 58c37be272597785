"""Networks run whole and in tiles give the same image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.networks import nearest_edsr
from torch import nn

from basicsr.archs import build_network
from basicsr.inference.runner import Runner
from basicsr.inference.self_ensemble import self_ensemble
from basicsr.utils.errors import NonFiniteError, OptionsError
from basicsr.utils.img_util import tensor2img
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
    whole, tiled = network(lq), Runner(network, 2, CPU, **options)(lq)
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
    assert_tiled_equals_whole(self_ensemble_of(network := small(name)), picture(37, 53))
    with torch.no_grad():
        expected = self_ensemble(network)(picture(37, 53))
    tiled = Runner(network, 2, CPU, tile=30, self_ensemble=True)(picture(37, 53))
    assert (tiled - expected).abs().max() < 1e-3


def self_ensemble_of(network: nn.Module) -> nn.Module:
    """As a network, to compare with."""

    class Ensemble(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self_ensemble(network)(x)

    return Ensemble().eval()
