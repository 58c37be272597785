"""Files of quantised networks: read back with their ranges, refused where they do not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interpolate import main as interpolate
from model_info import report
from support.quantized import BLOCKS, image_8_bits
from torch import nn

from basicsr.archs import build_network
from basicsr.config.quantization import QuantizationSettings
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.network import quantization_of, quantize_network
from basicsr.quantization.records import to_record
from basicsr.utils.errors import CheckpointError
from basicsr.weights.recognise import load_pretrained, network_for


def quantized(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = build_network(BLOCKS[name]).eval()
    quantize_network(network, QuantizationSettings(layers={"*1": "int16"}))
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    return network


def content_of(network: nn.Module, name: str) -> dict[str, Any]:
    return {
        "params": network.state_dict(),
        "network": {**BLOCKS[name], "scale": 2},
        "quantization": to_record(network),
    }


@pytest.fixture(scope="module", params=("EDSR", "SPAN"))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, str]:
    network = quantized(request.param)
    path = tmp_path_factory.mktemp("saved") / "net_g_latest.pth"
    torch.save(content_of(network, request.param), path)
    return network, path, request.param


def test_the_network_comes_back(saved):
    network, path, name = saved
    image = image_8_bits(1, 3, 20, 28)
    with torch.no_grad():
        expected = network(image)
        for block in (BLOCKS[name], {"type": "auto"}):
            loaded, remark = network_for(block, path)
            assert quantization_of(loaded) == quantization_of(network)
            assert torch.equal(loaded.eval()(image), expected)
            assert "quantised, 7/8 and 16 bits" in remark
    assert "quantised, 7/8 and 16 bits" in report(str(path), None)


def test_it_also_loads_from_safetensors(saved, tmp_path):
    from safetensors.torch import save_file

    network, _, name = saved
    content = content_of(network, name)
    header = {key: json.dumps(content[key]) for key in ("network", "quantization")}
    file = tmp_path / "x.safetensors"
    save_file({key: value.contiguous() for key, value in content["params"].items()}, file, header)
    loaded = load_pretrained(file).network
    assert quantization_of(loaded) == quantization_of(network)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *path, last = keys
        for key in path:
            content = content[key]
        del content[last]

    return change


def with_value(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        *path, last = keys
        for key in path:
            content = content[key]
        content[last] = value

    return change


LAYER = ("quantization", "plans", "conv_after_body")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("quantization"), "no block 'quantization'"),
        (without("quantization", "settings"), "has no settings and plans"),
        (with_value(9, "quantization", "settings", "weight_bits"), "weight_bits: .*7"),
        (with_value({}, "quantization", "settings", "colour"), "colour: unknown key"),
        (without("params", "conv_last.input_quantizer.scale"), "lacks the range 'conv_last.input_quantizer.scale'"),
        (without(*LAYER), "no layer for the range 'conv_after_body"),
        (with_value({}, "quantization", "plans", "body"), "'body', which is no layer of EDSR"),
        (with_value("int4", *LAYER, "integers"), "nothing of use of the layer 'conv_after_body'"),
        (with_value([[1.0], ["a"]], *LAYER, "image_in"), "nothing of use"),
        (with_value([[0.0], [0.0]], *LAYER, "image_in"), "nothing of use"),
        (with_value([[1.0] * 5, [0.0] * 5], *LAYER, "image_in"), "5 channels"),
        (with_value("image", *LAYER, "output"), "nothing of use"),
        (with_value(torch.tensor(-1.0), "params", "conv_last.input_quantizer.scale"), "no range"),
        (with_value(torch.tensor(300), "params", "body.0.conv2.input_quantizer.zero_point"), "no range"),
        (with_value(torch.ones(2), "params", "conv_last.input_quantizer.scale"), "no range"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message, tmp_path):
    content = copy.deepcopy(content_of(_edsr(), "EDSR"))
    change(content)
    path = tmp_path / "net_g.pth"
    torch.save(content, path)
    for load in (load_pretrained, lambda path: network_for(BLOCKS["EDSR"], path)):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


_MADE: list[nn.Module] = []


def _edsr() -> nn.Module:
    if not _MADE:
        _MADE.append(quantized("EDSR"))
    return _MADE[0]


def test_quantised_networks_are_not_interpolated(saved, tmp_path):
    _, path, _ = saved
    other = tmp_path / "other.pth"
    other.write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="is quantised: interpolate the float networks"):
        interpolate(["--model", str(path), str(other), "--alpha", "0.5", "--output", str(tmp_path / "mixed.pth")])
