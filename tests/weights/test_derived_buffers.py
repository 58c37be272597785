"""spandrel's networks from files without the buffers that follow from sizes, which are never weights."""

from __future__ import annotations

import pytest
import torch
from support.spandrels import spandrels
from torch import nn

from basicsr.utils.errors import CheckpointError
from basicsr.weights.derived_buffers import derived_keys, is_derived
from basicsr.weights.recognise import load_pretrained

# What a file of each has that follows from sizes, and what no file without it shows.
BUFFERS = {
    "ATD": ({"relative_position_index_SA"}, None),
    "CRAFT": ({"relative_position_index_h", "relative_position_index_v", "biases_h", "biases_v"}, "windows of 4x16"),
    "DAT": ({"rpe_biases", "relative_position_index", "attn_mask_0", "attn_mask_1"}, "windows of 8x32"),
    "DRCT": ({"relative_position_index", "attn_mask"}, "shifted windows"),
    "HAT": ({"relative_position_index_SA", "relative_position_index_OCA"}, None),
    "RGT": ({"rpe_biases", "relative_position_index", "attn_mask_0", "attn_mask_1"}, "windows of 8x32"),
    "Swin2SR": ({"relative_coords_table", "relative_position_index", "attn_mask"}, "windows of 8, shifted windows"),
    "Uformer": ({"relative_position_index"}, None),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_files_without_them_are_the_same_networks(name, tmp_path):
    names, assumed = BUFFERS[name]
    reference = spandrels(name)
    state = reference.state_dict()
    derived = {key for key in derived_keys(reference) if not key.endswith("num_batches_tracked")}
    assert {key.rpartition(".")[2] for key in derived} == names
    torch.save({key: value for key, value in state.items() if key not in derived}, tmp_path / "stripped.pth")
    torch.save(state, tmp_path / "whole.pth")
    stripped, whole = (load_pretrained(tmp_path / f"{kind}.pth") for kind in ("stripped", "whole"))
    assert stripped.architecture == name
    assert stripped.network.state_dict().keys() == whole.network.state_dict().keys()
    assert stripped.remark.endswith(f"taken as published: {assumed}" if assumed else "'model.'")
    image = torch.rand(1, 3, 13, 18)
    assert torch.equal(stripped.network(image), whole.network(image))


def test_masks_of_another_size_give_way_to_the_networks_own(tmp_path):
    reference = spandrels("DRCT")
    state = reference.state_dict()
    mask = next(key for key in state if key.endswith("attn_mask"))
    torch.save({**state, mask: torch.zeros(6, 64, 64)}, tmp_path / "oblong.pth")  # of images of 16x24
    torch.save(state, tmp_path / "whole.pth")
    image = torch.rand(1, 3, 13, 18)
    oblong, whole = (load_pretrained(tmp_path / f"{kind}.pth").network(image) for kind in ("oblong", "whole"))
    assert torch.equal(oblong, whole)


def test_weights_are_not_made_up(tmp_path):
    state = spandrels("HAT").state_dict()
    del state["layers.0.residual_group.blocks.0.mlp.fc2.bias"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"takes it for HAT, but cannot load it .*Missing key.*mlp\.fc2\.bias"):
        load_pretrained(tmp_path / "net.pth")


def test_networks_built_afterwards_load_as_ever(tmp_path):
    torch.save(spandrels("HAT").state_dict(), tmp_path / "net.pth")
    load_pretrained(tmp_path / "net.pth")

    class Indexed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("attn_mask", torch.ones(2))

    with pytest.raises(RuntimeError, match="Missing key"):
        Indexed().load_state_dict({})


def test_parameters_and_other_buffers_are_no_derived_ones():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    network[1].attn_mask = nn.Parameter(torch.ones(1))
    assert derived_keys(network) == {"0.num_batches_tracked"}
    assert not any(map(is_derived, ("running_mean", "a.relative_position_bias_table", "mask", "my_attn_mask")))
