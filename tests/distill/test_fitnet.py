"""FitNet's hint against its equation in numpy, for networks of equal and of unlike kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, kd_model, trained

from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.distill.base import Reconstruction
from basicsr.distill.fitnet import FitNet
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METHOD_REGISTRY

RCAN = {
    "type": "RCAN", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 12, "num_group": 4, "num_block": 1,
    "squeeze_factor": 4, "upscale": 2, "img_range": 1.0,
}  # fmt: skip
SWINIR = {
    "type": "SwinIR", "upscale": 2, "img_size": 16, "window_size": 4, "embed_dim": 16, "depths": [2, 2],
    "num_heads": [2, 2], "upsampler": "pixelshuffledirect", "img_range": 1.0, "drop_path_rate": 0.0,
}  # fmt: skip
PAIRS = [(STUDENT, TEACHER), (STUDENT, RCAN), (RCAN, SWINIR), (SWINIR, TEACHER)]


def tapped(network: torch.nn.Module, paths, lq: torch.Tensor) -> list[np.ndarray]:
    with FeatureHooks(network, paths) as features, torch.no_grad():
        network(lq)
    return [features[path].numpy() for path in paths]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("positions", [1, 2])
def test_the_loss_is_the_equation(student, teacher, positions):
    method = FitNet(positions=positions)
    model = kd_model({"hint": method}, student=student, teacher=teacher, dtype=torch.float64)
    step = batch(size=10, dtype=torch.float64)  # no multiple of SwinIR's window
    own = tapped(model.network, method.student_taps, step.lq)
    other = tapped(model.teacher.network, method.teacher_taps, step.lq)
    by_hand = []
    for regressor, f_s, f_t in zip(method.regressors, own, other, strict=True):
        weight, bias = regressor.weight.detach().numpy()[:, :, 0, 0], regressor.bias.detach().numpy()
        squares = [
            (weight @ f_s[image, :, row, column] + bias - f_t[image, :, row, column]) ** 2
            for image in range(2)
            for row in range(10)
            for column in range(10)
        ]
        by_hand.append(np.mean(squares))
    assert len(by_hand) == positions
    assert model(step, 1).parts["l_fitnet"].item() == pytest.approx(np.mean(by_hand), rel=1e-10)


def test_hints_are_taken_inside_the_body():
    deep = {**STUDENT, "num_block": 8}
    for positions, expected in ((1, ("body.3",)), (3, ("body.1", "body.3", "body.5"))):
        method = FitNet(positions=positions)
        kd_model({"hint": method}, student=deep, teacher=RCAN)
        assert method.student_taps == expected
    assert method.teacher_taps == ("body.0", "body.1", "body.2")
    method = FitNet(student_taps=["conv_first"], teacher_taps=["conv_after_body"])
    kd_model({"hint": method})
    assert (method.student_taps, method.teacher_taps) == (("conv_first",), ("conv_after_body",))


def test_the_student_up_to_the_tap_and_the_regressor_learn_and_nothing_else():
    model = kd_model({"hint": FitNet()}, student=SWINIR)
    model(batch(size=10), 1).total.backward()
    learned = {name for name, value in trained(model).items() if value.grad is not None and value.grad.abs().sum() > 0}
    assert {"terms.hint.regressors.0.weight", "terms.hint.regressors.0.bias", "network.conv_first.weight"} <= learned
    assert not any(name.startswith(("network.layers.1", "network.upsample")) for name in learned)
    assert all(value.grad is None for value in model.teacher.network.parameters())


def test_a_regressor_of_equal_networks_learns_to_do_nothing():
    method = FitNet(student_taps=["body.1"], teacher_taps=["body.1"])
    model = kd_model({"hint": method}, teacher=STUDENT)
    model.teacher.network.load_state_dict(model.network.state_dict())
    step, optimizer = batch(size=8), torch.optim.Adam(method.parameters(), lr=0.05)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(step, 1).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_the_weight_is_applied_once_and_the_regressor_is_in_the_training_state_only():
    model = kd_model({"pix": Reconstruction("l_pix", {"type": "L1Loss"}), "hint": FitNet(loss_weight=0.25)})
    output = model(batch(), 1)
    by_hand = output.parts["l_pix"] + 0.25 * output.parts["l_fitnet"]
    assert output.total.item() == pytest.approx(by_hand.item(), rel=1e-6)
    assert set(model.terms["hint"].state_dict()) == {"regressors.0.weight", "regressors.0.bias"}
    assert not any("regressor" in name for name in model.network.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"postions": 2}, r"distillation method FitNet: postions: unknown key \(did you mean 'positions'\?\)"),
        ({"positions": 0}, "FitNet: positions: input should be greater than or equal to 1, got 0"),
        ({"loss_weight": "1"}, "distillation method FitNet: loss_weight: "),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(OptionsError, match=message):
        METHOD_REGISTRY.build({"type": "FitNet", **options})


def test_a_tap_that_is_not_there_is_named():
    with pytest.raises(OptionsError, match=r"EDSR has no module 'body\.7'"):
        kd_model({"hint": FitNet(student_taps=["body.7"])})
