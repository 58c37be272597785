"""A student that imitates itself as it was at first, against numpy, and in real runs without a teacher."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, batch, kd_model, trained
from support.training import changed, checkpoint_of, differences, without_teacher

from basicsr.archs import build_network
from basicsr.distill.base import NetworkView
from basicsr.distill.self_distillation import SelfDistillation
from basicsr.train import train_pipeline
from basicsr.utils.errors import OptionsError

TAPS = ("body.0", "body.1")


def moved(model) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)


def seen(network, lq) -> dict[str, np.ndarray]:
    """The output, and the features of every tap, in float64."""
    with torch.no_grad(), NetworkView("network_g", network).feature_hooks(TAPS) as features:
        found = {"": network(lq), **features}
        return {name: value.double().numpy() for name, value in found.items()}


def test_losses_are_those_between_the_network_and_its_first_self():
    model = kd_model({"self": SelfDistillation(feature_weight=0.3, positions=5)})  # of two stages
    first, step = copy.deepcopy(model.network).eval(), batch(2, 12)
    assert not any(model(step, 1).parts.values())
    moved(model)
    output = model(step, 1)
    before, now = seen(first, step.lq), seen(model.network, step.lq)
    image = np.abs(now[""] - before[""]).mean()
    apart = [
        np.abs(now[tap][i] - before[tap][i]).sum() / np.abs(before[tap][i]).sum() for tap in TAPS for i in range(2)
    ]
    assert output.parts["l_self"].item() == pytest.approx(image, rel=1e-5)
    assert output.parts["l_self_feat"].item() == pytest.approx(np.mean(apart), rel=1e-5)
    assert output.total.item() == pytest.approx(image + 0.3 * np.mean(apart), rel=1e-5)


def test_the_first_self_neither_learns_nor_leaves_eval_mode_and_is_kept_with_the_heads():
    model = kd_model({"self": SelfDistillation(criterion={"type": "CharbonnierLoss", "loss_weight": 2.0})})
    term, first = model.terms["self"], copy.deepcopy(model.network.state_dict())
    moved(model)
    model.train()(batch(2, 12), 1).total.backward()
    assert model.network.training and not any(module.training for module in term.float_self.modules())
    assert not any(name.startswith("terms.") for name in trained(model))
    assert all(parameter.grad is None for parameter in term.float_self.parameters())
    assert term.weights["l_self"] == 2.0
    kept = {name.removeprefix("float_self."): value for name, value in term.state_dict().items()}
    assert kept.keys() == first.keys() and all(torch.equal(kept[name], first[name]) for name in first)


def alone(options, file):
    """A run without a teacher that is held near to its beginning."""
    return changed(
        without_teacher(options),
        train__distill={"self": {"type": "SelfDistillation", "feature_weight": 0.1}},
        train__total_iter=4,
        logger__save_checkpoint_freq=2,
        path={"pretrain_network_g": str(file)},
    )


def test_a_run_without_a_teacher_goes_on_with_the_self_that_it_began_with(mcadkd, tmp_path):
    torch.manual_seed(8)
    network = build_network({**STUDENT, "img_range": 255.0})
    file = tmp_path / "start.pth"
    torch.save({"params": network.state_dict()}, file)
    options = alone(mcadkd, file)
    folder = train_pipeline(options, root=tmp_path / "whole").folder
    whole = checkpoint_of(folder, 4)
    kept = whole["state"]["terms"]
    assert all(torch.equal(kept[f"self.float_self.{name}"], value) for name, value in network.state_dict().items())

    train_pipeline(changed(options, train__total_iter=2), root=tmp_path / "killed")
    options["path"] = {}  # it is not needed any more
    folder = train_pipeline(options, root=tmp_path / "killed", auto_resume=True).folder
    resumed = checkpoint_of(folder, 4)
    assert differences(resumed["state"]["optimizers"], whole["state"]["optimizers"]) == []
    assert all(differences(resumed["g"][name], whole["g"][name]) == [] for name in ("params", "params_ema"))
    assert differences(resumed["state"]["terms"], kept) == []


def test_a_random_beginning_is_refused_in_one_line(mcadkd, tmp_path):
    options = changed(alone(mcadkd, "none"), path=None)
    with pytest.raises(OptionsError, match=r"path\.pretrain_network_g is required: train\.distill\.self") as refusal:
        train_pipeline(options, root=tmp_path / "runs")
    assert "\n" not in str(refusal.value)
    assert not list((tmp_path / "runs").glob("**/models"))
