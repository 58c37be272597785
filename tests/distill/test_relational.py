"""RKD against its equations, image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, kd_model, trained

from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.distill.relational import RKD, cosines, mean_huber, relative_distances
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METHOD_REGISTRY

SWINIR = {
    "type": "SwinIR", "upscale": 2, "img_size": 16, "window_size": 4, "embed_dim": 16, "depths": [2, 2],
    "num_heads": [2, 2], "upsampler": "pixelshuffledirect", "img_range": 1.0, "drop_path_rate": 0.0,
}  # fmt: skip


def embeddings_of(network: torch.nn.Module, path: str, step) -> np.ndarray:
    with FeatureHooks(network, [path]) as features, torch.no_grad():
        network(step.lq)
    height, width = step.lq.shape[-2:]
    return features[path][..., :height, :width].numpy().mean((2, 3))


def huber(difference: float) -> float:
    return 0.5 * difference**2 if abs(difference) <= 1 else abs(difference) - 0.5


def distances_by_hand(t: np.ndarray) -> dict[tuple[int, int], float]:
    lengths = {
        (i, j): math.sqrt(sum((a - b) ** 2 for a, b in zip(t[i], t[j], strict=True)))
        for i in range(len(t))
        for j in range(len(t))
        if i != j
    }
    mean = sum(lengths.values()) / len(lengths)
    return {pair: length / mean for pair, length in lengths.items()}


def angles_by_hand(t: np.ndarray) -> dict[tuple[int, int, int], float]:
    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / math.sqrt(float(vector @ vector))

    count = range(len(t))
    return {
        (i, j, k): float(unit(t[i] - t[j]) @ unit(t[k] - t[j]))
        for i in count
        for j in count
        for k in count
        if len({i, j, k}) == 3
    }


@pytest.mark.parametrize(("student", "teacher"), [(STUDENT, TEACHER), (SWINIR, TEACHER), (STUDENT, SWINIR)])
def test_the_losses_are_the_equations(student, teacher):
    method = RKD()
    model = kd_model({"rkd": method}, student=student, teacher=teacher, dtype=torch.float64)
    step = batch(count=5, size=10, dtype=torch.float64)
    s = embeddings_of(model.network, method.student_taps[0], step)
    t = embeddings_of(model.teacher.network, method.teacher_taps[0], step)
    output = model(step, 1)
    expected = {}
    for name, relation in (("l_rkd_distance", distances_by_hand), ("l_rkd_angle", angles_by_hand)):
        own, other = relation(s), relation(t)
        expected[name] = np.mean([huber(own[key] - other[key]) for key in own])
        assert output.parts[name].item() == pytest.approx(expected[name], rel=1e-8)
    total = 25 * expected["l_rkd_distance"] + 50 * expected["l_rkd_angle"]
    assert output.total.item() == pytest.approx(total, rel=1e-8)


def test_the_embedding_is_of_the_end_of_the_body():
    method = RKD()
    kd_model({"rkd": method}, teacher=SWINIR)
    assert (method.student_taps, method.teacher_taps) == (("body.1",), ("layers.1",))


def test_beyond_one_the_loss_grows_linearly():
    values = torch.tensor([0.5, -3.0], dtype=torch.float64)
    assert mean_huber(values, torch.zeros(2, dtype=torch.float64)).item() == pytest.approx((0.125 + 2.5) / 2)


def test_relations_do_not_see_shift_scale_and_rotation():
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=generator))[0]
    moved = 255 * t @ rotation + 3
    assert torch.allclose(relative_distances(t), relative_distances(moved))
    assert torch.allclose(cosines(t), cosines(moved))
    assert relative_distances(t).mean().item() == pytest.approx(1)
    assert len(cosines(t)) == 6 * 5 * 4


@pytest.mark.parametrize("count", [1, 2])
def test_too_small_a_batch_is_refused(count):
    with pytest.raises(OptionsError, match=f"three or more, and there are {count} over all processes; raise batch_si"):
        kd_model({"rkd": RKD()})(batch(count=count), 1)


@pytest.mark.parametrize("apart", [0.0, 1e-30, 1e-7])
def test_equal_and_nearly_equal_images_give_finite_gradients(apart):
    t = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    t[1] = t[0] + apart
    s = t.clone().requires_grad_()
    other = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    mean_huber(relative_distances(s), relative_distances(other)).backward()
    mean_huber(cosines(s), cosines(other)).backward()
    assert torch.isfinite(s.grad).all() and 0 < s.grad.abs().max() < 10


def test_a_batch_of_equal_images_gives_no_loss_and_no_gradient():
    s = torch.ones(4, 3, requires_grad=True)
    loss = mean_huber(relative_distances(s), relative_distances(s.detach())) + cosines(s).sum()
    loss.backward()
    assert loss.item() == 0 and torch.equal(s.grad, torch.zeros(4, 3))


def test_the_student_learns_and_the_teacher_does_not():
    model = kd_model({"rkd": RKD()}, student=SWINIR)
    model(batch(count=3, size=10), 1).total.backward()
    assert {"network.conv_first.weight", "network.layers.1.conv.weight"} <= {
        name for name, value in trained(model).items() if value.grad is not None and value.grad.abs().sum() > 0
    }
    assert all(value.grad is None for value in model.teacher.network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_weight": 25}, "RKD: loss_weight: unknown key"),
        ({"angle_wieght": 2}, r"RKD: angle_wieght: unknown key \(did you mean 'angle_weight'\?\)"),
        ({"positions": 0}, "RKD: positions: input should be greater than or equal to 1, got 0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(OptionsError, match=message):
        METHOD_REGISTRY.build({"type": "RKD", **options})
