"""Summed distances: their values by hand, their gradient against plain autograd, and what they keep."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from basicsr.distill.features import summed_distances

SHAPES = ((4, 6, 5), (7, 3, 2))


def layers(count: int | None, seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Features of `count` images at two layers; of one, without a dimension for it, where None."""
    generator = torch.Generator().manual_seed(seed)
    images = () if count is None else (count,)
    return [torch.randn(*images, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("count", [3, None])
def test_values_are_sums_of_mean_absolute_differences(count):
    features, others = layers(3, 0), [layers(count, seed) for seed in (1, 2, 3, 4)]
    for number, found in enumerate(summed_distances(features, others)):
        assert found.shape == (3,)
        for image in range(3):
            compared = [other[number].numpy() if count is None else other[number][image].numpy() for other in others]
            expected = sum(np.abs(features[number][image].numpy() - one).mean() for one in compared)
            assert found[image].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [3, None])
def test_the_gradient_is_that_of_the_differences_themselves(count):
    others, factors = [layers(count, seed) for seed in (1, 2, 3)], torch.tensor([0.3, -2.0, 5.0]).double()
    ours, plain = ([feature.requires_grad_() for feature in layers(3, 0)] for _ in range(2))
    others[0][0] = others[0][0].clone() if count is None else plain[0].detach().clone()  # differences of zero
    sum((total.square() * factors).sum() for total in summed_distances(ours, others)).backward()
    for number, feature in enumerate(plain):
        total = sum((feature - other[number]).abs().flatten(1).mean(1) for other in others)
        (total.square() * factors).sum().backward()
        assert torch.allclose(ours[number].grad, feature.grad, rtol=1e-12, atol=1e-15)


def test_a_hundred_and_twenty_seven_can_be_summed():
    feature = torch.ones(1, 1, 1, 1, requires_grad=True)
    summed_distances([feature], ([torch.zeros(1, 1, 1, 1)] for _ in range(127)))[0].sum().backward()
    assert feature.grad.item() == 127.0


def test_others_are_asked_for_one_by_one_and_let_go():
    alive: list[weakref.ref[torch.Tensor]] = []

    def one_by_one() -> Iterator[list[torch.Tensor]]:
        for seed in range(5):
            gc.collect()
            assert not any(reference() is not None for reference in alive)
            other = layers(2, seed)
            alive.extend(weakref.ref(tensor) for tensor in other)
            yield other
            del other

    features = [feature.requires_grad_() for feature in layers(2, 9)]
    totals = summed_distances(features, one_by_one())
    gc.collect()
    assert not any(reference() is not None for reference in alive)
    assert all(total.requires_grad for total in totals)


def test_short_formats_are_summed_in_float32_and_have_gradients_in_their_own():
    features = [feature.requires_grad_() for feature in layers(2, 0, torch.bfloat16)]
    other = layers(2, 1, torch.bfloat16)
    totals = summed_distances(features, [other])
    sum(total.sum() for total in totals).backward()
    for feature, compared, total in zip(features, other, totals, strict=True):
        exact = (feature.detach().double() - compared.double()).abs().flatten(1).mean(1)
        assert total.dtype == torch.float32 and feature.grad.dtype == torch.bfloat16
        assert torch.allclose(total.double(), exact, rtol=1e-5)
