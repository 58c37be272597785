"""Patterns of names choose parts of a network: frozen ones, and those with rates of their own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.optim.parts import FrozenParts, grouped, matching
from basicsr.utils.errors import OptionsError

NAMES = ["conv_first.weight", "body.1.conv.weight", "body.1.conv.bias", "body.10.conv.weight", "last.weight"]


@pytest.mark.parametrize(
    ("pattern", "means"),
    [
        ("conv_first", ["conv_first.weight"]),
        ("body.1", ["body.1.conv.weight", "body.1.conv.bias"]),
        ("body.1.*", ["body.1.conv.weight", "body.1.conv.bias"]),
        ("body.1?", ["body.10.conv.weight"]),
        ("body", NAMES[1:4]),
        ("*.bias", ["body.1.conv.bias"]),
        ("*conv", NAMES[1:4]),
        ("body.[0-9]", NAMES[1:3]),
        ("ody", []),
        ("Body", []),
        ("last.weight", ["last.weight"]),
    ],
)
def test_a_pattern_means_whole_names_and_all_that_lies_in_such_modules(pattern, means):
    assert matching(pattern, NAMES) == means


def network() -> nn.Sequential:
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False))
    return nn.Sequential(normed, nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


@pytest.mark.parametrize(
    ("patterns", "frozen_parameters", "frozen_statistics"),
    [
        (["0"], 4, ["0.1", "0.2"]),
        (["0.*"], 4, ["0.1", "0.2"]),
        (["0.1"], 2, ["0.1"]),
        (["*.weight"], 4, []),
        (["0.1.weight", "0.1.bias"], 2, ["0.1"]),
        (["1", "2.bias"], 3, []),
    ],
)
def test_frozen_parts_have_no_gradients_and_their_statistics_stay(patterns, frozen_parameters, frozen_statistics):
    model = network()
    frozen = FrozenParts(model, patterns)
    assert frozen.hold(1) and not frozen.hold(2)
    model.train()
    frozen.keep_statistics(1)
    model(torch.rand(3, 2, 4, 4)).square().sum().backward()
    assert [weight.grad is None for weight in model.parameters()].count(True) == frozen_parameters
    moved = {name for name, module in model.named_modules() if getattr(module, "num_batches_tracked", 0)}
    assert moved == {"0.1", "0.2", "2"} - set(frozen_statistics)


def test_until_an_iteration():
    model = network()
    frozen = FrozenParts(model, ["0"], until=2)
    assert [frozen.hold(iteration) for iteration in (1, 2, 3, 4)] == [True, False, True, False]
    assert all(weight.requires_grad for weight in model.parameters())
    assert frozen.remark == "frozen, until iteration 2: 10 of 20 parameters (0)"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["bodyy.*"], r"train.freeze: 'bodyy\.\*' matches no module and no parameter of network_g \(did you mean 'bod"),
        (["body", "lost"], r"'lost' matches no .*\(did you mean 'last'\?\); it has body, last$"),
        (["*"], r"train.freeze: \* freeze all 4 parameters of network_g"),
        (["body", "last"], "freeze all 4 parameters"),
    ],
)
def test_patterns_that_mean_nothing_or_all_are_refused_in_one_line(patterns, message):
    model = nn.ModuleDict({"body": nn.Linear(1, 1), "last": nn.Linear(1, 1)})
    with pytest.raises(OptionsError, match=message) as raised:
        FrozenParts(model, patterns)
    assert "\n" not in str(raised.value)


def test_a_parameter_belongs_to_the_first_group_that_means_it():
    weights = {name: nn.Parameter(torch.zeros(1)) for name in NAMES}
    heads = {"distill.hint.head.weight": nn.Parameter(torch.zeros(1))}
    entries = [(["body.1"], {"lr": 1.0}), (["body", "last"], {"weight_decay": 0.0}), (["distill.hint"], {"lr": 2.0})]
    groups, settings = grouped(entries, weights, heads)
    assert groups["body.1"] == [weights[name] for name in NAMES[1:3]]
    assert groups["body, last"] == [weights[name] for name in NAMES[3:]]
    assert groups["distill.hint"] == list(heads.values())
    assert settings == {"body.1": {"lr": 1.0}, "body, last": {"weight_decay": 0.0}, "distill.hint": {"lr": 2.0}}
    with pytest.raises(OptionsError, match=r"param_groups\[1\].params: all that body.10 means is in groups above it"):
        grouped([(["body"], {}), (["body.10"], {})], weights, heads)
    with pytest.raises(
        OptionsError, match=r"'distill.hnt' matches .* of the terms' heads that are trained \(did you m"
    ):
        grouped([(["distill.hnt"], {})], weights, heads)
