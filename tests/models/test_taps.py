"""Feature taps on real networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.models.taps import FeatureTaps
from basicsr.utils.errors import OptionsError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 5, 3)))


def test_named_outputs_are_collected_with_their_gradients_and_only_inside_the_block():
    net, image = network(), torch.rand(1, 3, 8, 8)
    with FeatureTaps(net, ["0", "1.1"]) as features:
        output = net(image)
    assert torch.equal(features["1.1"], output)
    features["0"].sum().backward()
    assert net[0].weight.grad is not None
    held = features["0"]
    net(torch.zeros(1, 3, 8, 8))
    assert features["0"] is held
    assert not any(module._forward_hooks for module in net.modules())


def test_a_wrong_path_lists_the_right_ones():
    with pytest.raises(OptionsError, match=r"no module '1\.7'.*there are: 0, 1, 1\.0, 1\.1"):
        FeatureTaps(network(), ["1.7"])
