"""Evaluation: figures of known images, shared over ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.images import PSNR, Pairs
from support.training import evaluate_rank, run_ranks
from torch import nn

from basicsr import metrics
from basicsr.files.images import tensor2img
from basicsr.metrics.evaluator import evaluate, image_name
from basicsr.utils.errors import DataError, NonFiniteError, OptionsError


def test_figures_are_those_worked_out_by_hand():
    evaluation = evaluate(nn.Identity(), Pairs(3), PSNR, torch.device("cpu"))
    assert evaluation.images == ("image0", "image1", "image2")
    expected = [20 * math.log10(255 / (index + 1)) for index in range(3)]
    assert evaluation.values[:, 0] == pytest.approx(expected, abs=1e-9)
    assert evaluation.means() == {"psnr": pytest.approx(np.mean(expected), abs=1e-9)}


def test_the_network_is_evaluated_in_eval_mode_and_left_as_it_was():
    network = nn.Dropout(1.0).train()
    saved: dict[str, np.ndarray] = {}
    evaluate(network, Pairs(1), {}, torch.device("cpu"), save_image=lambda name, image: saved.update({name: image}))
    assert network.training
    assert (saved["image0"] == 100).all() and saved["image0"].dtype == np.uint8


def test_low_precision_is_used_where_it_is_asked_for_alone():
    network, seen = nn.Conv2d(3, 3, 1), []
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for options in ({}, {"amp": "none"}, {"amp": "bf16"}):
        evaluate(network, Pairs(1), PSNR, torch.device("cpu"), **options)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


def test_values_that_are_not_finite_have_no_figures():
    class Broken(nn.Module):
        def forward(self, x):
            return x * torch.tensor([1.0, float("nan"), 1.0]).view(1, 3, 1, 1)

    with pytest.raises(NonFiniteError, match=r"Broken makes values of .*image0.* that are not finite"):
        evaluate(Broken(), Pairs(2), PSNR, torch.device("cpu"))


def test_a_metric_that_fails_names_itself_and_the_image():
    metric = {"y": {"type": "calculate_ssim", "crop_border": 50, "test_y_channel": False}}
    with pytest.raises(DataError, match=r"^metric y of .*image0.*: .*crop_border 50"):
        evaluate(nn.Identity(), Pairs(1), metric, torch.device("cpu"))


@pytest.mark.parametrize(
    ("path", "name"), [("a/b/baby.PNG", "baby"), ("v1.0.tif", "v1.0"), ("lmdb/key.0", "key.0"), ("a.b/c", "c")]
)
def test_images_are_called_by_their_files_without_the_ending(path, name):
    assert image_name(path) == name


def test_stopped_evaluations_have_no_result():
    assert evaluate(nn.Identity(), Pairs(3), PSNR, torch.device("cpu"), should_stop=lambda: True) is None


@pytest.mark.parametrize("count", [1, 5])
def test_two_ranks_give_the_figures_of_one_to_the_last_bit(tmp_path, count):
    run_ranks(evaluate_rank, 2, count, str(tmp_path / "values"))
    whole = evaluate(nn.Identity(), Pairs(count), PSNR, torch.device("cpu"))
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"values.{rank}.npy"), whole.values)


def test_each_image_is_read_once():
    class Counted(Pairs):
        def __init__(self, count: int) -> None:
            super().__init__(count)
            self.read: list[int] = []

        def __getitem__(self, index: int) -> dict:
            self.read.append(index)
            return super().__getitem__(index)

    images = Counted(3)
    evaluate(nn.Identity(), images, PSNR, torch.device("cpu"))
    assert images.read == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_saved_and_measured_is_what_tensor2img_makes(channels):
    """Beyond [0, 1] too, and on ties: halves of a level go to the even one."""
    lq = torch.rand(channels, 21, 17, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    lq[0, 0] = (torch.arange(17) + 0.5) / 255
    gt = torch.zeros_like(lq)
    saved: dict[str, np.ndarray] = {}
    evaluation = evaluate(
        nn.Identity(),
        [{"lq": lq, "gt": gt, "lq_path": "a.png"}],
        PSNR,
        torch.device("cpu"),
        save_image=lambda name, image: saved.update({name: image}),
    )
    expected = tensor2img(lq)
    assert saved["a"].dtype == np.uint8 and np.array_equal(saved["a"], expected)
    mean_square = np.square(expected.astype(np.float64)).mean()
    assert evaluation.values[0, 0] == pytest.approx(10 * math.log10(255**2 / mean_square), abs=1e-9)


def test_a_metric_without_a_figure_ends_an_evaluation():
    image = torch.full((3, 12, 12), 0.5)
    ssim = {"ssim": {"type": "calculate_ssim", "crop_border": 1}}
    with pytest.raises(DataError, match=r"^metric ssim of a.png: crop_border 1 leaves 10 x 10 pixels; SSIM needs 11"):
        evaluate(nn.Identity(), [{"lq": image, "gt": image, "lq_path": "a.png"}], ssim, torch.device("cpu"))


def test_a_later_image_without_an_hr_image_ends_an_evaluation_in_one_line():
    image = torch.full((3, 12, 12), 0.5)
    images = [{"lq": image, "gt": image, "lq_path": "a.png"}, {"lq": image, "lq_path": "b.png"}]
    with pytest.raises(OptionsError, match=r"^metric calculate_psnr: img2: is required$"):
        evaluate(nn.Identity(), images, PSNR, torch.device("cpu"))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinite_values_have_no_figures(value):
    lq = torch.full((3, 8, 8), 0.5)
    lq[1, 2, 3] = value
    with pytest.raises(NonFiniteError, match=r"Identity makes values of a.png that are not finite"):
        evaluate(nn.Identity(), [{"lq": lq, "gt": lq, "lq_path": "a.png"}], PSNR, torch.device("cpu"))


def test_a_metrics_options_are_validated_once_for_all_images(monkeypatch):
    bound = []
    bind = metrics.bind_arguments
    monkeypatch.setattr(metrics, "bind_arguments", lambda *given: bound.append(given[0].__name__) or bind(*given))
    evaluate(nn.Identity(), Pairs(3), PSNR, torch.device("cpu"))
    assert bound == ["calculate_psnr"]
