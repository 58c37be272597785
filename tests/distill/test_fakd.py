"""FAKD's affinities against their equation in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, kd_model, trained

from basicsr.archs.feature_hooks import FeatureHooks
from basicsr.distill import fakd
from basicsr.distill.fakd import FAKD, affinity_distance
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


def tapped(network: torch.nn.Module, paths, lq: torch.Tensor) -> list[np.ndarray]:
    with FeatureHooks(network, paths) as features, torch.no_grad():
        network(lq)
    return [features[path][..., : lq.shape[2], : lq.shape[3]].numpy() for path in paths]


def affinity_by_hand(features: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of places of one image (C, H, W)."""
    places = [features[:, row, column] for row in range(features.shape[1]) for column in range(features.shape[2])]
    units = [place / np.sqrt(np.sum(place**2)) for place in places]
    return np.array([[np.sum(a * b) for a in units] for b in units])


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plainly(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The equation in plain PyTorch, with whole matrices."""
    s, t = ((f / f.square().sum(1, keepdim=True).sqrt()).flatten(2) for f in (student, teacher))
    return (s.mT @ s - t.mT @ t).abs().mean()


@pytest.mark.parametrize(
    ("student", "teacher"), [(STUDENT, TEACHER), (RCAN, STUDENT), (SWINIR, TEACHER), (STUDENT, SWINIR)]
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_the_equation(student, teacher, reduction):
    method = FAKD(reduction=reduction)
    model = kd_model({"fakd": method}, student=student, teacher=teacher, dtype=torch.float64)
    step = batch(size=6, dtype=torch.float64)  # no multiple of SwinIR's window
    own = tapped(model.network, method.student_taps, step.lq)
    other = tapped(model.teacher.network, method.teacher_taps, step.lq)
    losses = [
        np.mean([np.abs(affinity_by_hand(f_s[b]) - affinity_by_hand(f_t[b])) for b in range(2)])
        for f_s, f_t in zip(own, other, strict=True)
    ]
    assert len(losses) == 3
    expected = np.mean(losses) if reduction == "mean" else np.sum(losses)
    output = model(step, 1)
    assert output.parts["l_fakd"].item() == pytest.approx(expected, rel=1e-10)
    assert output.total.item() == pytest.approx(10 * expected, rel=1e-10)


@pytest.mark.parametrize("entries", [1, 2 * 30**2, 2**24])
def test_value_and_gradient_are_those_of_whole_matrices_however_many_images_at_once(entries, monkeypatch):
    monkeypatch.setattr(fakd, "_ENTRIES_AT_ONCE", entries)
    student, teacher = random(5, 4, 5, 6).requires_grad_(), random(5, 7, 5, 6, seed=1)
    loss, plain = affinity_distance(student, teacher), plainly(student, teacher)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    (gradient,), (expected,) = (torch.autograd.grad(3 * value, student) for value in (loss, plain))
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-15)


def test_float32_keeps_its_digits_over_the_many_entries_of_a_training_patch():
    student, teacher = random(2, 16, 48, 48, dtype=torch.float32), random(2, 24, 48, 48, dtype=torch.float32, seed=1)
    exact = plainly(student.double(), teacher.double()).item()
    assert affinity_distance(student, teacher).item() == pytest.approx(exact, rel=1e-5)


def test_no_matrix_is_kept_for_the_backward_pass():
    kept: list[int] = []
    student, teacher = random(3, 4, 16, 16).requires_grad_(), random(3, 4, 16, 16, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        affinity_distance(student, teacher).backward()
    assert kept and max(kept) == student.numel() < 3 * 256**2


def test_places_without_features_resemble_nothing_and_give_no_gradient():
    student, teacher = random(1, 3, 2, 2), random(1, 3, 2, 2, seed=1)
    student[..., 0, 0] = 0
    student.requires_grad_()
    loss = affinity_distance(student, teacher)
    units = [place / max(np.sqrt(np.sum(place**2)), 1e-300) for place in student.detach()[0].flatten(1).T.numpy()]
    resemblance = np.array([[np.sum(a * b) for a in units] for b in units])
    assert not resemblance[0].any()
    by_hand = np.abs(resemblance - affinity_by_hand(teacher[0].numpy())).mean()
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    loss.backward()
    assert not student.grad[..., 0, 0].any() and student.grad[..., 0, 1].any() and torch.isfinite(student.grad).all()


def test_equal_features_of_any_size_and_sign_are_no_distance_apart():
    features = random(2, 4, 5, 5)
    assert affinity_distance(-255 * features, features).item() == pytest.approx(0, abs=1e-15)


def test_the_student_learns_by_the_features_and_the_teacher_does_not():
    model = kd_model({"fakd": FAKD()}, student=SWINIR)
    step, optimizer = batch(size=10), torch.optim.Adam(trained(model).values(), lr=1e-3)
    losses = []
    for iteration in range(1, 21):
        optimizer.zero_grad()
        loss = model(step, iteration).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(value.grad is None for value in model.teacher.network.parameters())
    assert not list(model.terms["fakd"].parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positons": 4}, r"FAKD: positons: unknown key \(did you mean 'positions'\?\)"),
        ({"positions": 0}, "FAKD: positions: input should be greater than or equal to 1, got 0"),
        ({"reduction": "none"}, "FAKD: reduction: .*'mean' or 'sum'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(OptionsError, match=message):
        METHOD_REGISTRY.build({"type": "FAKD", **options})
