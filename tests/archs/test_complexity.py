"""Parameters and multiply-adds, by hand and against the papers' tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.errors import DataError

_EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_block": 32, "upscale": 4}
_RCAN = {"type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_group": 10, "upscale": 4}
_SWINIR = {
    "type": "SwinIR",
    "upscale": 4,
    "img_size": 64,
    "window_size": 8,
    "mlp_ratio": 2.0,
    "upsampler": "pixelshuffle",
}


@pytest.mark.parametrize(
    ("options", "millions", "billions"),
    [
        ({**_EDSR, "num_feat": 256, "res_scale": 0.1}, "43.09", "3293.35"),
        ({**_EDSR, "num_feat": 64}, "2.70", "207.28"),
        ({**_RCAN, "num_block": 20}, "15.59", "1044.03"),
        ({**_RCAN, "num_block": 6}, "5.17", "366.98"),
        ({**_SWINIR, "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6}, "11.90", "861.27"),
        ({**_SWINIR, "embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4}, "1.24", "121.48"),
    ],
)
def test_figures_are_those_of_table_2(options: dict[str, Any], millions: str, billions: str) -> None:
    with torch.device("meta"):
        network = build_network(options)
    assert f"{count_parameters(network) / 1e6:.2f}" == millions
    assert f"{count_multiply_adds(network, (3, 256, 256)) / 1e9:.2f}" == billions


def test_the_discriminators_idle_channels_are_not_counted() -> None:
    with torch.device("meta"):
        network = build_network({"type": "UNetDiscriminatorSN", "num_in_ch": 3})
    assert f"{count_multiply_adds(network, (3, 256, 256)) / 1e9:.2f}" == "25.98"


class _Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)
        return (tokens.transpose(1, 2) @ tokens).softmax(dim=-1)


class _Enlarge(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2, mode=self.mode)


class _OneEntryForBothSides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, x.new_ones(6, 4, 3, 3), padding=(1,), stride=(2,))


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), 8 * 8 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, (3, 2), padding=(1, 0), dilation=(1, 3)), 8 * 5 * 6 * 4 * 6),
        (nn.Sequential(nn.Conv2d(4, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 1, 1)), 8 * 8 * 32 + 16 * 16 * 2),
        (_OneEntryForBothSides(), 4 * 4 * 6 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), 4 * 4 * 6 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), 8 * 8 * 4 * 6 * 4),
        (nn.Linear(8, 5), 4 * 8 * 8 * 5),
        (_Attention(), 64 * 64 * 4),
        (nn.LayerNorm(8), 5 * 256),
        (nn.LayerNorm(8, elementwise_affine=False), 4 * 256),
        (nn.GroupNorm(2, 4), 5 * 256),
        (nn.InstanceNorm2d(4), 4 * 256),
        (nn.BatchNorm2d(4), 2 * 256),
        (nn.BatchNorm2d(4, affine=False), 256),
        (nn.AdaptiveAvgPool2d(1), 256),
        (nn.AdaptiveAvgPool2d(2), 256),
        (_Enlarge("nearest"), 4 * 256),
        (_Enlarge("bilinear"), 4 * 4 * 256),
        (nn.Sequential(nn.ReLU(), nn.PixelShuffle(2), nn.Sigmoid()), 0),
    ],
)
def test_each_operator_costs_what_the_convention_says(network: nn.Module, wanted: int) -> None:
    assert count_multiply_adds(network, (4, 8, 8)) == wanted


@pytest.mark.parametrize("kernel", [1, 3, (2, 5)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, "valid"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_costs_its_weights_at_every_place_of_the_output_that_it_has(
    kernel: Any, stride: int, padding: Any, dilation: int, groups: int
) -> None:
    network = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups)
    wanted = network(torch.zeros(1, 4, 17, 23)).numel() * network.weight[0].numel()
    assert count_multiply_adds(network, (4, 17, 23)) == wanted


def test_counting_changes_nothing_in_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_multiply_adds(network, (3, 8, 8))
    assert network.training and network[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_an_input_that_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match="Conv2d does not take an input of 5x8x8: ") as raised:
        count_multiply_adds(nn.Conv2d(3, 4, 1), (5, 8, 8))
    assert "\n" not in str(raised.value)


def test_the_script_prints_every_network_of_an_options_file(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    file = tmp_path / "options.yml"
    file.write_text(
        "name: info\nscale: 2\nnum_gpu: 0\n"
        "datasets: {test: {name: none, type: PairedImageDataset, dataroot_gt: none, dataroot_lq: none,"
        " io_backend: {type: disk}}}\n"
        "networks:\n"
        "  bicubic: {type: bicubic}\n"
        "  small:\n"
        "    path: none.pth\n"
        "    network: {type: EDSR, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 2}\n"
        "  judge:\n"
        "    path: none.pth\n"
        "    network: {type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 2}\n",
        encoding="utf-8",
    )
    command = [sys.executable, str(root / "scripts" / "model_info.py"), "-opt", str(file), "--input", "3", "512", "512"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    header, small, judge = done.stdout.splitlines()
    assert header.split("  ")[-1] == "multiply-adds (G) at 3x512x512"
    # conv_first 3x8, three convolutions 8x8, conv 8x32, all at 512x512; conv_last 8x3 at 1024x1024; 3x3 kernels.
    wanted = 9 * (512**2 * (3 * 8 + 3 * 8 * 8 + 8 * 32) + 1024**2 * 8 * 3)
    assert small.split() == ["small", "EDSR", "0.00", f"{wanted / 1e9:.2f}"]
    # 13,588 parameters in convolutions and norms, 25,801 in linear layers.
    assert judge.split()[:3] == ["judge", "VGGStyleDiscriminator", "0.04"]
    assert "takes 128x128 images, got 512x512" in judge
