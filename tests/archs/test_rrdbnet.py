"""RRDBNet against spandrel's ESRGAN by the same weights, in all layouts that they are published in."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from basicsr.archs.recognition import UnsupportedWeights
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.utils.errors import OptionsError
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise

FORMS = [{"scale": 4}, {"scale": 2}, {"scale": 1}, {"scale": 8}]
FORMS += [{"scale": 2, "pixel_unshuffle": False}, {"scale": 1, "pixel_unshuffle": False}]


def rrdbnet(**options: Any) -> RRDBNet:
    torch.manual_seed(0)
    network = RRDBNet(**{"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "num_grow_ch": 32, **options})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # else the blocks hardly change anything
    return network.eval()


def under_old_keys(state: dict[str, Tensor], newer: bool) -> dict[str, Tensor]:
    """Under ESRGAN's keys: `RRDB_trunk.0.RDB1...`, or in one sequence `model.N`."""
    ups = sum(bool(re.fullmatch(r"conv_up\d\.weight", key)) for key in state)
    names = {"conv_first": "model.0", "conv_body": "model.1.sub.2", "conv_hr": f"model.{3 * ups + 2}"}
    names |= {"conv_last": f"model.{3 * ups + 4}", **{f"conv_up{n}": f"model.{3 * n}" for n in range(1, ups + 1)}}
    if newer:
        names = {"conv_body": "trunk_conv", "conv_hr": "HRconv", **{f"conv_up{n}": f"upconv{n}" for n in (1, 2, 3)}}
    result = {}
    for key, value in state.items():
        module, kind = key.rsplit(".", 1)
        if match := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)", module):
            block, dense, conv = match.groups()
            start = f"RRDB_trunk.{block}" if newer else f"model.1.sub.{block}"
            module = f"{start}.RDB{dense}.conv{conv}" + ("" if newer else ".0")
        result[f"{names.get(module, module)}.{kind}"] = value
    return result


@pytest.mark.parametrize("form", FORMS, ids=str)
@torch.no_grad()
def test_outputs_are_spandrels_and_older_layouts_are_the_same_network(form: dict[str, Any]) -> None:
    import_torchvision()
    import spandrel

    network = rrdbnet(**form)
    state = dict(network.state_dict())
    theirs = spandrel.ModelLoader().load_from_state_dict(under_old_keys(state, newer=False))
    assert (theirs.architecture.id, theirs.scale) == ("ESRGAN", form["scale"])
    images = torch.rand(2, 3, 8, 12)
    expected = theirs.model.eval()(images)
    assert torch.allclose(network(images), expected, atol=1e-6 * expected.abs().max().item())
    layouts = [("BasicSR", state), ("ESRGAN and KAIR", under_old_keys(state, newer=True))]
    for layout, published in (*layouts, ("old ESRGAN", under_old_keys(state, newer=False))):
        found = recognise(published)
        assert found is not None and (found.layout, found.scale) == (layout, form["scale"])
        options = {key: value for key, value in found.options.items() if key != "type"}
        again = RRDBNet(**options).eval()
        again.load_state_dict(found.state)
        assert torch.equal(again(images), network(images))


@torch.no_grad()
def test_images_of_any_size_are_extended_by_reflection_and_cropped() -> None:
    network, images = rrdbnet(scale=1), torch.rand(1, 3, 9, 6)
    extended = torch.cat([images, images[..., 5:8, :].flip(-2)], -2)
    extended = torch.cat([extended, extended[..., 3:5].flip(-1)], -1)
    assert torch.allclose(network(images), network(extended)[..., :9, :6], atol=1e-6)
    assert rrdbnet(scale=2)(torch.rand(1, 3, 5, 1)).shape == (1, 3, 10, 2)


def test_what_it_cannot_be_is_refused() -> None:
    with pytest.raises(OptionsError, match=r"scale: 3 is not supported: give 1, 2, 4 or 8"):
        rrdbnet(scale=3)
    state = under_old_keys(rrdbnet().state_dict(), newer=False)
    state["model.1.sub.0.RDB1.conv1x1.weight"] = torch.zeros(32, 8, 1, 1)
    with pytest.raises(UnsupportedWeights, match=r"ESRGAN\+"):
        recognise(state)
