"""The moving average, against its equation."""

from __future__ import annotations

import torch
from torch import nn

from basicsr.optim.ema import Ema


def test_average_follows_its_equation_and_buffers_are_copied():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    ema = Ema(network, 0.9)
    expected = {name: parameter.detach().double() for name, parameter in network.named_parameters()}
    for _ in range(5):
        network(torch.rand(2, 1, 5, 5))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(network)
        for name, parameter in network.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach().double()
    for name, parameter in ema.network.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not parameter.requires_grad
    assert torch.equal(ema.network[1].running_mean, network[1].running_mean)
    assert int(ema.network[1].num_batches_tracked) == 5
    assert not ema.network.training
