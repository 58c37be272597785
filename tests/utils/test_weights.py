"""Loading weights: BasicSR's layouts, prefixes, and what an error tells."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from basicsr.utils.errors import CheckpointError
from basicsr.utils.weights import load_network


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(OrderedDict(first=nn.Conv2d(3, width, 3), last=nn.Conv2d(width, 3, 3)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params": state, "params_ema": {}},
        lambda state: {"params": {f"module.{key}": value for key, value in state.items()}},
        lambda state: state,
    ],
)
def test_known_layouts_load(tmp_path, wrap):
    source, target = network(), network()
    torch.save(wrap(source.state_dict()), tmp_path / "net.pth")
    assert load_network(target, tmp_path / "net.pth") is None
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_the_key_asked_for_is_taken_and_a_substitute_is_told(tmp_path):
    plain, averaged, target = network(), network(), network()
    torch.save({"params": plain.state_dict(), "params_ema": averaged.state_dict()}, tmp_path / "net.pth")
    assert load_network(target, tmp_path / "net.pth", param_key="params_ema") is None
    assert torch.equal(target.last.bias, averaged.last.bias)
    torch.save({"params": plain.state_dict()}, tmp_path / "net.pth")
    remark = load_network(target, tmp_path / "net.pth", param_key="params_ema")
    assert remark is not None and "no 'params_ema': loaded 'params'" in remark


def test_another_networks_checkpoint_is_refused_with_keys_and_shapes(tmp_path):
    state = network(6).state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["last.bias"]
    torch.save(state, tmp_path / "net.pth")
    target = network()
    before = target.first.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_network(target, tmp_path / "net.pth")
    message = str(caught.value)
    assert "\n" not in message
    assert "1 missing (last.bias)" in message and "1 unexpected (extra.weight)" in message
    assert "first.weight (6, 3, 3, 3) instead of (4, 3, 3, 3)" in message
    assert torch.equal(target.first.weight, before)


def test_what_fits_is_loaded_where_strict_is_off(tmp_path):
    source, target = network(), network()
    state = source.state_dict()
    del state["last.bias"]
    torch.save(state, tmp_path / "net.pth")
    remark = load_network(target, tmp_path / "net.pth", strict=False)
    assert remark is not None and "1 missing (last.bias)" in remark
    assert torch.equal(target.first.weight, source.first.weight)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
        load_network(network(), tmp_path / "nowhere.pth")
