"""The adversarial game: equations 5 and 6 by hand, and who receives gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from basicsr.losses import build_loss
from basicsr.models.kd_model import Adversary
from basicsr.utils.precision import Precision

GUIDANCE = {  # the generator's loss of each kind on logits x, per pixel
    "vanilla": lambda x: -math.log(1 / (1 + math.exp(-x))),
    "lsgan": lambda x: (x - 1) ** 2,
    "wgan": lambda x: -x,
    "wgan_softplus": lambda x: math.log(1 + math.exp(-x)),
    "hinge": lambda x: -x,
}


@pytest.mark.parametrize("gan_type", GUIDANCE)
def test_guidance_is_the_generators_loss_of_each_kind(gan_type):
    game, fake = adversary(gan_type=gan_type), torch.rand(2, 3, 9, 9)
    with torch.no_grad():
        game.discriminator[2].bias += 3  # far from 0, where kinds of loss differ most
    logits = game.discriminator(fake).flatten().tolist()
    expected = sum(map(GUIDANCE[gan_type], logits)) / len(logits)
    assert guidance(game, fake)[0] == pytest.approx(expected, rel=1e-5)


def adversary(gan_type: str = "vanilla", **options) -> Adversary:
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))
    made = Adversary(
        discriminator, build_loss({"type": "GANLoss", "gan_type": gan_type}), 0.01, Precision("cpu"), **options
    )
    made.optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    return made


def guidance(game: Adversary, sr: torch.Tensor) -> tuple[float, torch.Tensor | None]:
    """L_adv and its gradient in I_S, unweighted."""
    parts, gradient = game.play(torch.rand_like(sr), sr, guided=lambda loss: loss / game.weight)
    return float(parts["l_adv"]), gradient


def log_sigmoid(logits: torch.Tensor) -> list[float]:
    return [-math.log1p(math.exp(-value)) for value in logits.flatten().tolist()]


def test_both_losses_are_equations_5_and_6():
    game, real, fake = adversary(), torch.rand(2, 3, 9, 9), torch.rand(2, 3, 9, 9)
    on_real, on_fake = game.discriminator(real), game.discriminator(fake)
    l_adv = -sum(log_sigmoid(on_fake)) / on_fake.numel()
    l_d = -sum(log_sigmoid(on_real)) / on_real.numel() - sum(log_sigmoid(-on_fake)) / on_fake.numel()
    parts, _ = game.play(real, fake, guided=lambda loss: loss)
    assert float(parts["l_adv"]) == pytest.approx(l_adv, abs=1e-6)
    assert float(parts["l_d_real"] + parts["l_d_fake"]) == pytest.approx(l_d, abs=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_gradients_are_those_of_two_passes_each_for_one_loss(train):
    game, real, sr = adversary(train=train), torch.rand(2, 3, 9, 9), torch.rand(2, 3, 9, 9, requires_grad=True)
    log_sigmoid = torch.nn.functional.logsigmoid
    (expected,) = torch.autograd.grad(-log_sigmoid(game.discriminator(sr)).mean() * 0.01 * 8, sr)
    parts, gradient = game.play(real, sr, guided=lambda loss: loss * 8, share=0.5)
    torch.testing.assert_close(gradient, expected)
    assert sr.grad is None
    if not train:
        assert set(parts) == {"l_adv"}
        return
    found = [parameter.grad for parameter in game.discriminator.parameters()]
    loss = -log_sigmoid(game.discriminator(real)).mean() - log_sigmoid(-game.discriminator(sr.detach())).mean()
    for one, other in zip(found, torch.autograd.grad(loss / 2, game.discriminator.parameters()), strict=True):
        torch.testing.assert_close(one, other)


def test_the_students_step_does_not_touch_the_discriminator_before_its_own():
    game = adversary()
    before = [parameter.clone() for parameter in game.discriminator.parameters()]
    game.begin()
    game.play(torch.rand(2, 3, 9, 9), torch.rand(2, 3, 9, 9), guided=None)
    assert all(torch.equal(a, b) for a, b in zip(before, game.discriminator.parameters(), strict=True))
    game.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, game.discriminator.parameters(), strict=True))


def test_an_adversary_that_is_not_trained_stays_as_it_is_and_still_guides():
    game = adversary(train=False)
    before = [parameter.clone() for parameter in game.discriminator.parameters()]
    _, gradient = guidance(game, torch.rand(2, 3, 9, 9))
    game.step()
    assert gradient.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, game.discriminator.parameters(), strict=True))
    assert game.play(torch.rand(2, 3, 9, 9), torch.rand(2, 3, 9, 9), guided=None) == ({}, None)


def test_two_halves_accumulate_to_the_whole_batch():
    whole, halves = adversary(), adversary()
    real, fake = torch.rand(4, 3, 9, 9), torch.rand(4, 3, 9, 9)
    one, _ = whole.play(real, fake, guided=None)
    two, _ = halves.play(real[:2], fake[:2], guided=None, share=0.5, last=False)
    three, _ = halves.play(real[2:], fake[2:], guided=None, share=0.5)
    for a, b in zip(whole.discriminator.parameters(), halves.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
    assert float(one["l_d_real"]) == pytest.approx(float(two["l_d_real"] + three["l_d_real"]) / 2, abs=1e-6)
