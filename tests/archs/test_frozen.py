from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from basicsr.archs.arch_util import Frozen


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


class Loss(nn.Module):
    """What holds a frozen network beside a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Frozen(network())
        self.head = nn.Conv2d(4, 1, 1)


def test_it_is_in_no_checkpoint_and_no_optimizer():
    loss = Loss()
    assert list(loss.state_dict()) == ["head.weight", "head.bias"]
    assert [name for name, _ in loss.named_parameters()] == ["head.weight", "head.bias"]
    assert list(loss.features.buffers()) == list(loss.features.children()) == []
    loss.load_state_dict(Loss().state_dict(), strict=True)


def test_it_stays_in_eval_and_its_weights_get_no_gradients_but_its_input_does():
    loss = Loss().train().requires_grad_(True)
    inner = loss.features.network
    assert not any(module.training for module in inner.modules())
    statistics = inner[1].running_mean.clone()
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    loss.head(loss.features(image)).sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in inner.parameters())
    assert torch.equal(inner[1].running_mean, statistics)
    with torch.no_grad():
        assert torch.equal(loss.features(image), inner(image))


def test_it_follows_to_another_precision_device_and_memory_format():
    loss = Loss().double()
    inner = loss.features.network
    assert inner[0].weight.dtype == inner[1].running_mean.dtype == torch.float64
    loss.to(memory_format=torch.channels_last)
    assert inner[0].weight.is_contiguous(memory_format=torch.channels_last)
    loss.to("meta")
    assert inner[0].weight.is_meta and inner[1].running_var.is_meta


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_whole_and_their_own(duplicate):
    frozen = Frozen(network())
    other = duplicate(frozen)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(other(image), frozen(image))
    with torch.no_grad():
        frozen.network[0].weight.zero_()
    assert not torch.equal(other(image), frozen(image))
    assert not other.network.training and not any(p.requires_grad for p in other.network.parameters())
    assert other.double().network[0].weight.dtype == torch.float64
    assert frozen.network[0].weight.dtype == torch.float32
