"""DCKD's degradations: what is drawn, by statistics over many images; what is done with it, by other libraries."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from basicsr.distill.dckd import DCKD, Degradation, degrade, gaussian_kernel
from basicsr.utils.errors import OptionsError

KINDS = get_args(Degradation)


def generators(count: int, first: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(first, first + count)]


def images(count: int, height: int = 20, width: int = 28) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_size_range_and_type_are_kept_and_the_image_changes(kind):
    given = images(40).requires_grad_()
    found = degrade(given, kind, generators(40))
    assert (found.shape, found.dtype, found.requires_grad) == (given.shape, torch.float32, False)
    assert found.min() >= 0 and found.max() <= 1
    changed = (found - given).abs().flatten(1).max(1).values > 1e-4
    assert changed.float().mean() > 0.9 if kind == "resize" else changed.all()


@pytest.mark.parametrize("kind", KINDS)
def test_draws_belong_to_the_image_and_repeat(kind):
    given = images(4)
    state = torch.get_rng_state()
    found = degrade(given, kind, generators(4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, degrade(given, kind, generators(4)))
    assert torch.equal(found[2:3], degrade(given[2:3], kind, generators(1, first=2)))
    assert not torch.equal(found, degrade(given, kind, generators(4, first=1)))


def test_noise_has_the_deviations_and_the_share_of_gray_that_it_should():
    count = 600
    noise = degrade(torch.full((count, 3, 32, 32), 0.5), "noise", generators(count)) - 0.5
    gray = (noise == noise[:, :1]).all(dim=1).flatten(1).all(1)
    assert abs(gray.float().mean().item() - 0.5) < 4 * math.sqrt(0.25 / count)
    deviations = noise[:, 0].flatten(1).std(1) * 255
    # Uniform: the sorted deviations lie on a straight line from 1 to 30.
    line = torch.linspace(1, 30, count)
    assert (deviations.sort().values - line).abs().max() < 29 * 1.95 / math.sqrt(count) + 1
    whole = (noise / noise.flatten(1).std(1)[:, None, None, None]).double()
    assert abs(whole.mean().item()) < 0.005
    assert abs(whole.pow(4).mean().item() - 3) < 0.05, "of a normal distribution"
    coloured = whole[~gray]
    assert abs((coloured[:, 0] * coloured[:, 1]).mean().item()) < 0.01
    neighbours = (whole[..., 1:] * whole[..., :-1]).mean().item()
    assert abs(neighbours) < 0.01


@pytest.mark.parametrize(
    ("size", "sigmas", "angle"), [(3, (0.1, 2.0), 0.3), (7, (2.0, 0.7), -2.5), (11, (1.3, 1.3), 0.0)]
)
def test_the_kernel_is_the_gaussian_written_out(size, sigmas, angle):
    kernel = gaussian_kernel(size, sigmas, angle)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = np.linalg.inv(turn @ np.diag([sigmas[0] ** 2, sigmas[1] ** 2]) @ turn.T)
    expected = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            point = np.array([column - size // 2, row - size // 2])  # x, y
            expected[row, column] = math.exp(-0.5 * point @ inverse @ point)
    assert kernel.shape == (size, size)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert kernel == pytest.approx(expected / expected.sum(), abs=1e-12)


def impulse_responses(count: int) -> np.ndarray:
    impulse = torch.zeros(count, 1, 31, 31, dtype=torch.float64)
    impulse[:, :, 15, 15] = 1
    return degrade(impulse, "blur", generators(count))[:, 0].numpy()


def test_blurs_are_gaussians_of_all_sizes_shapes_and_directions():
    responses = impulse_responses(300)
    assert responses.sum((1, 2)) == pytest.approx(1, abs=1e-9)
    assert responses == pytest.approx(responses[:, ::-1, ::-1], abs=1e-12)
    # exp underflows at the corners of the narrowest, hence the widest ones.
    extents = [int(np.ptp(np.nonzero(response.sum(0))[0])) + 1 for response in responses if response.max() < 0.1]
    assert set(extents) == {5, 7, 9, 11}
    offsets = np.arange(-15, 16)
    y, x = np.meshgrid(offsets, offsets, indexing="ij")
    moments = [(responses * product).sum((1, 2)) for product in (x * x, y * y, x * y)]
    deviations = np.sqrt(np.linalg.eigvalsh(np.array([[moments[0], moments[2]], [moments[2], moments[1]]]).T))
    assert deviations.max() <= 2.0
    assert np.mean(deviations[:, 1] > 1.5 * deviations[:, 0]) > 0.3, "many are anisotropic"
    slanted = moments[2] / np.sqrt(moments[0] * moments[1])
    assert slanted.min() < -0.5 and slanted.max() > 0.5, "turned either way"


def test_blurring_mirrors_at_the_borders():
    given = images(6, 13, 16).double()
    found = degrade(given, "blur", generators(6)).numpy()
    kernels = impulse_responses(6)[:, 10:21, 10:21]
    for image, blurred, kernel in zip(given.numpy(), found, kernels, strict=True):
        for channel in range(3):
            expected = ndimage.convolve(image[channel], kernel, mode="mirror")
            assert blurred[channel] == pytest.approx(expected, abs=1e-9)


def test_resizing_goes_to_the_scale_drawn_and_back():
    count = 400
    given = images(count, 12, 20)
    found = degrade(given, "resize", generators(count))
    scales, modes = [], set()
    for image, resized, generator in zip(given, found, generators(count), strict=True):
        scale = generator.uniform(1, 1.5) if generator.random() < 0.25 else generator.uniform(0.5, 1)
        there, back = (str(generator.choice(["area", "bilinear", "bicubic"])) for _ in range(2))
        small = F.interpolate(image[None], size=(int(12 * scale), int(20 * scale)), mode=there)
        assert torch.equal(resized, F.interpolate(small, size=(12, 20), mode=back)[0].clamp(0, 1))
        scales.append(scale)
        modes.add((there, back))
    assert len(modes) == 9
    assert min(scales) < 0.52 and max(scales) > 1.45
    assert abs(np.mean(np.array(scales) > 1) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)


def test_the_mix_blurs_resizes_and_adds_noise():
    """Of a flat image only the noise is seen, smoothed by the way back; of an edge, the blur."""
    count = 200
    flat = degrade(torch.full((count, 3, 32, 32), 0.5), "mix", generators(count)) - 0.5
    assert (flat.flatten(1).std(1) > 0.5 / 255).all()
    correlation = (flat[..., 1:] * flat[..., :-1]).mean() / flat.square().mean()
    assert correlation > 0.2
    edge = torch.zeros(count, 1, 32, 32)
    edge[..., 16:] = 1
    profile = degrade(edge, "mix", generators(count)).mean((0, 1, 2))
    assert 0.1 < profile[15] < 0.4 and 0.6 < profile[16] < 0.9


def test_mistakes_are_named():
    with pytest.raises(OptionsError, match="DCKD: degradation: input should be 'noise', 'blur', 'resize' or 'mix'"):
        DCKD(degradation="rain")
    with pytest.raises(OptionsError, match="DCKD: an LR image of 3x28 is too small to be blurred by"):
        degrade(images(20, 3), "blur", generators(20))
    with pytest.raises(ValueError):
        degrade(images(2), "noise", generators(1))
