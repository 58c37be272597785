"""Evaluation and validation run networks as the options say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.networks import self_ensemble
from torch import nn

from basicsr.archs import build_network
from basicsr.metrics.evaluator import evaluate

CPU = torch.device("cpu")
METRICS = {"psnr": {"type": "calculate_psnr", "crop_border": 2}}


class Images:
    """Two pictures of odd sizes, and what they might be at x2."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        height, width = ((37, 53), (48, 31))[index]
        gt = torch.rand(1, 3, 2 * height, 2 * width, generator=torch.Generator().manual_seed(index))
        gt = nn.functional.avg_pool2d(gt, 3, 1, 1)[0]
        return {"lq": nn.functional.avg_pool2d(gt, 2), "gt": gt, "lq_path": f"image{index}.png"}


def networks() -> dict[str, dict]:
    colours = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 16, "upscale": 2}
    return {
        "EDSR": {"type": "EDSR", "num_block": 2, **colours},
        "RCAN": {"type": "RCAN", "num_group": 2, "num_block": 2, "squeeze_factor": 4, **colours},
        "SwinIR": {
            "type": "SwinIR",
            "img_size": 48,
            "window_size": 8,
            "depths": [2],
            "num_heads": [2],
            "embed_dim": 8,
            "upscale": 2,
            "upsampler": "pixelshuffle",
        },
    }


@pytest.mark.parametrize("name", networks())
def test_psnr_in_tiles_is_that_of_the_whole_image(name):
    torch.manual_seed(0)
    network = build_network(networks()[name])
    whole, tiled = (evaluate(network, Images(), METRICS, CPU, scale=2, tile=tile).values for tile in (None, 24))
    assert np.abs(whole - tiled).max() < 1e-3  # dB


def test_self_ensemble_is_measured_where_it_is_asked_for():
    class Ensemble(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self_ensemble(self.network, x)

    torch.manual_seed(0)
    network = build_network(networks()["EDSR"])
    once, averaged = (
        evaluate(network, Images(), METRICS, CPU, scale=2, self_ensemble=chosen) for chosen in (False, True)
    )
    by_hand = evaluate(Ensemble(network), Images(), METRICS, CPU, scale=2)
    assert np.abs(averaged.values - by_hand.values).max() < 1e-3
    assert np.abs(averaged.values - once.values).min() > 1e-3
