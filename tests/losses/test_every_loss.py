"""What every registered loss must do. A new file in basicsr/losses is covered without an edit, if its options have
defaults; values for those without are given in `OPTIONS`, by the parameter's name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from basicsr.losses import build_loss
from basicsr.losses.basic_loss import batch_scope_of
from basicsr.utils.registry import LOSS_REGISTRY

OPTIONS: dict[str, Any] = {"layer_weights": {"relu1_1": 1.0, "conv2_1": 0.5}, "vgg_weights": "random"}


def cases() -> list[dict[str, Any]]:
    """Options for each loss; one case for each allowed value of a required choice."""
    found = []
    for name, factory in LOSS_REGISTRY:
        given: dict[str, Any] = {"type": name}
        choices: tuple[str, tuple[Any, ...]] | None = None
        hints = typing.get_type_hints(factory.__init__)  # type: ignore[misc]
        for key, parameter in inspect.signature(factory).parameters.items():
            if key in OPTIONS:
                given[key] = OPTIONS[key]
            elif parameter.default is inspect.Parameter.empty and typing.get_args(hints.get(key)):
                choices = (key, typing.get_args(hints[key]))
        found += [{**given, choices[0]: value} for value in choices[1]] if choices else [given]
    return found


def case_name(options: dict[str, Any]) -> str:
    return "-".join(value for value in options.values() if isinstance(value, str))


CASES = cases()
BY_IMAGE = [
    options
    for case in CASES
    for options in (case, *({**case, "criterion": kind} for kind in ("l2", "fro") if case["type"] == "PerceptualLoss"))
    if batch_scope_of(LOSS_REGISTRY.get(options["type"]), options) == "image"
]
every_loss = pytest.mark.parametrize("options", CASES, ids=case_name)


def example(size: int = 6, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    pair = torch.rand(2, 2, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return pair[0].to(dtype).requires_grad_(), pair[1].to(dtype)


def evaluate(loss: nn.Module, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss of `pred`, whichever of BasicSR's ways it is called in; the sum of its parts."""
    required = [
        key for key, p in inspect.signature(loss.forward).parameters.items() if p.default is inspect.Parameter.empty
    ]
    if "target_is_real" in required:
        value = loss(pred, True)
    else:
        value = loss(pred, target) if len(required) > 1 else loss(pred)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        value = torch.stack([part for part in value if part is not None]).sum()
    return value


@every_loss
def test_it_is_a_finite_number_with_a_gradient_for_the_prediction(options: dict[str, Any]) -> None:
    pred, target = example(dtype=torch.float32)
    target.requires_grad_()
    value = evaluate(build_loss(options), pred, target)
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert value.isfinite()
    value.backward()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()
    assert pred.grad.abs().sum() > 0


@pytest.mark.parametrize("options", BY_IMAGE, ids=case_name)
def test_a_loss_that_declares_to_compare_no_images_is_the_mean_over_them(options: dict[str, Any]) -> None:
    loss = build_loss(options).double()
    pred, target = example()
    alone = [evaluate(loss, pred[i : i + 1], target[i : i + 1]).item() for i in range(len(pred))]
    assert evaluate(loss, pred, target).item() == pytest.approx(sum(alone) / len(alone), rel=1e-12)


@every_loss
def test_its_gradient_is_the_derivative(options: dict[str, Any]) -> None:
    loss = build_loss(options).double()
    pred, target = example(size=4)
    assert torch.autograd.gradcheck(lambda x: evaluate(loss, x, target), (pred,), atol=1e-6)


@every_loss
def test_it_changes_neither_its_inputs_nor_the_global_generator(options: dict[str, Any]) -> None:
    pred, target = example()
    before = pred.detach().clone(), target.clone()
    state = torch.get_rng_state()
    loss = build_loss(options).double()
    values = [evaluate(loss, pred, target).item() for _ in range(2)]
    assert torch.equal(pred, before[0])
    assert torch.equal(target, before[1])
    assert values[0] == values[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [case for case in CASES if "layer_weights" not in case], ids=case_name)
def test_it_is_as_precise_from_half_precision_images_as_from_float32(options: dict[str, Any]) -> None:
    """Autocast may hand over bfloat16; the loss of the rounded images must not be rounded again. (A perceptual loss
    runs its network in the caller's precision.)"""
    pred, target = (image.detach().bfloat16() for image in example(size=12))
    loss = build_loss(options)
    short = evaluate(loss, pred, target)
    assert short.dtype == torch.float32
    assert short.item() == pytest.approx(evaluate(loss, pred.float(), target.float()).item(), rel=1e-6)


@every_loss
def test_its_weight_is_a_factor(options: dict[str, Any]) -> None:
    parameters = inspect.signature(LOSS_REGISTRY.get(options["type"])).parameters
    keys = [key for key in ("loss_weight", "perceptual_weight") if key in parameters]
    assert keys, "a loss takes its weight"
    pred, target = example()
    once, threefold = (build_loss({**options, keys[0]: weight}).double() for weight in (1.0, 3.0))
    expected = 3 * evaluate(once, pred, target).item()
    assert evaluate(threefold, pred, target).item() == pytest.approx(expected, rel=1e-12)


@every_loss
def test_its_constructor_takes_keywords_only(options: dict[str, Any]) -> None:
    kinds = {p.kind for p in inspect.signature(LOSS_REGISTRY.get(options["type"])).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY}


def test_all_the_losses_of_the_house_are_covered() -> None:
    expected = {"L1Loss", "MSELoss", "CharbonnierLoss", "WeightedTVLoss", "PerceptualLoss", "GANLoss"}
    assert expected <= {case["type"] for case in CASES}


def test_a_loss_written_for_basicsr_works_dropped_in() -> None:
    from basicsr.losses.basic_loss import weighted_loss

    @weighted_loss
    def squared_log(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (pred + 1).log().sub((target + 1).log()) ** 2

    class SquaredLogLoss(nn.Module):
        def __init__(self, loss_weight=1.0, reduction="mean"):
            super().__init__()
            self.loss_weight, self.reduction = loss_weight, reduction

        def forward(self, pred, target, weight=None, **kwargs):
            return self.loss_weight * squared_log(pred, target, weight, reduction=self.reduction)

    LOSS_REGISTRY.register()(SquaredLogLoss)
    try:
        loss: Callable[..., torch.Tensor] = build_loss({"type": "SquaredLogLoss", "loss_weight": 2.0})
        value = loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
        assert value.item() == pytest.approx(2 * 0.6931472**2, rel=1e-6)
    finally:
        del LOSS_REGISTRY._members["SquaredLogLoss"]
