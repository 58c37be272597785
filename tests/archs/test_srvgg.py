"""SRVGGNetCompact against spandrel's implementation, by the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import save_checkpoint

from basicsr.archs.recognition import Recognised
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from basicsr.utils.errors import CheckpointError
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained, network_for


def compact(**options: Any) -> SRVGGNetCompact:
    torch.manual_seed(0)
    network = SRVGGNetCompact(**{"num_feat": 8, "num_conv": 3, "upscale": 2, **options})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):  # slopes that differ from channel to channel
                parameter.uniform_(-0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@torch.no_grad()
def test_outputs_are_those_of_another_implementation_with_the_same_weights(scale: int) -> None:
    import_torchvision()
    import spandrel

    network = compact(upscale=scale)
    theirs = spandrel.ModelLoader().load_from_state_dict(dict(network.state_dict()))
    assert theirs.architecture.id == "Compact"
    images = torch.rand(2, 3, 9, 7)
    # Both are float32; convolutions of the same shapes add up in the same order.
    assert torch.allclose(network(images), theirs.model.eval()(images), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"num_feat": 8, "num_conv": 3, "upscale": 2},
        {"num_feat": 12, "num_conv": 1, "upscale": 4, "num_in_ch": 1, "num_out_ch": 1},
    ],
)
def test_a_file_says_how_it_was_built(options: dict[str, Any]) -> None:
    found = recognise(compact(**options).state_dict())
    assert isinstance(found, Recognised)
    assert {key: found.options[key] for key in options} == options
    assert (found.architecture, found.scale, found.options["act_type"]) == (
        "SRVGGNetCompact",
        options["upscale"],
        "prelu",
    )


def test_stages_are_convolutions_with_their_activations() -> None:
    network = compact()
    images = torch.rand(1, 3, 8, 8)
    features, kept = network.stem(images)
    by_hand = features
    for number in (2, 3, 4, 5):
        by_hand = network.body[number](by_hand)
    assert network.stage_names == ("body.3", "body.5", "body.7")
    assert torch.equal(network.run_stages(features, kept, 0, 2), by_hand)
    rest = network.reconstruct(network.run_stages(by_hand, kept, 2), kept)
    assert torch.equal(rest, network(images))


def test_a_checkpoint_tells_activations_that_no_key_shows(tmp_path: Path) -> None:
    block = {"type": "SRVGGNetCompact", "num_feat": 8, "num_conv": 2, "upscale": 2, "act_type": "leakyrelu"}
    save_checkpoint(tmp_path / "net.pth", compact(num_conv=2, act_type="leakyrelu"), block, 2)
    assert load_pretrained(tmp_path / "net.pth").block == block
    with pytest.raises(CheckpointError, match="trained with act_type leakyrelu, the options say act_type relu"):
        network_for({**block, "act_type": "relu"}, tmp_path / "net.pth")
