"""Attention transfer against its equation in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, kd_model, trained

from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.distill.attention_transfer import AttentionTransfer, attention
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METHOD_REGISTRY

SWINIR = {
    "type": "SwinIR", "upscale": 2, "img_size": 16, "window_size": 4, "embed_dim": 16, "depths": [2, 2],
    "num_heads": [2, 2], "upsampler": "pixelshuffledirect", "img_range": 1.0, "drop_path_rate": 0.0,
}  # fmt: skip


def tapped(network: torch.nn.Module, paths, lq: torch.Tensor) -> list[np.ndarray]:
    with FeatureHooks(network, paths) as features, torch.no_grad():
        network(lq)
    return [features[path].numpy() for path in paths]


def attention_by_hand(features: np.ndarray) -> np.ndarray:
    """Of one image, (C, H, W)."""
    _, height, width = features.shape
    q = np.array([sum(c**2 for c in features[:, row, column]) for row in range(height) for column in range(width)])
    return q / np.sqrt(np.sum(q**2))


@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (SWINIR, TEACHER), (STUDENT, SWINIR)])
@pytest.mark.parametrize("positions", [1, 3])
def test_the_loss_is_the_equation(student, teacher, positions):
    method = AttentionTransfer(positions=positions)
    model = kd_model({"at": method}, student=student, teacher=teacher, dtype=torch.float64)
    step = batch(size=10, dtype=torch.float64)  # no multiple of SwinIR's window
    own = tapped(model.network, method.student_taps, step.lq)
    other = tapped(model.teacher.network, method.teacher_taps, step.lq)
    distances = [
        np.sum((attention_by_hand(f_s[image, :, :10, :10]) - attention_by_hand(f_t[image, :, :10, :10])) ** 2)
        for f_s, f_t in zip(own, other, strict=True)
        for image in range(2)
    ]
    assert len(distances) == 2 * positions
    assert model(step, 1).parts["l_at"].item() == pytest.approx(np.mean(distances), rel=1e-10)


def test_attention_ignores_the_size_of_the_features_and_their_order():
    features = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(attention(features), attention(-255 * features.flip(1)))
    assert attention(features).square().sum(1).numpy() == pytest.approx([1, 1], rel=1e-5)


def test_the_distance_of_maps_that_share_no_place_is_two():
    left, right = torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 4, 4)
    left[..., :2], right[..., 2:] = 7.0, -3.0
    assert (attention(left) - attention(right)).square().sum().item() == pytest.approx(2)


def test_features_of_zeros_give_no_gradient():
    features = torch.zeros(1, 3, 4, 4, requires_grad=True)
    attention(features).sum().backward()
    assert torch.equal(features.grad, torch.zeros(1, 3, 4, 4))


def test_the_student_learns_and_the_teacher_does_not():
    model = kd_model({"at": AttentionTransfer()}, student=SWINIR)
    model(batch(size=10), 1).total.backward()
    assert {"network.conv_first.weight", "network.layers.1.conv.weight"} <= {
        name for name, value in trained(model).items() if value.grad is not None and value.grad.abs().sum() > 0
    }
    assert all(value.grad is None for value in model.teacher.network.parameters())
    assert not list(model.terms["at"].parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"postions": 2}, r"AttentionTransfer: postions: unknown key \(did you mean 'positions'\?\)"),
        ({"positions": 0}, "AttentionTransfer: positions: input should be greater than or equal to 1, got 0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(OptionsError, match=message):
        METHOD_REGISTRY.build({"type": "AttentionTransfer", **options})
