"""PlainSR: every branch against convolutions done one by one, and the layouts of others."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.archs.plainsr_arch import PlainSR
from basicsr.archs.recognition import UnsupportedWeights
from basicsr.archs.reparameterization import BRANCHES, SPATIAL, BranchedConv2d
from basicsr.utils.errors import OptionsError
from basicsr.utils.reparameterization import merge
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained

ROOT = Path(__file__).resolve().parents[2]
_SMOOTHING, _STEP = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, -1.0])
_SOBEL_X, _LAPLACIAN = torch.outer(_SMOOTHING, _STEP), torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
_EDGES = {"sobel_x": _SOBEL_X, "sobel_y": _SOBEL_X.T, "laplacian": _LAPLACIAN}
COMBINATIONS = [
    chosen
    for count in range(1, len(BRANCHES) + 1)
    for chosen in itertools.combinations(BRANCHES, count)
    if set(chosen) & set(SPATIAL)
]


def one_by_one(module: BranchedConv2d, name: str, x: Tensor) -> Tensor:
    """A branch as it is defined, zeros around the image first; without merging."""
    if name == "identity":
        return x
    branch = module.get_submodule(name)
    y = F.pad(x, (module.padding[0],) * 4)
    for part in branch.children():
        if isinstance(part, nn.Conv2d):
            y = F.conv2d(y, part.weight, part.bias)
        else:
            kernel = part.scale.view(-1, 1, 1, 1) * _EDGES[name].to(part.scale)
            y = F.conv2d(y, kernel, part.bias, groups=len(part.scale))
    outside = (y.shape[-1] - x.shape[-1]) // 2  # of a branch that is smaller than the kernel
    return F.pad(y, (-outside,) * 4)


def at_random(module: nn.Module) -> nn.Module:
    """With every weight of the same order, so that no branch is lost beside the others."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def conv(branches: tuple[Any, ...], ends: tuple[int, int] = (4, 4), side: int = 3) -> BranchedConv2d:
    module = BranchedConv2d(*ends, branches, 1.5, merged=False, side=side).double()
    at_random(module)
    return module


