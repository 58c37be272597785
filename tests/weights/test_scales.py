"""Weights for several scales: options and `--scale` choose, and a missing choice is one line that lists them."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from basicsr.archs import build_network
from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.weights.recognise import load_pretrained, network_for, recognised_block


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "srcnn.pth"
    torch.manual_seed(0)
    torch.save(build_network({"type": "SRCNN"}).state_dict(), file)
    return file


def test_the_scale_asked_for_is_chosen(path):
    image = torch.rand(1, 1, 5, 6)
    scales = load_pretrained(path).scales
    assert len(scales) > 1 and load_pretrained(path).scale == min(scales)
    for scale in scales:
        chosen = load_pretrained(path, scale=scale)
        assert (chosen.scale, chosen.block["upscale"]) == (scale, scale)
        assert chosen.network(image).shape[-2:] == (5 * scale, 6 * scale)
        assert recognised_block(path, param_key=None, scale=scale)[0]["upscale"] == scale
        assert torch.equal(network_for({"type": "auto"}, path, scale=scale)[0](image), chosen.network(image))


def test_other_scales_and_none_are_told_with_those_there_are(path):
    for call in (lambda: network_for(None, path, scale=9), lambda: recognised_block(path, param_key=None, scale=9)):
        with pytest.raises(
            CheckpointError, match=r"it is SRCNN for x2, x3, x4.*, the options' scale is 9; give the file"
        ):
            call()
    with pytest.raises(OptionsError, match=r"is SRCNN for x2, .*: describe the network with its `upscale`"):
        network_for({"type": "auto"}, path)


def test_commands_ask_for_the_choice(path, tmp_path, monkeypatch, capsys):
    upscale = importlib.import_module("upscale")
    for load in (upscale.load_checkpoint, lambda *given: load_student(given[0], scale=given[1])):
        with pytest.raises(OptionsError, match=r"is SRCNN for x2, x3, x4.*; choose one by --scale"):
            load(str(path), None, None)
        with pytest.raises(OptionsError, match=r"--scale 9, but .* is SRCNN for x2, .*; give --scale for one of these"):
            load(str(path), 9, None)
    exported = export(load_student(path, scale=3), tmp_path, formats=["safetensors"])
    assert exported.files[0].name == "srcnn_x3.safetensors"
    assert load_pretrained(exported.files[0]).scale == 3
    sys.modules.pop("upscale")


def test_model_info_lists_them(path, capsys):
    assert importlib.import_module("model_info").main(["--model", str(path), "--input", "1", "8", "8"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    scales = load_pretrained(path).scales
    assert lines["scale"].strip() == ", ".join(f"x{scale}" for scale in scales)
    assert all(f"multiply-adds (G) at 1x8x8, x{scale}" in lines for scale in scales)
    assert lines["weights"].strip() == "at the top of the file" and lines["can be"].strip().startswith("a teacher; a")
    sys.modules.pop("model_info")
