"""What holds for every registered network; a new file in basicsr/archs is covered without a change here.

A network whose constructor requires a parameter that TINY does not know needs an entry there.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from basicsr.archs import build_network
from basicsr.utils.complexity import count_multiply_adds, count_parameters
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import ARCH_REGISTRY, find_problems
from basicsr.utils.reparameterization import convolutions, merge, mergeable
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained

TINY: dict[str, Any] = {
    "num_in_ch": 3,
    "num_out_ch": 3,
    "in_chans": 3,
    "num_feat": 16,
    "num_block": 2,
    "num_conv": 2,
    "num_layer": 5,
    "num_grow_ch": 8,
    "feature_channels": 16,
    "num_feats": [16, 8],
    "img_channel": 3,
    "num_group": 2,
    "squeeze_factor": 2,
    "upscale": 2,
    "img_size": 8,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 2],
    "window_size": 4,
    "upsampler": "pixelshuffle",
    "drop_path_rate": 0.0,
    "width": 8,
    "enc_blk_nums": [1, 1],
    "dec_blk_nums": [1, 1],
    "dim": 8,
    "num_blocks": [1, 1, 1, 1],
    "num_refinement_blocks": 1,
}
# Attention that leaves one channel in sixteen would leave a single one, behind a ReLU.
TINY_OF: dict[str, dict[str, Any]] = {"BSRN": {"num_feat": 48}, "IMDN": {"num_feat": 48}, "MDSR": {"scales": [2]}}
NETWORKS = ARCH_REGISTRY.names()


def _arguments(factory: Any) -> Any:
    return inspect.signature(factory).parameters


def images(network: nn.Module, batch: int = 2) -> Tensor:
    size = getattr(network, "input_size", 32)
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def _options_of(name: str) -> dict[str, Any]:
    parameters = _arguments(ARCH_REGISTRY.get(name))
    return {"type": name, **{key: value for key, value in TINY.items() if key in parameters}, **TINY_OF.get(name, {})}


def tiny(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = build_network(_options_of(name))
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith((".beta", ".gamma")):  # a branch that begins at 0 would be idle
                nn.init.normal_(parameter, std=0.3)
        for _ in range(3):  # running statistics and spectral norms mean nothing before the first batches
            network.train()(images(network))
    return network


def relative_error(given: Tensor, wanted: Tensor) -> float:
    return ((given.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return tiny(request.param)


@pytest.fixture
def learner(network: nn.Module) -> nn.Module:
    if not list(network.parameters()):
        pytest.skip("has no parameters")
    return network


def test_the_networks_of_the_papers_are_there() -> None:
    assert {"EDSR", "RCAN", "SwinIR", "UNetDiscriminatorSN_basicsr"} <= set(NETWORKS)
    assert "UNetDiscriminatorSN" in ARCH_REGISTRY


def test_an_image_gives_a_finite_float32_output_of_the_promised_size(network: nn.Module) -> None:
    x = images(network)
    before = x.clone()
    output = network(x)
    assert output.dtype == torch.float32
    assert output.shape[0] == 2
    assert torch.isfinite(output).all()
    assert torch.equal(x, before), "the input was changed in place"
    if "upscale" in inspect.signature(type(network)).parameters:
        assert output.shape == (2, 3, 64, 64)


def test_every_parameter_gets_a_gradient(learner: nn.Module) -> None:
    output = learner.train()(images(learner))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_saved_state_gives_the_same_output_in_another_instance(learner: nn.Module, tmp_path) -> None:
    torch.save(learner.state_dict(), tmp_path / "net.pth")
    other = tiny(_registered_name(learner), seed=1)
    x = images(learner)
    with torch.no_grad():
        wanted = learner.eval()(x)
        assert not torch.equal(other.eval()(x), wanted)
        other.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
        assert torch.equal(other(x), wanted)
        assert torch.equal(copy.deepcopy(learner)(x), wanted)


@pytest.mark.parametrize("name", [name for name, network in ARCH_REGISTRY if "merged" in _arguments(network)])
@torch.no_grad()
def test_a_network_with_branches_is_the_same_once_they_are_merged(name: str) -> None:
    network = tiny(name)
    x, cost = images(network), (count_parameters(network), count_multiply_adds(network, (3, 32, 32)))
    wanted = network.double().eval()(x.double())
    merged = merge(copy.deepcopy(network))
    assert mergeable(network) and not mergeable(merged)
    assert (merged(x.double()) - wanted).abs().max() <= 1e-12 * wanted.abs().max()
    assert (merged.float()(x) - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert cost == (sum(map(torch.numel, merged.parameters())), count_multiply_adds(merged, (3, 32, 32)))
    found = recognise(merged.state_dict())
    assert found is not None and found.options["merged"]
    shipped = build_network(found.options).float().eval()
    shipped.load_state_dict(merged.state_dict())
    assert torch.equal(shipped(x), merged(x))
    names = [name for name, _ in convolutions(network)]
    assert names == [name for name, _ in convolutions(merged)] and len(names) > 2


def test_evaluation_changes_no_state_and_treats_images_one_by_one(network: nn.Module) -> None:
    before = copy.deepcopy(network.state_dict())
    x = images(network, batch=3)
    with torch.no_grad():
        together = network.eval()(x)
        alone = torch.cat([network(image[None]) for image in x])
    assert relative_error(alone, together) < 1e-6
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_bfloat16_autocast_differs_by_less_than_three_percent(learner: nn.Module) -> None:
    x = images(learner)
    with torch.no_grad():
        wanted = learner.eval()(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            given = learner(x)
    assert 0 < relative_error(given, wanted) < 0.03


def test_bfloat16_autocast_trains(learner: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = learner.train()(images(learner))
    output.float().square().mean().backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_channels_last_gives_the_same_output(network: nn.Module) -> None:
    x = images(network)
    with torch.no_grad():
        wanted = network.eval()(x)
        given = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert relative_error(given, wanted) < 1e-6


@pytest.mark.parametrize("name", [name for name, network in ARCH_REGISTRY if hasattr(network, "from_published")])
def test_its_weights_are_recognised_as_its_own_and_as_no_others(name: str) -> None:
    network = tiny(name)
    state, claims = network.state_dict(), []
    for other, factory in ARCH_REGISTRY:
        with contextlib.suppress(KeyError, IndexError, ZeroDivisionError, RuntimeError):
            found = factory.from_published(state) if hasattr(factory, "from_published") else None
            claims += [other] if found is not None else []
    assert claims == [name]
    found = recognise(state)
    assert found is not None and found.architecture == type(network).__name__
    build_network(found.options).load_state_dict(found.state)


@pytest.mark.parametrize("name", [name for name, network in ARCH_REGISTRY if hasattr(network, "from_published")])
def test_the_options_in_a_checkpoint_are_taken_whatever_else_its_weights_could_be(name: str, tmp_path: Path) -> None:
    network, block = tiny(name), {**_options_of(name), "type": name.removesuffix("_basicsr")}
    if "img_range" in _arguments(ARCH_REGISTRY.get(name)):
        block["img_range"] = 3.0
    parameters = _arguments(ARCH_REGISTRY.get(name))
    scale = block["upscale"] if "upscale" in block else parameters["scale"].default if "scale" in parameters else 1
    torch.save({"params": network.state_dict(), "network": {**block, "scale": scale}}, tmp_path / "net.pth")
    loaded = load_pretrained(tmp_path / "net.pth", scale=scale)
    assert loaded.block is not None and {key: loaded.block[key] for key in block} == block, loaded.remark
    assert loaded.remark is None


@pytest.mark.parametrize("name", NETWORKS)
def test_the_constructor_is_typed_and_refuses_unknown_keys(name: str) -> None:
    factory = ARCH_REGISTRY.get(name)
    hints = typing.get_type_hints(factory.__init__)
    parameters = inspect.signature(factory).parameters
    required = {key: value for key, value in TINY.items() if key in parameters and _is_required(parameters[key])}
    for parameter in parameters.values():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter
        assert parameter.name in hints, parameter
        if not _is_required(parameter):  # SwinIR's published defaults of two arguments contradict each other
            problems = find_problems(factory, {parameter.name: parameter.default}, required)
            assert not [one for one in problems if one.key == parameter.name and "multiple of" not in one.message]
    with pytest.raises(OptionsError, match="nonsense: unknown key"):
        build_network({"type": name, "nonsense": 1})


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _registered_name(network: nn.Module) -> str:
    return next(name for name, factory in ARCH_REGISTRY if factory is type(network))
