"""Networks whose outputs are known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.inference.tiling import EIGHT_VIEWS


def nearest_edsr(scale: int = 2, channels: int = 3) -> tuple[nn.Module, dict[str, Any]]:
    """An EDSR that repeats each pixel `scale` times in both directions, and its options."""
    block = {
        "type": "EDSR",
        "num_in_ch": channels,
        "num_out_ch": channels,
        "num_feat": channels,
        "num_block": 1,
        "upscale": scale,
        "rgb_mean": ([0.4, 0.5, 0.6] * channels)[:channels],
    }
    network = build_network(block)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for convolution in (network.conv_first, network.conv_last):
            convolution.weight[range(channels), range(channels), 1, 1] = 1
        for convolution in network.upsample.modules():
            if isinstance(convolution, nn.Conv2d):
                outputs = torch.arange(convolution.out_channels)
                convolution.weight[outputs, outputs * channels // convolution.out_channels, 1, 1] = 1
    return network.eval(), block


def save_checkpoint(path: Path, network: nn.Module, block: dict[str, Any], scale: int) -> Path:
    """Writes weights and what they are of, as training does."""
    torch.save({"params": network.state_dict(), "network": {**block, "scale": scale}}, path)
    return path


def self_ensemble(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The average, in float32, over the eight views of an image, run whole."""
    total = sum(view.inverse.of(network(view.of(image))).float() for view in EIGHT_VIEWS)
    return total / len(EIGHT_VIEWS)
