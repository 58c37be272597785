"""Operations on pixels, held against float64 references that are written from their definitions."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from basicsr.data.degradations.blur_kernels import circular_lowpass_kernel, gaussian_kernel, random_mixed_kernels
from basicsr.data.degradations.jpeg import _CHROMA, _LUMA, compressed
from basicsr.data.degradations.operations import (
    filtered,
    resized,
    rounded,
    sharpened,
    with_gaussian_noise,
    with_poisson_noise,
)


def image(height: int, width: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth colours with noise on them, float32."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    waves = [0.5 + 0.4 * np.sin(rows / (3 + c) + columns / (5 - c)) for c in range(channels)]
    return torch.from_numpy(
        np.clip(np.stack(waves) + 0.05 * rng.standard_normal((channels, height, width)), 0, 1)
    ).float()


def correlated(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    reach = len(kernel) // 2
    padded = np.pad(plane, reach, "reflect")
    return sum(
        kernel[i, j] * padded[i : i + plane.shape[0], j : j + plane.shape[1]]
        for i in range(len(kernel))
        for j in range(len(kernel))
    )


@pytest.mark.parametrize("beta, plateau", [(1.0, False), (0.6, False), (3.0, False), (1.0, True), (1.7, True)])
def test_kernels_by_their_covariance(beta, plateau):
    sigma_x, sigma_y, theta = 2.3, 0.8, 0.7
    turn = np.array([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]])
    inverse = np.linalg.inv(turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T)
    expected = np.zeros((9, 9))
    for row in range(9):
        for column in range(9):
            x = np.array([column - 4, row - 4])
            power = float(x @ inverse @ x) ** beta
            expected[row, column] = 1 / (1 + power) if plateau else math.exp(-power / 2)
    kernel = gaussian_kernel(9, sigma_x, sigma_y, theta, beta, plateau=plateau)
    np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-9, atol=1e-30)


def test_the_sinc_kernel_is_the_transform_of_a_disc():
    cutoff, side = 1.9, 7
    frequencies, angles = cutoff * (np.arange(3000) + 0.5) / 3000, math.pi * (np.arange(60) + 0.5) / 60
    expected = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            radius = math.hypot(row - 3, column - 3)
            bessel = np.cos(np.outer(frequencies * radius, np.sin(angles))).mean(axis=1)  # J0
            expected[row, column] = (bessel * frequencies).mean() * cutoff / (2 * math.pi)
    kernel = circular_lowpass_kernel(cutoff, side, pad_to=11)
    np.testing.assert_allclose(kernel[2:-2, 2:-2], expected / expected.sum(), atol=1e-7)
    assert kernel.sum() == pytest.approx(1) and not kernel[:2].any()


@pytest.mark.parametrize("side, size", [(7, (16, 19)), (21, (23, 22))])
def test_filtering_is_a_sum_over_neighbours(side, size):
    kernel = random_mixed_kernels(["aniso"], [1], side, (0.5, 3), (0.5, 3), rng=np.random.default_rng(3))
    planes = image(*size)
    result = filtered(planes, torch.from_numpy(kernel))
    for plane, found in zip(planes.double().numpy(), result, strict=True):
        np.testing.assert_allclose(found, correlated(plane, kernel), atol=2e-6)


def line(mode: str, inside: int, outside: int) -> np.ndarray:
    """The weights of one axis, (outside, inside)."""
    weights = np.zeros((outside, inside))
    for place in range(outside):
        if mode == "area":
            first, end = place * inside // outside, -(-(place + 1) * inside // outside)
            weights[place, first:end] = 1 / (end - first)
            continue
        at = (place + 0.5) * inside / outside - 0.5
        at = max(at, 0) if mode == "bilinear" else at
        for tap in range(math.floor(at) - 1, math.floor(at) + 3):
            distance = abs(at - tap)
            if mode == "bilinear":
                weight = max(1 - distance, 0)
            elif distance <= 1:
                weight = 1.25 * distance**3 - 2.25 * distance**2 + 1
            else:
                weight = -0.75 * distance**3 + 3.75 * distance**2 - 6 * distance + 3
            weights[place, min(max(tap, 0), inside - 1)] += weight
    return weights


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 8), (17, 30)])
def test_resizing_by_weights(mode, size):
    planes = image(20, 23)
    expected = line(mode, 20, size[0]) @ planes.double().numpy() @ line(mode, 23, size[1]).T
    np.testing.assert_allclose(resized(planes, size, mode), expected, atol=1e-6)


def test_gaussian_noise_is_added_in_levels_of_255_and_clipped():
    planes, normal = image(6, 7), torch.from_numpy(np.random.default_rng(1).standard_normal((1, 6, 7))).float()
    expected = np.clip(planes.double().numpy() + normal.double().numpy() * 40 / 255, 0, 1)
    np.testing.assert_allclose(with_gaussian_noise(planes, normal, 40.0), expected, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 1])
def test_poisson_noise_has_the_quantiles_of_the_distribution(channels):
    planes = image(12, 13)
    uniform = torch.from_numpy(np.random.default_rng(2).random((channels, 12, 13))).float()
    source = planes if channels == 3 else torch.tensordot(torch.tensor([0.2989, 0.587, 0.114]), planes, 1)[None]
    levels = np.rint(source.numpy() * 255).astype(int)
    values = 2 ** math.ceil(math.log2(len(np.unique(levels))))
    noise = np.zeros(levels.shape)
    for place in np.ndindex(*levels.shape):
        rate, count = values * int(levels[place]) / 255, 0
        chance = below = math.exp(-rate)
        while below <= float(uniform[place]):
            count += 1
            chance *= rate / count
            below += chance
        noise[place] = count / values - levels[place] / 255
    expected = np.clip(planes.double().numpy() + 0.7 * noise, 0, 1)
    np.testing.assert_allclose(with_poisson_noise(planes, uniform, 0.7), expected, atol=1e-5)


@pytest.mark.parametrize("level", [3, 40, 200])
def test_poisson_noise_has_the_mean_and_variance_of_the_rate(level):
    planes = torch.arange(256).float().repeat(2, 1)[None] / 255  # so that all 256 values count
    planes = torch.cat([planes, torch.full((1, 400, 256), level / 255)], dim=1)
    uniform = torch.from_numpy(np.random.default_rng(0).random((1, 402, 256), np.float32))
    noise = (with_poisson_noise(planes, uniform, 0.5) - planes)[0, 2:].double() * 2 * 256
    rate = 256 * level / 255
    error = math.sqrt(rate / noise.numel())
    clipped = 0.5 * rate / 256 > 0.02  # else values below 0 are cut off
    if clipped:
        assert abs(float(noise.mean())) < 6 * error
        assert float(noise.var()) == pytest.approx(rate, rel=0.03)


def test_sharpening_by_its_definition():
    planes = image(60, 64)
    line_ = cv2.getGaussianKernel(51, 0)
    kernel = line_ @ line_.T
    for plane, found in zip(planes.double().numpy(), sharpened(planes), strict=True):
        rest = plane - correlated(plane, kernel)
        places = correlated((np.abs(rest) * 255 > 10).astype(float), kernel)
        expected = places * np.clip(plane + 0.5 * rest, 0, 1) + (1 - places) * plane
        np.testing.assert_allclose(found, expected, atol=1e-5)
    batch = sharpened(torch.stack([planes, planes.flip(-1)]))
    torch.testing.assert_close(batch[0], sharpened(planes), atol=1e-6, rtol=0)


def coded(block: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A block of 8 x 8 around 0 by the sums of the standard (ITU T.81, A.3.3 and A.3.4)."""
    places = np.arange(8)
    cosines = np.array([[math.cos((2 * x + 1) * u * math.pi / 16) for x in places] for u in places])
    scale = np.where(places == 0, 1 / math.sqrt(2), 1.0)
    frequencies = 0.25 * np.outer(scale, scale) * (cosines @ block @ cosines.T)
    frequencies = np.rint(frequencies / table) * table
    return 0.25 * cosines.T @ (np.outer(scale, scale) * frequencies) @ cosines


