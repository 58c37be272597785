"""What holds for every registered method at its defaults; a new file in basicsr/distill joins by itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.distillation import context

from basicsr.distill.base import Term
from basicsr.utils.registry import METHOD_REGISTRY

METHODS = METHOD_REGISTRY.names()


def build(name: str) -> Term:
    torch.manual_seed(0)
    return METHOD_REGISTRY.build({"type": name})


def weighted(method: Term, step) -> torch.Tensor:
    return sum(method.weights[name] * part for name, part in method(step).items())


@pytest.mark.parametrize("name", METHODS)
def test_parts_are_finite_scalars_each_with_a_weight(name):
    method = build(name)
    parts = method(context(size=56))
    assert parts
    for part, value in parts.items():
        assert part.startswith("l_") and part in method.weights
        assert value.dim() == 0 and torch.isfinite(value), part


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_student_and_every_parameter_and_not_the_teacher(name):
    method, step = build(name), context(size=56)
    weighted(method, step).backward()
    student = [step.sr, *step.student_features.values()]
    assert any(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in student)
    for label, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, label
    assert step.sr_teacher.grad is None


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_the_slope(name):
    method, step = build(name).double(), context(size=56, dtype=torch.float64)
    method(step)  # features come into being when they are first asked for
    leaves = [step.sr, *step.student_features.values()]
    gradients = torch.autograd.grad(weighted(method, step), leaves, allow_unused=True)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)

    def at(distance: float) -> torch.Tensor:
        moved = [(leaf + distance * d).detach() for leaf, d in zip(leaves, directions, strict=True)]
        features = dict(zip(step.student_features, moved[1:], strict=True))
        with torch.no_grad():
            return weighted(method, dataclasses.replace(step, sr=moved[0], student_features=features))

    # Absolute values and mined negatives have kinks; over so short a way few are crossed.
    assert ((at(1e-7) - at(-1e-7)) / 2e-7).item() == pytest.approx(slope.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_equal_steps_give_equal_losses(name):
    first, second = (weighted(build(name), context(size=56)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", METHODS)
def test_the_state_comes_back(name):
    method, other = build(name), METHOD_REGISTRY.build({"type": name})
    other.load_state_dict(method.state_dict())
    assert torch.equal(weighted(method, context(size=56)), weighted(other, context(size=56)))
