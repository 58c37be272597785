"""PSNR and SSIM of tensors: the figures of the classical functions, which other tests hold against scikit-image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch

from basicsr.files.images import tensor2img
from basicsr.metrics import calculate_metric, calculate_psnr, calculate_psnr_pt, calculate_ssim, calculate_ssim_pt
from basicsr.utils.errors import DataError, OptionsError

PAIRS: list[Any] = [
    pytest.param((calculate_psnr, calculate_psnr_pt, 1e-6), id="psnr"),  # dB; asked for are 1e-3
    pytest.param((calculate_ssim, calculate_ssim_pt, 1e-8), id="ssim"),  # asked for are 1e-4
]


def photograph(name: str, height: int, width: int) -> torch.Tensor:
    """The upper left of a photograph that scikit-image brings along: (1, 3, height, width) in [0, 1]."""
    img = np.ascontiguousarray(getattr(skimage.data, name)()[:height, :width, :3].transpose(2, 0, 1))
    return torch.from_numpy(img).unsqueeze(0).float() / 255


def degraded(images: torch.Tensor, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return images + noise * torch.randn(images.shape, generator=generator)


def batches() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    random = torch.rand(2, 3, 37, 53, generator=generator)
    gray = torch.rand(2, 1, 24, 31, generator=generator)
    astronaut, cat = photograph("astronaut", 123, 201), photograph("chelsea", 123, 201)
    # A flat image, all but one level of gray: variances of 1e-3 beside squares of 4e4, where float32 would be lost.
    flat = torch.full((1, 3, 33, 40), 200 / 255)
    nearly_flat = flat.clone()
    nearly_flat[..., ::7, ::5] = 201 / 255
    return {
        "random": (random, degraded(random, 0.1)),
        "gray": (gray, degraded(gray, 0.05)),
        "photographs": (torch.cat([astronaut, cat]), degraded(torch.cat([astronaut, cat]), 0.02)),
        "nearly flat": (flat, nearly_flat),
        "bf16": (random, degraded(random, 0.1).bfloat16()),
        "out of range": (random, degraded(random, 0.5) * 3),
    }


@pytest.mark.parametrize("name", list(batches()))
@pytest.mark.parametrize("luma", [False, True])
@pytest.mark.parametrize("functions", PAIRS)
def test_figures_are_the_classical_ones(functions, luma: bool, name: str) -> None:
    classical, on_device, tolerance = functions
    img, img2 = batches()[name]
    found = on_device(img, img2, 3, test_y_channel=luma)
    assert found.dtype == torch.float64
    expected = [classical(tensor2img(a), tensor2img(b), 3, test_y_channel=luma) for a, b in zip(img, img2, strict=True)]
    # Y is mixed in float64 here and in float32 there.
    assert found.tolist() == pytest.approx(expected, abs=tolerance if not luma else 100 * tolerance)


# From basicsr 1.4.2, imported as in scripts/reference/losses_metrics.py (prepare_reference), with `waves` below:
#   calculate_psnr_pt(*waves(), crop_border=4, test_y_channel=luma), and calculate_ssim_pt likewise
FROZEN = {
    ("calculate_psnr_pt", False): 29.030900141154262,
    ("calculate_psnr_pt", True): 32.0250087162139,
    ("calculate_ssim_pt", False): 0.9339603152722473,
    ("calculate_ssim_pt", True): 0.9370516615779203,
}


def waves() -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns, channels = torch.meshgrid(torch.arange(37.0), torch.arange(45.0), torch.arange(3.0), indexing="ij")
    img = 0.5 + 0.4 * torch.sin(rows * 0.3 + channels) * torch.cos(columns * 0.2)
    img2 = img + 0.05 * torch.sin(rows * 1.7 + columns * 2.3 + channels)
    return img.permute(2, 0, 1).unsqueeze(0), img2.permute(2, 0, 1).unsqueeze(0)


@pytest.mark.parametrize(("name", "luma"), list(FROZEN))
def test_unrounded_figures_are_those_of_basicsr(name: str, luma: bool) -> None:
    """BasicSR adds 1e-8 to the squared error, here 1e-3: 4e-5 dB."""
    img, img2 = waves()
    block = {"type": name, "crop_border": 4, "test_y_channel": luma, "round_to_8_bits": False}
    tolerance = 1e-4 if "psnr" in name else 1e-7
    assert calculate_metric({"img": img, "img2": img2}, block).item() == pytest.approx(
        FROZEN[name, luma], abs=tolerance
    )


@pytest.mark.parametrize("luma", [False, True])
def test_equal_images_are_infinitely_good(luma: bool) -> None:
    img = photograph("astronaut", 31, 40).repeat(2, 1, 1, 1)
    assert calculate_psnr_pt(img, img.clone(), 0, luma).tolist() == [math.inf, math.inf]
    assert calculate_ssim_pt(img, img.clone(), 0, luma).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_without_rounding_small_differences_count() -> None:
    """A difference of a tenth of a level is none once rounded; unrounded, PSNR is 20 log10(255 / 0.1)."""
    img = torch.full((1, 3, 16, 16), 100 / 255, dtype=torch.float64)
    assert calculate_psnr_pt(img, img + 0.1 / 255, 0).item() == math.inf
    expected = 20 * math.log10(255 / 0.1)
    assert calculate_psnr_pt(img, img + 0.1 / 255, 0, round_to_8_bits=False).item() == pytest.approx(expected, abs=1e-9)


def test_each_image_of_a_batch_has_its_own_figure() -> None:
    img, img2 = batches()["photographs"]
    for function in (calculate_psnr_pt, calculate_ssim_pt):
        alone = [function(img[i : i + 1], img2[i : i + 1], 2).item() for i in range(len(img))]
        assert function(img, img2, 2).tolist() == pytest.approx(alone, rel=1e-12)


def test_a_figure_that_is_not_a_number_stays_visible() -> None:
    img = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    broken = img.clone()
    broken[0, 0, 8, 8] = math.nan
    for function in (calculate_psnr_pt, calculate_ssim_pt):
        first, second = function(broken, img * 0.9, 0).tolist()
        assert math.isnan(first) and math.isfinite(second)


@pytest.mark.parametrize("name", ["random", "nearly flat"])
def test_where_a_gradient_is_asked_for_there_is_one_and_the_figures_stay(name: str) -> None:
    """Then it is PyTorch that takes the means of the windows, as on a GPU, and not OpenCV."""
    img, img2 = batches()[name]
    leaf = img.clone().requires_grad_()
    found = calculate_ssim_pt(leaf, img2, 2, test_y_channel=True, round_to_8_bits=False)
    assert found.tolist() == pytest.approx(calculate_ssim_pt(img, img2, 2, True, False).tolist(), abs=1e-11)
    found.sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad[..., 2:-2, 2:-2].any()


def test_the_images_stay_as_they_are() -> None:
    img, img2 = batches()["random"]
    before = img.clone(), img2.clone()
    calculate_ssim_pt(img, img2, 2, True)
    assert torch.equal(img, before[0]) and torch.equal(img2, before[1])


@pytest.mark.parametrize(
    ("shape", "shape2", "border", "error", "message"),
    [
        ((1, 3, 20, 20), (1, 3, 20, 21), 0, DataError, r"shapes \(1, 3, 20, 20\) and \(1, 3, 20, 21\)"),
        ((3, 20, 20), (3, 20, 20), 0, DataError, r"shape \(3, 20, 20\); expected \(B, C, H, W\)"),
        ((1, 3, 20, 30), (1, 3, 20, 30), 10, DataError, "crop_border 10 leaves nothing of 20 x 30"),
        ((1, 3, 20, 30), (1, 3, 20, 30), -1, OptionsError, "crop_border is -1; it must be 0 or more"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(shape, shape2, border, error, message: str) -> None:
    for function in (calculate_psnr_pt, calculate_ssim_pt):
        with pytest.raises(error, match=message):
            function(torch.zeros(shape), torch.zeros(shape2), border)


def test_ssim_needs_one_whole_window() -> None:
    with pytest.raises(DataError, match="crop_border 4 leaves 10 x 11 pixels; SSIM needs 11 x 11"):
        calculate_ssim_pt(torch.zeros(1, 3, 18, 19), torch.zeros(1, 3, 18, 19), 4)


def test_they_are_called_by_their_options() -> None:
    img, img2 = batches()["random"]
    block = {"type": "calculate_psnr_pt", "crop_border": 2, "test_y_channel": True, "better": "higher"}
    expected = calculate_psnr_pt(img, img2, 2, True)
    assert torch.equal(calculate_metric({"img": img, "img2": img2}, block), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("functions", PAIRS)
def test_a_gpu_gives_the_figures_of_the_cpu(functions) -> None:
    _, on_device, _ = functions
    img, img2 = batches()["photographs"]
    found = on_device(img.cuda(), img2.cuda(), 3, True)
    assert found.is_cuda
    assert found.tolist() == pytest.approx(on_device(img, img2, 3, True).tolist(), abs=1e-9)
