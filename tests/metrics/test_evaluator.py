"""Evaluation: figures of known images, shared over ranks, and the tables made of them."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from support.images import PSNR, Pairs
from support.training import evaluate_rank, run_ranks
from torch import nn

from basicsr.metrics.evaluator import Evaluation, evaluate
from basicsr.metrics.report import Row, markdown_table, write_csv


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


def test_tables_hold_what_was_measured(tmp_path):
    one = Evaluation(("psnr", "ssim"), ("a", "b"), np.array([[30.0, 0.9], [32.0, 0.8]]), np.array([0.010, 0.030]))
    two = Evaluation(("psnr", "ssim"), ("a", "b"), np.array([[31.5, 0.95], [33.5, 0.85]]), np.array([0.1, 0.1]))
    rows = [Row("small", 1234, {"Set5": one}), Row("large", 5_000_000, {"Set5": two})]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown_table(rows).splitlines()]
    assert table[0] == ["network", "parameters", "Set5 psnr", "Set5 ssim", "ms/image"]
    assert table[2] == ["small", "1,234", "31.00", "0.8500", "20.0"]
    assert table[3] == ["large", "5,000,000", "32.50", "0.9000", "100.0"]
    write_csv(tmp_path / "metrics.csv", rows)
    with open(tmp_path / "metrics.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 3
    found = [
        line["value"] for line in lines if (line["network"], line["image"], line["metric"]) == ("large", "b", "ssim")
    ]
    assert found == ["0.850000"]
