"""What holds for every registered method at its defaults; a new file in basicsr/distill joins by itself.

A method whose constructor requires a parameter, or whose default needs a file, has an entry in `ARGUMENTS`.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, kd_model, trained

from basicsr.data.batch import Batch
from basicsr.distill.base import LossTerm, Reconstruction
from basicsr.losses.basic_loss import batch_scope_of
from basicsr.models.kd_model import KDModel
from basicsr.utils.registry import METHOD_REGISTRY, declared

# A teacher that is trained but detached would make the gradient other than the slope.
# Narrow heads and small crops compute the same functions in a tenth of the time.
ARGUMENTS: dict[str, Any] = {
    "vgg_weights": "random",
    "vqgan_weights": "random",
    "detach_teacher": False,
    "embed_dim": 32,
    "patch_size": 12,
}
METHODS = METHOD_REGISTRY.names()
# Methods without a way that a step may or may not take: a few steps show all.
OF_ONE_WAY = ("HybridContrastive", "CSD", "SharedCSD", "DCKD")
# Methods that cut their student out of the teacher want networks of one depth.
OF_ONE_DEPTH = {**TEACHER, "num_block": STUDENT["num_block"]}


def images(**options: Any) -> Batch:
    """Four pairs, as some methods compare three or more, small, yet large enough for every method."""
    return batch(4, 20, **options)


def build(name: str, teacher: dict[str, Any] = OF_ONE_DEPTH, **options: Any) -> KDModel:
    torch.manual_seed(0)
    # A feature's loss alone does not reach the layers after it.
    terms = {"pixel": Reconstruction("l_pix", {"type": "L1Loss"}), "method": method(name)}
    return kd_model(terms, teacher=teacher, **options)


def method(name: str) -> LossTerm:
    parameters = inspect.signature(METHOD_REGISTRY.get(name)).parameters
    return METHOD_REGISTRY.build(
        {"type": name, **{key: value for key, value in ARGUMENTS.items() if key in parameters}}
    )


@pytest.mark.parametrize("name", METHODS)
def test_parts_are_finite_scalars_each_with_a_weight(name):
    model = build(name)
    output = model(images(), 1)
    weights = {"l_pix": 1.0, **model.terms["method"].weights}
    assert len(output.parts) > 1
    for part, value in output.parts.items():
        assert part.startswith("l_") and part in weights
        assert value.dim() == 0 and torch.isfinite(value), part
    weighted = sum(weights[part] * value for part, value in output.parts.items())
    assert output.total.item() == pytest.approx(weighted.item(), rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_student_and_every_head_and_not_the_teacher(name):
    model = build(name)
    teacher = model.teacher.network if model.teacher is not None else None
    before = copy.deepcopy(teacher.state_dict()) if teacher is not None else {}
    reached: set[str] = set()
    for iteration in range(1, 3 if name in OF_ONE_WAY else 17):  # others draw at random which way a step takes
        model.zero_grad(set_to_none=True)
        model(images(), iteration).total.backward()
        for label, parameter in trained(model).items():
            assert parameter.grad is not None, f"{label}: without a gradient, ranks cannot average"
            reached |= {label} if parameter.grad.abs().sum() > 0 else set()
    assert reached == set(trained(model))
    if teacher is not None:
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
        assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_method_alone_moves_the_students_first_layer(name):
    torch.manual_seed(0)
    model = kd_model({"method": method(name)}, teacher=OF_ONE_DEPTH)
    with torch.no_grad():  # some methods hold the student near to what it was at first
        for weight in model.network.parameters():
            weight += 0.01 * torch.randn(weight.shape)
    model(images(), 1).total.backward()
    own = model.network.conv_first
    moved = own if own.weight.requires_grad else model.terms["method"].wide.conv_first
    assert moved.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_is_the_slope(name):
    model = build(name, dtype=torch.float64)
    step = images(dtype=torch.float64)
    parameters = list(trained(model).values())
    model(step, 1).total.backward()
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))

    def at(distance: float) -> torch.Tensor:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, direction in zip(trained(moved).values(), directions, strict=True):
                parameter += distance * direction
            return moved(step, 1).total

    # Absolute values and mined negatives have kinks; over so short a way few are crossed. In a random direction the
    # slope is about as large as the gradient, against which a difference is held.
    steepest = sum(p.grad.square().sum() for p in parameters).sqrt().item()
    assert ((at(1e-8) - at(-1e-8)) / 2e-8).item() == pytest.approx(slope.item(), abs=1e-3 * steepest)


@pytest.mark.parametrize("name", [name for name in METHODS if batch_scope_of(METHOD_REGISTRY.get(name), {}) == "image"])
def test_a_method_that_declares_to_compare_no_images_gives_the_mean_of_its_parts_over_a_divided_batch(name):
    model = build(name, dtype=torch.float64)
    whole = images(dtype=torch.float64)
    halves = [replace(whole, **{key: cut(value, i) for key, value in vars(whole).items()}) for i in (0, 2)]
    parts = [model(half, 1).parts for half in halves]
    for part, value in model(whole, 1).parts.items():
        assert value.item() == pytest.approx((parts[0][part] + parts[1][part]).item() / 2, rel=1e-9), part


@pytest.mark.parametrize("name", METHODS)
def test_without_hr_images_a_method_gives_the_same_or_is_left_out_with_gradients_of_zero(name):
    model = build(name)
    term = model.terms["method"]
    term.gt_needs = declared(term, "gt_needs", {}, "")
    pairs = images()
    parts = {part: value for part, value in model(pairs, 1).parts.items() if part != "l_pix"}
    output = model(replace(pairs, gt=None), 1)
    assert output.parts.keys() == ({} if term.gt_needs else parts).keys()
    assert all(torch.equal(value, parts[part]) for part, value in output.parts.items())
    output.total.backward()
    assert all(parameter.grad is not None for parameter in trained(model).values()), "ranks cannot average"


def cut(value: Any, start: int) -> Any:
    """Two entries of what has one for each image."""
    return value[start : start + 2] if isinstance(value, (torch.Tensor, list, tuple)) else value


@pytest.mark.parametrize("name", METHODS)
def test_equal_steps_give_equal_losses(name):
    first, second = (build(name)(images(), 3).total for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", METHODS)
def test_half_of_the_precision_gives_nearly_the_same_losses(name):
    full, half = build(name)(images(), 1), build(name, amp="bf16")(images(), 1)
    # bf16 keeps 8 bits, 0.4 % in each product; methods divide small distances by each other and by temperatures.
    for part, value in full.parts.items():
        assert half.parts[part].item() == pytest.approx(value.item(), rel=0.05, abs=1e-3), part
    assert half.total.dtype == torch.float32


@pytest.mark.parametrize("name", METHODS)
def test_the_state_after_some_steps_comes_back(name):
    model = build(name)
    optimizer = torch.optim.Adam(trained(model).values(), lr=1e-3)
    for iteration in (1, 2):
        optimizer.zero_grad()
        model(images(), iteration).total.backward()
        optimizer.step()
        model.after_update(iteration)
    other = build(name)
    other.network.load_state_dict(model.network.state_dict())
    other.terms.load_state_dict(model.terms.state_dict())
    assert torch.equal(model(images(), 3).total, other(images(), 3).total)


@pytest.mark.parametrize("name", METHODS)
def test_the_student_alone_gives_what_the_model_gave(name):
    model = build(name)
    model.after_update(1)
    alone = copy.deepcopy(model.network)
    assert set(alone.state_dict()) == set(build(name).network.state_dict())
    assert not alone._forward_hooks and not alone._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(alone(images().lq), model.run_network(images().lq))