@pytest.mark.parametrize("quality", [12.5, 49.0, 50.0, 83.0])
def test_jpeg_by_the_sums_of_the_standard(quality):
    planes = image(29, 35)
    r, g, b = np.pad(planes.double().numpy(), ((0, 0), (0, 3), (0, 13)), "edge") * 255
    factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    chroma = np.full((8, 8), 99.0)
    chroma[:4, :4] = _CHROMA
    y = 0.299 * r + 0.587 * g + 0.114 * b
    small = [
        plane.reshape(16, 2, 24, 2).mean(axis=(1, 3))
        for plane in (-0.168736 * r - 0.331264 * g + 0.5 * b, 0.5 * r - 0.418688 * g - 0.081312 * b)
    ]
    for plane, table in ((y, np.array(_LUMA)), (small[0], chroma), (small[1], chroma)):
        shift = 128 if plane is y else 0
        for top in range(0, plane.shape[0], 8):
            for left in range(0, plane.shape[1], 8):
                where = np.s_[top : top + 8, left : left + 8]
                plane[where] = coded(plane[where] - shift, table * factor) + shift
    cb, cr = (np.kron(plane, np.ones((2, 2))) for plane in small)
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    expected = np.clip(rgb / 255, 0, 1)[:, :29, :35]
    different = np.abs(compressed(planes, quality).numpy() - expected) > 1e-4
    assert different.mean() < 0.02  # a coefficient on the edge between two steps may fall to either


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_images_come_out_of_jpeg_as_of_libjpeg(channels):
    """Colours differ, as libjpeg smooths chroma when it enlarges it."""
    planes = image(64, 96, 1).expand(channels, -1, -1)
    pixels = np.ascontiguousarray(rounded(planes).permute(1, 2, 0).numpy())
    for quality in (30, 75, 95):
        content = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        theirs = torch.from_numpy(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)) / 255
        ours = compressed(rounded(planes) / 255, quality)
        assert float((ours[0] - theirs).abs().mean()) < 0.15 * float((planes[0] - theirs).abs().mean()) + 1.1 / 255