@pytest.mark.parametrize("ends", [(4, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("side", [3, 5])
def test_a_branch_has_the_output_and_the_gradients_of_its_parts_up_to_the_border(
    name: str, ends: tuple[int, int], side: int
) -> None:
    branches = ("3x3", name) if name not in SPATIAL else (name,)
    module = conv(branches, ends, side)
    assert module.branches == (branches if name != "identity" or ends[0] == ends[1] else ("3x3",))
    x = torch.randn(2, ends[0], 6, 7, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, ends[1], 6, 7, dtype=torch.float64)
    outputs = module(x), sum(one_by_one(module, branch, x) for branch in module.branches)
    assert torch.allclose(*outputs, rtol=0, atol=1e-12)
    wanted = [x, *module.parameters()]
    given, expected = (torch.autograd.grad((output * direction).sum(), wanted) for output in outputs)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-10) for one, other in zip(given, expected, strict=True))


@torch.no_grad()
def test_every_combination_merges_exactly() -> None:
    x, everything = torch.randn(1, 4, 5, 6, dtype=torch.float64), conv(BRANCHES)
    outputs, state = {branch: one_by_one(everything, branch, x) for branch in BRANCHES}, everything.state_dict()
    for branches in COMBINATIONS:
        module = BranchedConv2d(4, 4, branches, 1.5, merged=False).double()
        module.load_state_dict({key: state[key] for key in module.state_dict()})
        expected = sum(outputs[branch] for branch in branches)
        assert (module(x) - expected).abs().max() <= 1e-12 * expected.abs().max(), branches
        module.float().merge()
        assert [*module.state_dict()] == ["weight", "bias"]
        assert (module(x.float()) - expected).abs().max() <= 1e-6 * expected.abs().max(), branches
    assert len(COMBINATIONS) == (2**4 - 1) * 2**5


STUDENTS = ("plainsr", "ecbsr", "sesr", "quicksrnet", "abpn")


def student(name: str, scale: int, **options: Any) -> Any:
    torch.manual_seed(0)
    block = yaml.safe_load((ROOT / f"options/networks/{name}_student.yml").read_text(encoding="utf-8"))
    assert block["type"] == "PlainSR"
    return build_network({**block, "upscale": scale, **options}).eval()


def by_hand(network: PlainSR, x: Tensor) -> Tensor:
    """The network in plain steps, of kernels in float64."""
    features = shallow = network.conv_first.act(_convolved(network.conv_first.conv, x))
    for stage in network.body:
        features = stage.act(_convolved(stage.conv, features.clone()))
    features = _convolved(network.conv_last, features + shallow if network.body_residual else features)
    y = F.pixel_shuffle(features, network.upscale)
    y = y + F.interpolate(x, scale_factor=network.upscale, mode="nearest") if network.residual else y
    return y.clip(0, 1) if network.clip else y


def _convolved(module: BranchedConv2d, x: Tensor) -> Tensor:
    return sum((one_by_one(module, branch, x) for branch in module.branches), torch.zeros(()))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_the_students_are_what_their_papers_say_at_every_scale(name: str, scale: int) -> None:
    network = student(name, scale).double()
    x = torch.rand(2, 3, 8, 7, dtype=torch.float64)
    expected = by_hand(network, x)
    assert torch.allclose(network(x), expected, rtol=0, atol=1e-12)
    single = merge(network.float())
    # float32's own rounding in seven convolutions
    assert (single(x.float()) - expected).abs().max() <= 3e-6 * max(1, expected.abs().max())
    assert sum(isinstance(module, nn.Conv2d) for module in single.modules()) == 0
    assert not any("." in key.split("conv.")[-1] for key in single.state_dict() if ".conv." in key)


@pytest.mark.parametrize("branches", [["3x3"], ["3x3", "1x1", "identity"]], ids=str)
def test_identity_initialisation_passes_the_image_on(branches: list[str]) -> None:
    network = student("quicksrnet", 3, branches=branches)
    x = torch.rand(1, 3, 6, 7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, BranchedConv2d):
                plain = module.get_parameter("3x3.0.weight")
                center = plain[..., 1, 1].round()  # without the random numbers around 0 and 1
                plain.zero_()[..., 1, 1] = center
                for key, parameter in module.named_parameters():
                    if key != "3x3.0.weight":
                        parameter.zero_()
        if "identity" not in branches:
            assert torch.equal(network(x), F.interpolate(x, scale_factor=3, mode="nearest"))
    assert student("quicksrnet", 3, merged=True).conv_last.weight[:, 0, 1, 1].sum() > 8


@pytest.mark.parametrize("merged", [False, True], ids=["branches", "merged"])
@pytest.mark.parametrize(
    "branches", [*((name,) for name in SPATIAL), tuple(name for name in BRANCHES if name != "identity")], ids=str
)
@torch.no_grad()
def test_initial_weights_keep_the_variance_of_noise(branches: tuple[str, ...], merged: bool) -> None:
    torch.manual_seed(0)
    module = BranchedConv2d(32, 32, branches, 2.0, merged).double()
    module.rescale(2**0.5)
    found = module(torch.randn(1, 32, 200, 200, dtype=torch.float64))[..., 1:-1, 1:-1]
    assert found.var() == pytest.approx(2.0, rel=0.05)
    assert module.kernel()[1].abs().max() == 0


@pytest.mark.parametrize("name", ["plainsr", "ecbsr", "sesr", "abpn"])
def test_features_do_not_fade_and_training_leaves_the_enlarged_input(name: str) -> None:
    """With PyTorch's own initial weights they halve with each convolution, and the network stays at its input."""
    network = student(name, 2).train()
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(8, 3, 12, 12, generator=generator)
    hr = F.interpolate(coarse, size=(48, 48), mode="bicubic").clip(0, 1)
    lq = F.interpolate(hr, scale_factor=0.5, mode="bicubic", antialias=True).clip(0, 1)
    with torch.no_grad():
        features = network.conv_first(lq)
        spread = features.std()
        for stage in network.body:
            features = stage(features.clone())
        assert 0.3 < features.std() / spread < 4
    enlarged = F.l1_loss(F.interpolate(lq, scale_factor=2, mode="nearest"), hr).item()
    optimizer = torch.optim.Adam(network.parameters(), 5e-4, betas=(0.9, 0.99))
    for _ in range(60):
        loss = F.l1_loss(network(lq), hr)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * enlarged


def test_values_beyond_the_clip_have_a_gradient_in_training() -> None:
    network = student("abpn", 2)
    with torch.no_grad():
        network.conv_last.get_parameter("3x3.0.bias").fill_(2.0)
    x = torch.rand(1, 3, 6, 6)
    assert network(x).max() == 1
    output = network.train()(x)
    assert output.max() > 2
    output.mean().backward()
    assert network.conv_last.get_parameter("3x3.0.bias").grad.abs().min() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ["1x1", "identity"]}, "branches: has none that learns 3x3 kernels: give one of 3x3, 1x1-3x3"),
        ({"branches": ["3x3", "5x5"]}, "branches"),
        ({"branches": ["1x1-3x3"], "identity_init": True}, "identity_init: needs the branch 3x3"),
        ({"num_out_ch": 1}, "num_out_ch: 1 is not num_in_ch 3, but residual passes the input on: set false"),
        ({"outer_kernel": 4}, "outer_kernel"),
        ({"expansion": 0}, "expansion"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message) as raised:
        build_network({"type": "PlainSR", **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_a_checkpoint_says_which_student_it_is(name: str, merged: bool, tmp_path: Path) -> None:
    network = student(name, 2)
    block = yaml.safe_load((ROOT / f"options/networks/{name}_student.yml").read_text(encoding="utf-8"))
    block = {**block, "upscale": 2, "merged": merged, "branches": [*reversed(block["branches"])]}
    network = merge(network) if merged else network
    torch.save({"params": network.state_dict(), "network": {**block, "scale": 2}}, tmp_path / "net.pth")
    loaded = load_pretrained(tmp_path / "net.pth")
    x = torch.rand(1, 3, 9, 8)
    assert loaded.block == block and loaded.layout == "ours"
    assert torch.equal(loaded.network(x), network(x))
    found = recognise(network.state_dict())
    assert found is not None and found.options["merged"] is merged
    if not merged:
        assert set(found.options["branches"]) == set(block["branches"])
    torch.save(network.state_dict(), tmp_path / "bare.pth")
    load_pretrained(tmp_path / "bare.pth").network.load_state_dict(network.state_dict())


def ecbsrs_keys(network: PlainSR) -> dict[str, Tensor]:
    """The weights as ECBSR's authors name them, with what has no effect there, too."""
    parts = {"3x3.0.weight": "conv3x3.weight", "3x3.0.bias": "conv3x3.bias"}
    parts |= {f"1x1-3x3.{n}.{kind}": f"conv1x1_3x3.{kind[0].replace('w', 'k')}{n}" for n in (0, 1) for kind in _KINDS}
    for ours, theirs in (("sobel_x", "sbx"), ("sobel_y", "sby"), ("laplacian", "lpl")):
        parts |= {f"{ours}.0.weight": f"conv1x1_{theirs}.k0", f"{ours}.1.scale": f"conv1x1_{theirs}.scale"}
        parts |= {f"{ours}.1.bias": f"conv1x1_{theirs}.bias"}
    state = {}
    for number, stage in enumerate((network.conv_first, *network.body, network.conv_last)):
        for key, value in getattr(stage, "conv", stage).state_dict().items():
            value = value.view(-1, 1, 1, 1) if key.endswith("scale") else value
            state[f"backbone.{number}.{parts[key]}"] = value
            if key.endswith("scale"):
                at = f"backbone.{number}.{parts[key].removesuffix('.scale')}"
                state |= {f"{at}.b0": torch.randn(len(value)), f"{at}.mask": torch.zeros(len(value), 1, 3, 3)}
        if hasattr(stage, "act"):
            state[f"backbone.{number}.act.weight"] = stage.act.weight
    return state


_KINDS = ("weight", "bias")


@pytest.mark.parametrize("colours", [1, 3])
@torch.no_grad()
def test_ecbsrs_files_are_taken_with_their_branches_and_without(colours: int) -> None:
    network = at_random(student("ecbsr", 2, num_in_ch=colours, num_out_ch=colours, expansion=1.5))
    x = torch.rand(1, colours, 9, 8)
    state = ecbsrs_keys(network)
    found = recognise(state)
    assert found is not None and found.layout == "ECBSR's" and found.options["expansion"] == 1.5
    taken = build_network(found.options).eval()
    taken.load_state_dict(found.state)
    assert torch.equal(taken(x), network(x))
    single = merge(network)
    plain = {}
    for number, stage in enumerate((single.conv_first, *single.body, single.conv_last)):
        module = getattr(stage, "conv", stage)
        plain |= {f"backbone.{number}.conv3x3.{kind}": getattr(module, kind) for kind in _KINDS}
        plain |= {f"backbone.{number}.act.weight": stage.act.weight} if hasattr(stage, "act") else {}
    found = recognise(plain)
    assert found is not None and found.options["merged"]
    shipped = build_network(found.options).eval()
    shipped.load_state_dict(found.state)
    assert torch.equal(shipped(x), single(x))


def aimets_keys(network: PlainSR, *, last: str) -> dict[str, Tensor]:
    """Merged weights as the AIMET model zoo names QuickSRNet's and ABPN's."""
    convolutions = [network.conv_first.conv, *(stage.conv for stage in network.body), network.conv_last]
    names = [f"cnn.{2 * number}" for number in range(len(convolutions) - 1)] + [last]
    state = {f"{n}.{kind}": getattr(c, kind) for n, c in zip(names, convolutions, strict=True) for kind in _KINDS}
    if network.residual:
        weight = torch.eye(3).repeat_interleave(network.upscale**2, 0)[..., None, None]
        state |= {"anchor.net.weight": weight, "anchor.net.bias": torch.zeros(len(weight))}
    return state


@pytest.mark.parametrize(
    ("name", "last", "options"),
    [
        ("quicksrnet", "conv_last", {}),
        ("quicksrnet", "conv_last", {"residual": True}),
        ("abpn", "cnn.12", {"clip": False}),
    ],
)
@torch.no_grad()
def test_quicksrnets_and_abpns_files_are_taken(name: str, last: str, options: dict[str, Any]) -> None:
    network = at_random(merge(student(name, 3, **options)))
    state, x = aimets_keys(network, last=last), torch.rand(1, 3, 9, 8)
    found = recognise(state)
    assert found is not None and found.layout == "AIMET's QuickSRNet or ABPN" and found.scale == 3
    taken = build_network(found.options).eval()
    taken.load_state_dict(found.state)
    assert torch.equal(taken(x), network(x)) and network(x).std() > 0.01
    if network.residual:
        with pytest.raises(UnsupportedWeights, match="convolution on the input was trained"):
            recognise({**state, "anchor.net.bias": torch.ones(27)})


@pytest.mark.parametrize("collapsed", [False, True])
@torch.no_grad()
def test_sesrs_files_are_taken(collapsed: bool) -> None:
    network = student("sesr", 2)
    x, state = torch.rand(1, 3, 9, 8), {}
    names = ["conv_first", *(f"residual_block.{number}" for number in range(5)), "conv_last"]
    convolutions = [network.conv_first.conv, *(stage.conv for stage in network.body), network.conv_last]
    for convolution in convolutions:  # theirs has no bias inside
        convolution.get_parameter("3x3-1x1.0.bias").zero_()
    expected = network(x)
    for name, convolution in zip(names, convolutions, strict=True):
        if collapsed:
            convolution.merge()
            state |= {f"{name}.conv_expand.{kind}": getattr(convolution, kind) for kind in _KINDS}
        else:
            expand, squeeze = convolution.get_submodule("3x3-1x1")
            state |= {f"{name}.conv_expand.weight": expand.weight}
            state |= {f"{name}.conv_squeeze.{kind}": getattr(squeeze, kind) for kind in _KINDS}
    weight = torch.eye(3).repeat_interleave(4, 0)[..., None, None]
    found = recognise({**state, "anchor.net.weight": weight, "anchor.net.bias": torch.zeros(12)})
    assert found is not None and found.layout == "AIMET's SESR" and found.options["outer_kernel"] == 5
    taken = build_network(found.options).eval()
    taken.load_state_dict(found.state)
    assert torch.allclose(taken(x), expected, rtol=0, atol=1e-5)
