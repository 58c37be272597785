"""What metrics tell of themselves, and what the evaluator does with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.images import Pairs
from support.registering import documented_file
from torch import nn

from basicsr.metrics import better_direction, calculate_metric, takes_tensors, traits_of
from basicsr.metrics.evaluator import evaluate
from basicsr.utils.registry import METRIC_REGISTRY

CPU = torch.device("cpu")


@pytest.fixture
def own_metrics(monkeypatch):
    """A function that registers metrics for the length of a test."""
    monkeypatch.setattr(METRIC_REGISTRY, "_members", dict(METRIC_REGISTRY._members))
    return METRIC_REGISTRY.register


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({"type": "calculate_psnr"}, "higher"),
        ({"type": "calculate_ssim_pt"}, "higher"),
        ({"type": "calculate_lpips"}, "lower"),
        ({"type": "calculate_lpips", "net": "vgg"}, "lower"),
        ({"type": "calculate_dists"}, "lower"),
        ({"type": "calculate_niqe"}, "lower"),
        ({"type": "calculate_psnr", "better": "lower"}, "lower"),
        ({"type": "calculate_niqe", "better": "higher"}, "higher"),
    ],
)
def test_the_better_direction_is_the_metrics_unless_the_options_say_otherwise(block, expected):
    assert better_direction(block) == expected


def test_a_metric_needs_a_reference_where_it_takes_one():
    needing = {name: traits_of({"type": name}).needs_reference for name in ("calculate_psnr", "calculate_dists")}
    assert needing == {"calculate_psnr": True, "calculate_dists": True}
    assert not traits_of({"type": "calculate_niqe"}).needs_reference


def test_the_annotation_of_img_says_whether_a_metric_takes_tensors(own_metrics):
    @own_metrics()
    def written_out(img: np.ndarray, img2: np.ndarray) -> float:
        return 0.0

    @own_metrics()
    def bare(img, img2, **kwargs):
        return 0.0

    @own_metrics()
    def of_tensors(img, img2):
        return 0.0

    of_tensors.__annotations__["img"] = torch.Tensor  # as without `from __future__ import annotations`
    names = ("calculate_psnr", "written_out", "bare", "of_tensors", "calculate_psnr_pt", "calculate_niqe")
    assert [takes_tensors({"type": name}) for name in names] == [False, False, False, True, True, True]


def test_the_evaluator_gives_each_metric_what_it_wants(own_metrics):
    seen = {}

    @own_metrics()
    def on_arrays(img, img2):
        seen["arrays"] = (type(img), img.dtype, img.shape, type(img2), int(img[0, 0, 0]), int(img2[0, 0, 0]))
        return 1.0

    @own_metrics()
    def on_tensors(img: torch.Tensor, img2: torch.Tensor):
        seen["tensors"] = (img.dtype, tuple(img.shape), tuple(img2.shape), img.device, float(img[0, 0, 0, 0]))
        return torch.full((1,), 2.0)

    blocks = {"a": {"type": "on_arrays"}, "t": {"type": "on_tensors"}}
    evaluation = evaluate(nn.Identity(), Pairs(1), blocks, CPU)
    assert evaluation.values.tolist() == [[1.0, 2.0]]
    assert seen["arrays"] == (np.ndarray, np.uint8, (4, 4, 3), np.ndarray, 100, 101)
    assert seen["tensors"] == (torch.float32, (1, 3, 4, 4), (1, 3, 4, 4), CPU, pytest.approx(100 / 255))


def test_device_metrics_and_classical_ones_stand_side_by_side():
    blocks = {name: {"type": name, "crop_border": 0} for name in ("calculate_psnr", "calculate_psnr_pt")}
    evaluation = evaluate(nn.Identity(), Pairs(3), blocks, CPU)
    expected = [20 * math.log10(255 / (index + 1)) for index in range(3)]
    assert evaluation.values[:, 0] == pytest.approx(expected, abs=1e-9)
    assert evaluation.values[:, 1] == pytest.approx(expected, abs=1e-9)


class Unpaired(Pairs):
    def __getitem__(self, index):
        return {key: value for key, value in super().__getitem__(index).items() if key != "gt"}


def test_without_hr_images_metrics_that_need_none_remain(own_metrics):
    @own_metrics()
    def brightness(img):
        return float(img.mean())

    blocks = {"psnr": {"type": "calculate_psnr", "crop_border": 0}, "brightness": {"type": "brightness"}}
    evaluation = evaluate(nn.Identity(), Unpaired(2), blocks, CPU)
    assert evaluation.metrics == ("brightness",)
    assert evaluation.values.tolist() == [[100.0], [100.0]]


def test_a_metric_is_one_file(tmp_path):
    data = {"img": np.full((4, 4, 3), 5, np.uint8), "img2": np.full((4, 4, 3), 7, np.uint8)}
    with documented_file("docs/adding_a_method.md", "basicsr/metrics/mean_error.py", tmp_path, METRIC_REGISTRY):
        assert calculate_metric(data, {"type": "calculate_mae", "crop_border": 1, "better": "lower"}) == 2.0
        assert "calculate_mae" in METRIC_REGISTRY.names()
