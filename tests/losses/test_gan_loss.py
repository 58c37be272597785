from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from basicsr.losses import GANLoss, gradient_penalty_loss, r1_penalty
from basicsr.utils.errors import OptionsError

LOGITS = (-1.5, 0.25, 2.0)


def mean_over_logits(function) -> float:
    return sum(function(x) for x in LOGITS) / len(LOGITS)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def cross_entropy(x: float, label: float) -> float:
    return -label * math.log(sigmoid(x)) - (1 - label) * math.log(1 - sigmoid(x))


# (type, discriminator's loss for real, for fake, generator's loss) of one logit
BY_HAND = [
    ("vanilla", lambda x: cross_entropy(x, 0.9), lambda x: cross_entropy(x, 0.2), lambda x: cross_entropy(x, 0.9)),
    ("lsgan", lambda x: (x - 0.9) ** 2, lambda x: (x - 0.2) ** 2, lambda x: (x - 0.9) ** 2),
    ("wgan", lambda x: -x, lambda x: x, lambda x: -x),
    (
        "wgan_softplus",
        lambda x: math.log(1 + math.exp(-x)),
        lambda x: math.log(1 + math.exp(x)),
        lambda x: math.log(1 + math.exp(-x)),
    ),
    ("hinge", lambda x: max(0, 1 - x), lambda x: max(0, 1 + x), lambda x: -x),
]


@pytest.mark.parametrize(("gan_type", "real", "fake", "generator"), BY_HAND, ids=[row[0] for row in BY_HAND])
def test_each_type_by_hand(gan_type: str, real, fake, generator) -> None:
    loss = GANLoss(gan_type=gan_type, real_label_val=0.9, fake_label_val=0.2, loss_weight=0.3)
    logits = torch.tensor(LOGITS, dtype=torch.float64).view(1, 1, 1, 3)
    assert loss(logits, True, is_disc=True).item() == pytest.approx(mean_over_logits(real), rel=1e-14)
    assert loss(logits, False, is_disc=True).item() == pytest.approx(mean_over_logits(fake), rel=1e-14)
    assert loss(logits, True).item() == pytest.approx(0.3 * mean_over_logits(generator), rel=1e-14)


def test_vanilla_stays_finite_for_extreme_logits() -> None:
    logits = torch.tensor([-1e4, 1e4], dtype=torch.float32, requires_grad=True)
    loss = GANLoss(gan_type="vanilla")(logits, True)
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_logits_are_averaged_in_float32() -> None:
    logits = torch.ones(1000).bfloat16()
    logits[0] = 2
    assert GANLoss(gan_type="wgan")(logits, False).item() == pytest.approx(1.001, rel=1e-6)


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(OptionsError, match="gan_type: input should be 'vanilla', 'lsgan', 'wgan'"):
        GANLoss(gan_type="ragan")


def test_r1_penalty_by_hand() -> None:
    """D(x) = sum a x^2 / 2 has the gradient a x."""
    image = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 3.0]]]], dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty((factor * image.square() / 2).sum((1, 2, 3)), image)
    assert penalty.item() == (4 * 5 + 4 * 9) / 2
    penalty.backward()
    assert factor.grad is not None
    assert factor.grad.item() == 2 * 2 * (5 + 9) / 2


def test_gradient_penalty_of_a_linear_discriminator_by_hand() -> None:
    """D(x) = sum_c a_c x_c has everywhere the gradient a = (3, 4), of norm 5."""
    weights = torch.tensor([3.0, 4.0], dtype=torch.float64).view(1, 2, 1, 1)
    real, fake = torch.rand(2, 2, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def discriminator(image: torch.Tensor) -> torch.Tensor:
        return (weights * image).sum((1, 2, 3))

    assert gradient_penalty_loss(discriminator, real, fake).item() == pytest.approx((5 - 1) ** 2, rel=1e-14)
    halved = gradient_penalty_loss(discriminator, real, fake, weight=torch.full_like(real, 0.5))
    assert halved.item() == pytest.approx((2.5 - 1) ** 2 / 0.5, rel=1e-14)


def test_gradient_penalty_draws_from_the_given_generator_alone() -> None:
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 1, 3)).double()
    real, fake = torch.rand(2, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    values = [
        gradient_penalty_loss(discriminator, real, fake, generator=torch.Generator().manual_seed(seed)).item()
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_attributes_are_those_that_code_for_basicsr_reads() -> None:
    loss = GANLoss(gan_type="lsgan", real_label_val=0.9, fake_label_val=0.2, loss_weight=0.1)
    assert (loss.gan_type, loss.real_label_val, loss.fake_label_val, loss.loss_weight) == ("lsgan", 0.9, 0.2, 0.1)
