"""Optimizers as the options name them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from basicsr.engine.optimizers import build_optimizer
from basicsr.engine.training_run import _load_optimizer


def trained(steps: int, **options) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Linear(3, 2).double()
    optimizer = build_optimizer({"lr": 0.01, **options}, {"student": network.parameters()})
    for step in range(steps):
        optimizer.zero_grad()
        (network(torch.full((1, 3), 0.1 * step + 0.1, dtype=torch.float64)) ** 2).sum().backward()
        optimizer.step()
    return network, optimizer


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
def test_the_fused_kernel_is_taken_and_does_what_the_plain_one_does(kind):
    fused, optimizer = trained(5, type=kind)
    assert optimizer.param_groups[0]["fused"] is True
    plain, reference = trained(5, type=kind, fused=False)
    assert reference.param_groups[0]["fused"] is False
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_moments_that_the_plain_kernel_left_go_on_in_the_fused_one():
    """As in a checkpoint of an earlier version, or of BasicSR, whose steps are plain numbers."""
    _, plain = trained(3, type="Adam", fused=False)
    state = plain.state_dict()
    for moments in state["state"].values():
        moments["step"] = int(moments["step"])
    network, optimizer = trained(0, type="Adam")
    _load_optimizer(optimizer, state)
    assert optimizer.param_groups[0]["fused"] is True
    network(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert {float(moments["step"]) for moments in optimizer.state.values()} == {4.0}


def test_moments_saved_in_another_memory_layout_belong_to_their_weights():
    """The fused kernel goes through weights and moments side by side, however these are laid out."""

    def stepped(layout: torch.memory_format, state: dict | None) -> tuple[nn.Module, dict]:
        torch.manual_seed(0)
        network = nn.Conv2d(4, 4, 3).double().to(memory_format=layout)
        optimizer = build_optimizer({"type": "Adam", "lr": 0.01}, {"student": network.parameters()})
        if state is not None:
            _load_optimizer(optimizer, copy.deepcopy(state))
        network(torch.rand(1, 4, 8, 8, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        return network, optimizer.state_dict()

    _, state = stepped(torch.contiguous_format, None)
    same, _ = stepped(torch.contiguous_format, state)
    other, _ = stepped(torch.channels_last, state)
    torch.testing.assert_close(same.weight, other.weight.contiguous(), rtol=1e-9, atol=1e-12)


def test_optimizers_without_a_fused_kernel_work_as_before():
    _, optimizer = trained(2, type="RMSprop")
    assert "fused" not in optimizer.param_groups[0]
