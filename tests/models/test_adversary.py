"""The adversarial game: equations 5 and 6 by hand, and who receives gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from basicsr.losses import build_loss
from basicsr.models.adversary import Adversary
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
    assert game.guidance(fake).item() == pytest.approx(expected, rel=1e-5)


def adversary(gan_type: str = "vanilla", **options) -> Adversary:
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Conv2d(4, 1, 3))
    made = Adversary(
        discriminator, build_loss({"type": "GANLoss", "gan_type": gan_type}), 0.01, Precision("cpu"), **options
    )
    made.optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    return made


def log_sigmoid(logits: torch.Tensor) -> list[float]:
    return [-math.log1p(math.exp(-value)) for value in logits.flatten().tolist()]


def test_both_losses_are_equations_5_and_6():
    game, real, fake = adversary(), torch.rand(2, 3, 9, 9), torch.rand(2, 3, 9, 9)
    on_real, on_fake = game.discriminator(real), game.discriminator(fake)
    l_adv = -sum(log_sigmoid(on_fake)) / on_fake.numel()
    l_d = -sum(log_sigmoid(on_real)) / on_real.numel() - sum(log_sigmoid(-on_fake)) / on_fake.numel()
    assert float(game.guidance(fake)) == pytest.approx(l_adv, abs=1e-6)
    parts = game.backward([(real, fake)])
    assert float(parts["l_d_real"] + parts["l_d_fake"]) == pytest.approx(l_d, abs=1e-6)


def test_guidance_moves_the_student_only_and_the_step_the_discriminator_only():
    game = adversary()
    sr = torch.rand(2, 3, 9, 9, requires_grad=True)
    game.guidance(sr).backward()
    assert sr.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in game.discriminator.parameters())
    before = [parameter.clone() for parameter in game.discriminator.parameters()]
    sr.grad = None
    game.backward([(torch.rand(2, 3, 9, 9), sr.detach())])
    game.step()
    assert sr.grad is None
    assert all(not torch.equal(a, b) for a, b in zip(before, game.discriminator.parameters(), strict=True))


def test_an_adversary_that_is_not_trained_stays_as_it_is_and_still_guides():
    game = adversary(train=False)
    before = [parameter.clone() for parameter in game.discriminator.parameters()]
    sr = torch.rand(2, 3, 9, 9, requires_grad=True)
    game.guidance(sr).backward()
    assert game.backward([(sr.detach(), sr.detach())]) == {}
    game.step()
    assert sr.grad.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, game.discriminator.parameters(), strict=True))


def test_two_halves_accumulate_to_the_whole_batch():
    whole, halves = adversary(), adversary()
    real, fake = torch.rand(4, 3, 9, 9), torch.rand(4, 3, 9, 9)
    one = whole.backward([(real, fake)])
    two = halves.backward([(real[:2], fake[:2]), (real[2:], fake[2:])])
    for a, b in zip(whole.discriminator.parameters(), halves.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
    assert float(one["l_d_real"]) == pytest.approx(float(two["l_d_real"]), abs=1e-6)
