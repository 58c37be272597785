"""A student with branches in a real run: what is kept, averaged, resumed, validated, tested, exported and upscaled."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.training import changed, checkpoint_of, differences

from basicsr.archs import build_network
from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.test import test_pipeline as run_test
from basicsr.train import train_pipeline
from basicsr.utils.errors import CheckpointError
from basicsr.utils.reparameterization import merge, mergeable
from basicsr.weights.recognise import load_pretrained, network_for

_BRANCHES = ["3x3", "1x1", "identity", "1x1-3x3-1x1", "sobel_x", "laplacian"]
PLAIN = {"type": "PlainSR", "num_feat": 8, "num_conv": 2, "upscale": 2, "branches": _BRANCHES, "clip": True}
SPAN = {"type": "SPAN", "num_in_ch": 3, "num_out_ch": 3, "feature_channels": 6, "upscale": 2}
ITERATIONS = 3


@pytest.fixture(params=[PLAIN, SPAN], ids=lambda block: block["type"], scope="module")
def block(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def options(mcadkd: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
    """Distilled by its output and its features."""
    taps = {"student_taps": ["block_2"], "teacher_taps": ["body.1"]} if block is SPAN else {}
    terms = {"hint": {"type": "FitNet", "loss_weight": 1e-2, **taps}}
    changes: dict[str, Any] = {"train__distill": terms, "train__contrastive_opt": None}
    changes |= {"network_d": None, "train__adversarial_opt": None, "train__optim_d": None}
    return changed(
        mcadkd,
        network_g=dict(block),
        **changes,
        val__val_freq=ITERATIONS,
        logger__save_checkpoint_freq=1,
        train__total_iter=ITERATIONS,
    )


def _both(block: dict[str, Any]) -> list[tuple[bool, torch.nn.Module]]:
    """With branches and merged, in this order."""
    return [(False, build_network(block)), (True, merge(build_network(block)))]


def test_a_run_knows_the_branches_and_whoever_uses_its_result_the_merged_network(
    options: dict[str, Any], block: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_pipeline(options, root=tmp_path / "run").folder
    states = [checkpoint_of(folder, iteration)["g"] for iteration in range(1, ITERATIONS + 1)]
    parameters = [name for name, _ in build_network(block).named_parameters()]
    count = {merged: sum(map(torch.numel, network.parameters())) for merged, network in _both(block)}
    (log,) = folder.glob("train_*.log")
    assert f"with {count[True]:,d} parameters ({count[False]:,d} with branches)" in log.read_text(encoding="utf-8")
    assert all(set(parameters) <= set(state["params"]) for state in states)
    for before, after in itertools.pairwise(states):
        for name in parameters:
            expected = torch.lerp(before["params_ema"][name], after["params"][name], 0.1)
            assert torch.allclose(after["params_ema"][name], expected, atol=1e-7), name
            assert not torch.equal(after["params"][name], before["params"][name]), name

    # Resumed in the middle, bit for bit.
    train_pipeline(changed(options, train__total_iter=2), root=tmp_path / "again")
    resumed = train_pipeline(options, root=tmp_path / "again", auto_resume=True).folder
    assert differences(checkpoint_of(folder, ITERATIONS), checkpoint_of(resumed, ITERATIONS)) == []

    # Tested with branches and as shipped: equal figures, which are those of the run's own validation.
    file = folder / f"models/net_g_{ITERATIONS}.pth"
    figures = []
    for deploy in (False, True):
        test = {key: options[key] for key in ("scale", "num_gpu", "val")}
        test |= {"name": f"deploy_{deploy}", "datasets": {"test": options["datasets"]["val"]}, "deploy": deploy}
        test |= {"networks": {"student": {"path": str(file), "param_key": "params_ema"}}}
        test |= {"report": {"html": False, "plots": False, "speed": False}}
        (row,) = run_test(test, root=tmp_path).scales[0].rows
        figures.append(row.evaluations["val"].values)
        shipped = merge(build_network(block))
        assert row.parameters == sum(parameter.numel() for parameter in shipped.parameters())
    assert np.array_equal(*figures)
    best = checkpoint_of(folder, ITERATIONS)["state"]["best"]
    assert figures[0].mean(0)[0] == pytest.approx(best["val"]["psnr"]["value"], abs=1e-9)

    # Exported, it is merged, and loads so; a network that the options say is merged takes the checkpoint, too.
    trained = load_pretrained(file)
    x = torch.rand(1, 3, 11, 9)
    (written,) = export(load_student(file), tmp_path / "out", formats=["safetensors"]).files
    loaded = load_pretrained(written)
    assert mergeable(trained.network) and not mergeable(loaded.network) and loaded.block["merged"] is True
    merged, remark = network_for({**block, "merged": True}, file, param_key="params_ema")
    assert remark is not None and remark.endswith("its branches were merged")
    with torch.no_grad():
        wanted = trained.network(x)
        assert torch.equal(loaded.network(x), wanted) and torch.equal(merged.eval()(x), wanted)
    with pytest.raises(CheckpointError, match="it has merged True, the options say merged False"):
        network_for(block, written)

    # Commands use it merged, or say what merging makes of it.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
    upscale, model_info = importlib.import_module("upscale"), importlib.import_module("model_info")
    assert not mergeable(upscale.load_checkpoint(str(file), None, None).network)
    model_info.main(["--model", str(file)])
    assert "as shipped" in capsys.readouterr().out
