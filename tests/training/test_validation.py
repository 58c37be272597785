"""Validation runs the network as `val` says."""

from __future__ import annotations

import pytest
import torch
from support.training import changed, without_teacher

from basicsr.archs import build_network
from basicsr.config.load import load_options
from basicsr.data import build_eval_dataset
from basicsr.metrics.evaluator import evaluate
from basicsr.train import train_pipeline
from basicsr.weights.loading import load_network


def test_validation_uses_self_ensemble_and_tiles(mcadkd, tmp_path):
    options = changed(
        without_teacher(mcadkd),
        train__total_iter=1,
        train__ema_decay=None,
        val__val_freq=1,
        val__self_ensemble=True,
        val__tile=16,
        val__tile_overlap=0,  # seams tell that there are tiles
    )
    best = train_pipeline(options, root=tmp_path).best["val"]["psnr"]["value"]
    network = build_network(options["network_g"])
    load_network(network, tmp_path / "experiments/tiny/models/net_g_latest.pth")
    loaded = load_options(options, training=True, root=tmp_path)
    dataset = build_eval_dataset(loaded.datasets["val"])
    found = {
        (ensemble, tile): evaluate(
            network,
            dataset,
            loaded.val.metrics,
            torch.device("cpu"),
            scale=2,
            self_ensemble=ensemble,
            tile=tile,
            tile_overlap=0,
        ).means()["psnr"]
        for ensemble in (False, True)
        for tile in (None, 16)
    }
    assert best == pytest.approx(found.pop((True, 16)), abs=1e-9)
    assert all(abs(best - other) > 1e-4 for other in found.values())
