"""Metrics of pyiqa: what is said where it is absent, and its figures where it is installed."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from support.images import Pairs
from torch import nn

from basicsr.metrics import (
    better_direction,
    calculate_metric,
    calculate_psnr_pt,
    calculate_ssim_pt,
    prepare_metrics,
    traits_of,
)
from basicsr.metrics.evaluator import evaluate
from basicsr.utils.errors import DataError, MachineError, OptionsError

CPU = torch.device("cpu")
GMSD = {"type": "calculate_pyiqa", "metric": "gmsd"}


def pair(channels: int = 3, height: int = 64, width: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    img = torch.rand(2, channels, height, width, generator=generator)
    return img, img + 0.1 * torch.randn(img.shape, generator=generator)


@pytest.mark.parametrize(
    "block",
    [{"type": "calculate_lpips"}, {"type": "calculate_dists"}, {"type": "calculate_niqe"}, GMSD],
    ids=lambda block: block["type"],
)
def test_without_pyiqa_one_line_says_how_to_install_it(monkeypatch, block):
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as Python marks a package that cannot be imported
    img, img2 = pair()
    for ask in (
        lambda: prepare_metrics({"own": block}, CPU),
        lambda: calculate_metric({"img": img, "img2": img2}, block),
    ):
        with pytest.raises(MachineError, match=r"need the package pyiqa; install it: pip install -e \.\[metrics\]$"):
            ask()


def test_what_needs_no_package_is_known_without_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert better_direction({"type": "calculate_lpips"}) == "lower"
    prepare_metrics({"psnr": {"type": "calculate_psnr", "crop_border": 2}}, CPU)


@pytest.fixture
def pyiqa():
    from basicsr.utils.torchvision_import import import_torchvision

    import_torchvision()
    return pytest.importorskip("pyiqa", exc_type=ImportError)


def test_pyiqas_figures_are_handed_on(pyiqa):
    img, img2 = pair()
    rounded = [images.clamp(0, 1).mul(255).round() / 255 for images in (img, img2)]
    for name in ("gmsd", "vif", "nlpd"):
        model = pyiqa.create_metric(name, device=CPU)
        block = {"type": "calculate_pyiqa", "metric": name}
        prepare_metrics({name: block}, CPU)
        figures = calculate_metric({"img": img, "img2": img2}, {**block, "crop_border": 4})
        expected = model(*(images[..., 4:-4, 4:-4] for images in rounded))
        assert figures.dtype == torch.float64 and figures.shape == (2,)
        assert figures.tolist() == pytest.approx(expected.double().flatten().tolist(), rel=1e-6)


def test_pyiqas_psnr_and_ssim_are_ours(pyiqa):
    """pyiqa adds 1e-8 to the squared error; its `ssim` rounds Y, which ours does not, so that RGB is compared."""
    img, img2 = pair()
    data = {"img": img, "img2": img2}
    psnr = calculate_metric(data, {"type": "calculate_pyiqa", "metric": "psnr"})
    assert psnr.tolist() == pytest.approx(calculate_psnr_pt(img, img2, 0).tolist(), abs=1e-3)
    ssim = calculate_metric(data, {"type": "calculate_pyiqa", "metric": "ssimc"})
    assert ssim.tolist() == pytest.approx(calculate_ssim_pt(img, img2, 0).tolist(), abs=1e-4)


def test_traits_are_pyiqas(pyiqa):
    found = {name: traits_of({"type": "calculate_pyiqa", "metric": name}) for name in ("gmsd", "vif", "piqe")}
    assert {name: traits.better for name, traits in found.items()} == {
        "gmsd": "lower",
        "vif": "higher",
        "piqe": "lower",
    }
    assert {name: traits.needs_reference for name, traits in found.items()} == {
        "gmsd": True,
        "vif": True,
        "piqe": False,
    }


def test_gray_images_count_as_colour_images_without_colour(pyiqa):
    img, img2 = pair(channels=1)
    gray = calculate_metric({"img": img, "img2": img2}, GMSD)
    colour = calculate_metric({"img": img.repeat(1, 3, 1, 1), "img2": img2.repeat(1, 3, 1, 1)}, GMSD)
    assert gray.tolist() == colour.tolist()


def test_unknown_and_unfit_metrics_are_refused_before_anything_runs(pyiqa):
    with pytest.raises(OptionsError, match=r"pyiqa has no metric 'gmds' \(did you mean 'gmsd'\?\)"):
        prepare_metrics({"own": {"type": "calculate_pyiqa", "metric": "gmds"}}, CPU)


def test_images_that_a_metric_refuses_are_named(pyiqa):
    img, img2 = pair(height=8, width=9)
    with pytest.raises(DataError, match=r"pyiqa's vif fails on images of 8 x 9 pixels, crop_border 0: "):
        calculate_metric({"img": img, "img2": img2}, {"type": "calculate_pyiqa", "metric": "vif"})


def test_weights_that_cannot_be_downloaded_are_told_before_anything_runs(pyiqa, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(
        MachineError, match=r"pyiqa's lpips has no weights here, and they cannot be downloaded"
    ) as caught:
        prepare_metrics({"lpips": {"type": "calculate_lpips"}}, CPU)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_evaluator_runs_them(pyiqa):
    class Larger(Pairs):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "lq": item["lq"].repeat(1, 16, 16), "gt": item["gt"].repeat(1, 16, 16)}

    evaluation = evaluate(nn.Identity(), Larger(2), {"psnr": {"type": "calculate_pyiqa", "metric": "psnr"}}, CPU)
    assert evaluation.values[:, 0] == pytest.approx([20 * math.log10(255 / (i + 1)) for i in range(2)], abs=1e-2)
