"""Evaluation: figures of known images, shared over ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.images import PSNR, Pairs
from support.training import evaluate_rank, run_ranks
from torch import nn

from basicsr.metrics.evaluator import evaluate


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


def test_stopped_evaluations_have_no_result():
    assert evaluate(nn.Identity(), Pairs(3), PSNR, torch.device("cpu"), should_stop=lambda: True) is None


@pytest.mark.parametrize("count", [1, 5])
def test_two_ranks_give_the_figures_of_one_to_the_last_bit(tmp_path, count):
    run_ranks(evaluate_rank, 2, count, str(tmp_path / "values"))
    whole = evaluate(nn.Identity(), Pairs(count), PSNR, torch.device("cpu"))
    for rank in range(2):
        assert np.array_equal(np.load(tmp_path / f"values.{rank}.npy"), whole.values)
