"""Optimizers as the options name them, and the moving average against its equation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from basicsr.optim.optimizers import OPTIMIZERS, Ema, build_optimizer, changed_decay, load_optimizer, regrouped
from basicsr.utils.errors import OptionsError
from basicsr.utils.logger import WarningRemark


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


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_those_of_torch(kind):
    network, optimizer = trained(0, type=kind)
    networks = [network, copy.deepcopy(network)]
    given = {name: optimizer.defaults[name] for name in ("lr", "fused") if name in optimizer.defaults}
    reference = getattr(torch.optim, kind)(networks[1].parameters(), **given)
    assert type(reference) is not type(optimizer)
    for step in range(3):
        for network, taken in zip(networks, (optimizer, reference), strict=True):
            taken.zero_grad()
            (network(torch.full((1, 3), 0.1 * step + 0.1, dtype=torch.float64)) ** 2).sum().backward()
            taken.step()
    assert all(map(torch.equal, *(network.parameters() for network in networks)))


def test_moments_that_the_plain_kernel_left_go_on_in_the_fused_one():
    """As in a checkpoint of an earlier version, or of BasicSR, whose steps are plain numbers."""
    _, plain = trained(3, type="Adam", fused=False)
    state = plain.state_dict()
    for moments in state["state"].values():
        moments["step"] = int(moments["step"])
    network, optimizer = trained(0, type="Adam")
    load_optimizer(optimizer, state)
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
            load_optimizer(optimizer, copy.deepcopy(state))
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


def decayed(options: dict, **named) -> tuple[float, float]:
    """What one step at gradients of zero leaves of a weight of 1 of the student and of one of the heads."""
    student, head = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    optimizer = build_optimizer({"lr": 0.1, **options}, {"student": [student], "heads": [head]}, **named)
    for parameter in (student, head):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return student.item(), head.item()


def test_weight_decay_is_the_students_and_the_heads_have_their_own():
    # AdamW: w - lr weight_decay w; where it is not given, PyTorch's is 0.01.
    assert decayed({"type": "AdamW", "weight_decay": 0.5}) == (pytest.approx(0.95), 1.0)
    assert decayed({"type": "AdamW"}) == (pytest.approx(0.999), 1.0)
    assert decayed({"type": "AdamW", "weight_decay": 0.5}, weight_decay_heads=0.2) == pytest.approx((0.95, 0.98))
    assert decayed({"type": "SGD", "weight_decay": 0.5}) == (pytest.approx(0.95), 1.0)


def test_an_optimizer_without_weight_decay_refuses_one_for_the_heads():
    assert decayed({"type": "Rprop"}) == (1.0, 1.0)
    with pytest.raises(OptionsError, match=r"weight_decay_heads is 0.1, but Rprop has no weight decay; remove it"):
        decayed({"type": "Rprop"}, weight_decay_heads=0.1)


def test_a_state_of_one_group_of_all_terms_goes_on_in_two():
    """As it was saved of a network trained in the student's place beside heads, before these had their own group."""
    head, wide, frozen = (nn.Parameter(torch.full((size,), float(size))) for size in (2, 3, 4))
    frozen.requires_grad_(False)
    in_order = [frozen, head, wide]
    earlier = build_optimizer({"type": "AdamW", "lr": 0.1, "weight_decay": 0.5}, {"heads": in_order})
    for parameter in (head, wide):
        parameter.grad = torch.full_like(parameter, 1.0 + len(parameter))
    earlier.step()
    optimizer = build_optimizer(
        {"type": "AdamW", "lr": 0.1, "weight_decay": 0.5}, {"student": [frozen, wide], "heads": [head]}
    )
    optimizer.param_groups[0]["names"], optimizer.param_groups[1]["names"] = ["wide"], ["head"]
    saved = regrouped(earlier.state_dict(), ["head", "wide"], optimizer)
    load_optimizer(optimizer, saved)
    for parameter in (head, wide):
        assert torch.equal(optimizer.state[parameter]["exp_avg"], earlier.state[parameter]["exp_avg"])
        assert len(optimizer.state[parameter]["exp_avg"]) == len(parameter)
    settings = [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
    assert settings == [("student", 0.5), ("heads", 0.0)]
    (said,) = changed_decay({"param_groups": [{"weight_decay": 0.5}] * 2}, optimizer)
    assert isinstance(said, WarningRemark) and said == (
        "the heads' weight decay was 0.5, and is 0.0 from now on (train: weight_decay_heads)"
    )
    present = optimizer.state_dict()
    assert regrouped(present, ["head", "wide"], optimizer) is present


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1}, "no optimizer is called ''; there are: Adam,"),
        ({"type": "Adm", "lr": 0.1}, r"no optimizer is called 'Adm' \(did you mean 'Adam'\?\); there are: Adam,"),
        ({"type": "Adam", "lrr": 0.1}, r"optimizer Adam: unknown key lrr \(did you mean 'lr'\?\); allowed: lr,"),
    ],
)
def test_wrong_options_of_a_direct_call_are_refused_in_one_line(options, message):
    with pytest.raises(OptionsError, match=message) as raised:
        build_optimizer(options, {"student": nn.Linear(1, 1).parameters()})
    assert "\n" not in str(raised.value)


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
