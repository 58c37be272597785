"""What is no weight is refused wherever weights are read, with the file and the key."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.vgg_arch import VGGFeatureExtractor
from basicsr.archs.vqgan_arch import VQGANEncoder
from basicsr.utils.errors import CheckpointError
from basicsr.weights.loading import load_network, load_state, read_weights
from basicsr.weights.recognise import load_pretrained, network_for

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
KEY = "body.0.conv1.weight"
NO_WEIGHTS = {
    "int8": lambda w: (w * 100).to(torch.int8),
    "uint8": lambda w: (w * 100).abs().to(torch.uint8),
    "int32": lambda w: (w * 1000).to(torch.int32),
    "int64": lambda w: (w * 1000).long(),
    "bool": lambda w: w > 0,
    "complex64": lambda w: w.to(torch.complex64),
    "float8_e4m3fn": lambda w: w.to(torch.float8_e4m3fn),
}
NOT_FINITE = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf, "beyond float32": 1e300}


def edsr_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: value.clone() for key, value in build_network(EDSR).state_dict().items()}


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_other_types_are_no_weights(kind, ending, tmp_path):
    state = edsr_state()
    state[KEY] = NO_WEIGHTS[kind](state[KEY])
    path = tmp_path / f"net.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save({"params": state}, path)
    for read in (
        lambda: load_network(build_network(EDSR), path),
        lambda: load_network(build_network(EDSR), path, strict=False),
        lambda: network_for(None, path),
        lambda: load_pretrained(path),
        lambda: read_weights(path),
    ):
        with pytest.raises(CheckpointError, match=rf"net\.{ending} was not loaded: its weight '{KEY}' is {kind}, "):
            read()


@pytest.mark.parametrize("value", NOT_FINITE.values(), ids=NOT_FINITE)
def test_values_that_are_not_finite_as_float32(value, tmp_path):
    state = edsr_state()
    state[KEY] = state[KEY].double()
    state[KEY][1, 2, 0, 1] = value
    torch.save(state, tmp_path / "net.pth")
    line = rf"net\.pth was not loaded: its weight '{KEY}' has 1 of 144 values that are NaN or infinite"
    for read in (load_pretrained, read_weights, lambda path: load_network(build_network(EDSR), path)):
        with pytest.raises(CheckpointError, match=line):
            read(tmp_path / "net.pth")


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_point_types_are_converted(kind, tmp_path):
    state = {key: value.to(kind) for key, value in edsr_state().items()}
    torch.save(state, tmp_path / "net.pth")
    network = build_network(EDSR)
    load_network(network, tmp_path / "net.pth")
    for key, value in network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[key].float())


@pytest.mark.parametrize("prefix", ["module.", "module.module.", "_orig_mod.", "module._orig_mod."])
def test_a_weight_that_is_there_twice(prefix, tmp_path):
    state = edsr_state()
    state[f"{prefix}{KEY}"] = state[KEY] + 1
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=rf"the weight '{KEY}' twice, .* as '{KEY}' and '{prefix}{KEY}'"):
        load_network(build_network(EDSR), tmp_path / "net.pth")
    state[f"{prefix}{KEY}"] = state[KEY].clone()
    torch.save(state, tmp_path / "net.pth")
    assert load_network(build_network(EDSR), tmp_path / "net.pth") is None


def test_two_networks_in_one_file_that_would_both_fit(tmp_path):
    state = edsr_state()
    both = {f"{owner}.{key}": value for owner in ("netG", "generator") for key, value in state.items()}
    torch.save(both, tmp_path / "net.pth")
    network = build_network(EDSR)
    load_network(network, tmp_path / "net.pth")
    assert torch.equal(network.state_dict()[KEY], state[KEY])
    both[f"generator.{KEY}"] = state[KEY] + 1
    torch.save(both, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=rf"two networks that fit EDSR, with different values of '{KEY}'"):
        load_network(build_network(EDSR), tmp_path / "net.pth")


def test_counters_are_whole_numbers_and_weights_are_what_the_network_learns(tmp_path):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), act=nn.PReLU()))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strength = nn.Parameter(torch.ones(3))

    state = network().state_dict()
    for counter in (torch.tensor(7), torch.tensor(7, dtype=torch.int32), torch.tensor(7.0)):
        torch.save({**state, "norm.num_batches_tracked": counter}, tmp_path / "net.pth")
        target = network()
        load_network(target, tmp_path / "net.pth")
        assert target.norm.num_batches_tracked.item() == 7
    with pytest.raises(CheckpointError, match=r"'norm\.num_batches_tracked' is float32 with fractions"):
        load_state(network(), {**state, "norm.num_batches_tracked": torch.tensor(7.5)}, "net.pth")
    with pytest.raises(CheckpointError, match="'strength' is int64"):  # the network knows it, though no name tells
        load_state(Named(), {"strength": torch.ones(3, dtype=torch.int64)}, "net.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_weights_without_numbers_of_their_own(tmp_path):
    state = edsr_state()
    torch.save({key: torch.zeros_like(value) for key, value in state.items()}, tmp_path / "zero.pth")
    with pytest.raises(CheckpointError, match=r"zero\.pth was not loaded: all its weights are 0"):
        load_network(build_network(EDSR), tmp_path / "zero.pth")
    torch.save({**state, KEY: torch.ones(1, 1, 1, 1).expand(4, 4, 3, 3)}, tmp_path / "expanded.pth")
    with pytest.raises(CheckpointError, match=r"shape \(4, 4, 3, 3\) that repeats its numbers.*save a clone"):
        load_network(build_network(EDSR), tmp_path / "expanded.pth")
    for name, odd in {
        "sparse": torch.eye(4).to_sparse(),
        "meta": torch.empty(4, 4, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8),
    }.items():
        torch.save({**state, KEY: odd}, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match=rf"{name}\.pth was not loaded: it holds tensors that are not dense"):
            load_network(build_network(EDSR), tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match=f"its weight '{KEY}' is sparse, quantised or without numbers"):
            load_state(build_network(EDSR), {**state, KEY: odd}, "net.pth")
    torch.save({**state, KEY: torch.empty(0)}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="1 weight has another shape"):
        load_network(build_network(EDSR), tmp_path / "empty.pth")


@pytest.mark.parametrize("odd", [lambda w: w.to(torch.int8), lambda w: w * torch.nan], ids=["int8", "nan"])
def test_networks_of_the_losses(odd, tmp_path):
    vgg = VGGFeatureExtractor(layer_name_list=["conv1_1"], vgg_weights="random")
    weights = {f"features.{key.replace('conv1_1', '0')}": value for key, value in vgg.vgg_net.state_dict().items()}
    torch.save({**weights, "features.0.weight": odd(weights["features.0.weight"])}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=r"vgg\.pth was not loaded: its weight 'features.0.weight' (is|has 17)"):
        VGGFeatureExtractor(layer_name_list=["conv1_1"], vgg_weights=str(tmp_path / "vgg.pth"))
    vqgan = VQGANEncoder(vqgan_weights="random").state_dict()
    key = "quantize.embedding.weight"
    torch.save({"state_dict": {**vqgan, key: odd(vqgan[key])}}, tmp_path / "vqgan.ckpt")
    with pytest.raises(CheckpointError, match=r"vqgan\.ckpt was not loaded: its weight 'quantize.emb\S+' (is|has)"):
        VQGANEncoder(vqgan_weights=str(tmp_path / "vqgan.ckpt"))
