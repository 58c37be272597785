"""Autocast and the layer that stays in float32."""

from __future__ import annotations

import copy

import torch
from torch import nn

from basicsr.utils.precision import Precision, keep_output_precise


def test_the_last_convolution_runs_in_float32_and_state_dicts_stay():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3))
    keys = list(network.state_dict())
    keep_output_precise(network)
    assert list(network.state_dict()) == keys
    with Precision("cpu", "bf16").autocast():
        hidden = network[0](torch.rand(1, 3, 9, 9))
        output = network(torch.rand(1, 3, 9, 9))
    assert (hidden.dtype, output.dtype) == (torch.bfloat16, torch.float32)
    # bf16 keeps 8 bits: an output rounded to it has zeros in the lower half of its 32.
    assert (output.view(torch.int32) & 0xFFFF).any()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin[1].weight.zero_()
    assert network(torch.rand(1, 3, 9, 9)).std() > 0


def test_none_is_float32():
    with Precision("cpu", "none").autocast():
        assert nn.Conv2d(3, 3, 1)(torch.rand(1, 3, 2, 2)).dtype == torch.float32
