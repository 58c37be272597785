"""Small published networks against references written from their definitions, which work on the bare weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise

State = dict[str, Tensor]
SIZES = ((24, 24), (17, 31), (9, 5))
DIV2K = torch.tensor([0.4488, 0.4371, 0.4040]).double().view(1, 3, 1, 1)


def conv(state: State, key: str, x: Tensor, **options: Any) -> Tensor:
    weight = state[f"{key}.weight"]
    options = {"padding": weight.shape[-1] // 2, **options}
    return F.conv2d(x, weight, state.get(f"{key}.bias"), **options)


def blueprint(state: State, key: str, x: Tensor, **options: Any) -> Tensor:
    spread = conv(state, f"{key}.pw", x)
    return conv(state, f"{key}.dw", spread, groups=spread.shape[1], **options)


def leaky(x: Tensor, slope: float = 0.05) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def contrast_attention(state: State, key: str, x: Tensor) -> Tensor:
    statistic = x.std((2, 3), correction=0, keepdim=True) + x.mean((2, 3), keepdim=True)
    return x * conv(state, f"{key}.conv_du.2", conv(state, f"{key}.conv_du.0", statistic).relu()).sigmoid()


def spatial_attention(state: State, key: str, x: Tensor, convolve: Callable, act: Callable | None) -> Tensor:
    reduced = conv(state, f"{key}.conv1", x)
    # Below 15 pixels, where the authors' code ends in an error, the last row and column are repeated.
    more = [max(15 - side, 0) for side in x.shape[-2:]]
    padded = F.pad(reduced, (0, more[1], 0, more[0]), "replicate")
    low = F.max_pool2d(convolve(state, f"{key}.conv2", padded, stride=2, padding=0), 7, 3)
    if act is None:
        low = convolve(state, f"{key}.conv3", low)
    else:
        low = act(convolve(state, f"{key}.conv3", act(convolve(state, f"{key}.conv_max", low))))
        low = convolve(state, f"{key}.conv3_", low)
    low = F.interpolate(low, x.shape[-2:], mode="bilinear", align_corners=False)
    return x * conv(state, f"{key}.conv4", low + conv(state, f"{key}.conv_f", reduced)).sigmoid()


def imdn(state: State, x: Tensor, scale: int) -> Tensor:
    shallow = features = conv(state, "fea_conv", x)
    outputs = []
    quarter = shallow.shape[1] // 4
    simplified = "c.0.weight" not in state
    for block in ("IMDB1", "IMDB2"):
        passed, kept = features, []
        for number in (1, 2, 3):
            made = leaky(conv(state, f"{block}.c{number}", passed))
            kept.append(made[:, :quarter])
            passed = made[:, quarter:]
        joined = torch.cat([*kept, conv(state, f"{block}.c4", passed)], 1)
        joined = joined if simplified else contrast_attention(state, f"{block}.cca", joined)
        features = features + conv(state, f"{block}.c5", joined)
        outputs.append(features)
    gathered = features if simplified else leaky(conv(state, "c.0", torch.cat(outputs, 1)))
    return F.pixel_shuffle(conv(state, "upsampler.0", conv(state, "LR_conv", gathered) + shallow), scale)


def rfdn(state: State, x: Tensor, scale: int) -> Tensor:
    shallow = features = conv(state, "fea_conv", 255 * x)
    outputs = []
    for block in ("B1", "B2"):
        kept = []
        for number in (1, 2, 3):
            kept.append(leaky(conv(state, f"{block}.c{number}_d", features)))
            features = leaky(conv(state, f"{block}.c{number}_r", features) + features)
        kept.append(leaky(conv(state, f"{block}.c4", features)))
        features = spatial_attention(
            state, f"{block}.esa", conv(state, f"{block}.c5", torch.cat(kept, 1)), conv, F.relu
        )
        outputs.append(features)
    gathered = leaky(conv(state, "c.0", torch.cat(outputs, 1)))
    return F.pixel_shuffle(conv(state, "upsampler.0", conv(state, "LR_conv", gathered) + shallow), scale) / 255


def rlfn(state: State, x: Tensor, scale: int) -> Tensor:
    shallow = features = conv(state, "conv_1", 255 * x)
    for block in ("block_1", "block_2"):
        inner = features
        for number in (1, 2, 3):
            inner = leaky(conv(state, f"{block}.c{number}_r", inner))
        features = spatial_attention(state, f"{block}.esa", conv(state, f"{block}.c5", inner + features), conv, None)
    return F.pixel_shuffle(conv(state, "upsampler.0", conv(state, "conv_2", features) + shallow), scale) / 255


def bsrn(state: State, x: Tensor, scale: int) -> Tensor:
    shallow = features = blueprint(state, "fea_conv", torch.cat([x] * 4, 1))
    outputs = []
    for block in ("B1", "B2"):
        kept, inner = [], features
        for number in (1, 2, 3):
            kept.append(F.gelu(conv(state, f"{block}.c{number}_d", inner)))
            inner = F.gelu(blueprint(state, f"{block}.c{number}_r", inner) + inner)
        kept.append(F.gelu(blueprint(state, f"{block}.c4", inner)))
        joined = conv(state, f"{block}.c5", torch.cat(kept, 1))
        joined = spatial_attention(state, f"{block}.esa", joined, blueprint, F.gelu)
        features = contrast_attention(state, f"{block}.cca", joined) + features
        outputs.append(features)
    deep = blueprint(state, "c2", F.gelu(conv(state, "c1", torch.cat(outputs, 1))))
    return F.pixel_shuffle(conv(state, "upsampler.upsampleOneStep.0", deep + shallow), scale)


def lkdn(state: State, x: Tensor, scale: int) -> Tensor:
    shallow = features = blueprint(state, "fea_conv", torch.cat([x] * 4, 1))
    outputs = []
    for block in ("B1", "B2"):
        kept, inner = [], features
        for number in (1, 2, 3):
            kept.append(F.gelu(conv(state, f"{block}.c{number}_d", inner)))
            inner = F.gelu(blueprint(state, f"{block}.c{number}_r", inner))
        kept.append(F.gelu(blueprint(state, f"{block}.c4", inner)))
        joined = conv(state, f"{block}.c5", torch.cat(kept, 1))
        width = joined.shape[1]
        gate = conv(state, f"{block}.atten.depthwise", conv(state, f"{block}.atten.pointwise", joined), groups=width)
        gate = conv(state, f"{block}.atten.depthwise_dilated", gate, padding=6, groups=width, dilation=3)
        made = conv(state, f"{block}.c6", joined * gate)
        variance, mean = torch.var_mean(made, 1, correction=0, keepdim=True)
        weight, bias = (state[f"{block}.pixel_norm.{kind}"].view(1, -1, 1, 1) for kind in ("weight", "bias"))
        features = (made - mean) / (variance + 1e-5).sqrt() * weight + bias + features
        outputs.append(features)
    deep = blueprint(state, "c2", F.gelu(conv(state, "c1", torch.cat(outputs, 1))))
    return F.pixel_shuffle(conv(state, "upsampler.0", deep + shallow), scale)


def pan(state: State, x: Tensor, scale: int) -> Tensor:
    shallow = features = conv(state, "conv_first", x)
    for block in ("SCPA_trunk.0", "SCPA_trunk.1"):
        plain = conv(state, f"{block}.k1.0", leaky(conv(state, f"{block}.conv1_a", features), 0.2))
        other = leaky(conv(state, f"{block}.conv1_b", features), 0.2)
        gate = conv(state, f"{block}.PAConv.k2", other).sigmoid()
        gated = conv(state, f"{block}.PAConv.k4", conv(state, f"{block}.PAConv.k3", other) * gate)
        joined = torch.cat([leaky(plain, 0.2), leaky(gated, 0.2)], 1)
        features = features + conv(state, f"{block}.conv3", joined)
    features = conv(state, "trunk_conv", features) + shallow
    for number in (1, 2) if scale == 4 else (1,):
        step = 2 if scale == 4 else scale
        features = features.repeat_interleave(step, 2).repeat_interleave(step, 3)
        features = conv(state, f"upconv{number}", features)
        features = leaky(features * conv(state, f"att{number}.conv", features).sigmoid(), 0.2)
        features = leaky(conv(state, f"HRconv{number}", features), 0.2)
    return conv(state, "conv_last", features) + F.interpolate(x, scale_factor=scale, mode="bilinear")


def carn(state: State, x: Tensor, scale: int) -> Tensor:
    groups = state["entry.weight"].shape[0] // state["b1.b1.body.0.weight"].shape[1]
    shared = "b1.b2.body.0.weight" not in state

    def block(key: str, x: Tensor) -> Tensor:
        inner = conv(state, f"{key}.body.2", conv(state, f"{key}.body.0", x, groups=groups).relu(), groups=groups)
        inner = conv(state, f"{key}.body.4", inner.relu()) if shared else inner
        return (inner + x).relu()

    def cascade(key: str, x: Tensor, part: Callable) -> Tensor:
        joined, features = x, x
        for number in (1, 2, 3):
            joined = torch.cat([joined, part(number, features)], 1)
            features = conv(state, f"{key}c{number}.body.0", joined).relu()
        return features

    def inner(number: int, x: Tensor) -> Tensor:
        return cascade(f"b{number}.", x, lambda part, y: block(f"b{number}.b{1 if shared else part}", y))

    features = cascade("", conv(state, "entry", x - DIV2K), inner)
    branch = "upsample.up.body" if "upsample.up.body.0.weight" in state else f"upsample.up{scale}.body"
    for number, step in ((0, 2), (3, 2)) if scale == 4 else ((0, scale),):
        features = F.pixel_shuffle(conv(state, f"{branch}.{number}", features, groups=groups).relu(), step)
    return conv(state, "exit", features) + DIV2K


FAMILIES: list[tuple[dict[str, Any], Callable[[State, Tensor, int], Tensor]]] = [
    ({"type": "IMDN", "num_feat": 32, "num_block": 2, "upscale": 3}, imdn),
    ({"type": "IMDN", "num_feat": 16, "num_block": 2, "upscale": 2, "simplified": True}, imdn),
    ({"type": "RFDN", "num_feat": 10, "num_block": 2, "upscale": 4}, rfdn),
    ({"type": "RLFN", "num_feat": 10, "mid_channels": 12, "esa_channels": 4, "num_block": 2, "upscale": 2}, rlfn),
    ({"type": "BSRN", "num_feat": 32, "num_block": 2, "upscale": 3}, bsrn),
    ({"type": "LKDN", "num_feat": 10, "num_atten": 8, "num_block": 2, "upscale": 2}, lkdn),
    ({"type": "PAN", "num_feat": 8, "num_up_feat": 6, "num_block": 2, "upscale": 4}, pan),
    ({"type": "PAN", "num_feat": 8, "num_up_feat": 6, "num_block": 2, "upscale": 3}, pan),
    ({"type": "CARN", "num_feat": 8, "upscale": 4}, carn),
    ({"type": "CARN", "num_feat": 8, "upscale": 3, "scales": (2, 3, 4)}, carn),
    ({"type": "CARN", "num_feat": 8, "groups": 2, "shared_blocks": True, "upscale": 2}, carn),
]
NAMES = [f"{options['type']} x{options['upscale']}, {len(options)}" for options, _ in FAMILIES]


def built(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build_network(options).double().eval()


@pytest.mark.parametrize(("options", "reference"), FAMILIES, ids=NAMES)
@torch.no_grad()
def test_outputs_are_those_of_the_definition(options, reference) -> None:
    network = built(options)
    for height, width in SIZES:
        x = torch.rand(2, 3, height, width, dtype=torch.float64)
        expected = reference(network.state_dict(), x, options["upscale"])
        assert expected.shape == (2, 3, height * options["upscale"], width * options["upscale"])
        assert torch.allclose(network(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", [(16, 24), (32, 8)])
@torch.no_grad()
def test_safmn_gives_what_another_implementation_gives(size) -> None:
    import_torchvision()
    from spandrel.architectures.SAFMN import SAFMN as Theirs

    network = build_network({"type": "SAFMN", "num_feat": 8, "num_block": 2, "ffn_scale": 1.5, "upscale": 3}).eval()
    theirs = Theirs(dim=8, n_blocks=2, ffn_scale=1.5, upscaling_factor=3).eval()
    theirs.load_state_dict(network.state_dict())
    x = torch.rand(2, 3, *size)
    assert torch.allclose(network(x), theirs(x), atol=1e-6)


@torch.no_grad()
def test_safmn_pools_into_overlapping_parts_at_other_sizes() -> None:
    network = built({"type": "SAFMN", "num_feat": 4, "num_block": 1, "upscale": 1})
    safm, features = network.feats[0].safm, torch.randn(1, 4, 7, 13, dtype=torch.float64)
    seen = []
    for level in range(4):
        rows, columns = (max(side // 2**level, 1) for side in (7, 13))
        pooled = torch.zeros(1, 1, rows, columns, dtype=torch.float64)
        for row in range(rows):
            for column in range(columns):
                top, left = row * 7 // rows, column * 13 // columns
                bottom, right = -(-(row + 1) * 7 // rows), -(-(column + 1) * 13 // columns)
                pooled[0, 0, row, column] = features[0, level, top:bottom, left:right].max()
        low = safm.mfr[level](pooled)
        index = [torch.arange(side) * count // side for side, count in ((7, rows), (13, columns))]
        seen.append(low[:, :, index[0]][..., index[1]])
    expected = F.gelu(safm.aggr(torch.cat(seen, 1))) * features
    assert torch.allclose(safm(features), expected, atol=1e-9)


def test_a_patch_of_one_colour_gives_finite_gradients() -> None:
    for options in (FAMILIES[0][0], FAMILIES[4][0]):
        network = build_network(options)
        network(torch.zeros(1, 3, 20, 20)).square().sum().backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


@pytest.mark.parametrize("options", [options for options, _ in FAMILIES], ids=NAMES)
def test_a_file_says_how_it_was_built(options) -> None:
    found = recognise(built(options).state_dict())
    assert found is not None
    found = found.at(options["upscale"])
    assert {key: found.options[key] for key in options} == options
    assert found.scale == options["upscale"]


def test_imdn_of_kair_and_rlfn_of_the_challenge_are_converted() -> None:
    imdn_options, rlfn_options = FAMILIES[1][0], FAMILIES[3][0]
    ours = built(imdn_options).state_dict()
    names = {"fea_conv": "model.0", "LR_conv": "model.1.sub.2", "upsampler.0": "model.2"}
    for block in (0, 1):
        names |= {f"IMDB{block + 1}.c{number}": f"model.1.sub.{block}.conv{number}.0" for number in (1, 2, 3)}
        names |= {
            f"IMDB{block + 1}.c4": f"model.1.sub.{block}.conv4",
            f"IMDB{block + 1}.c5": f"model.1.sub.{block}.conv1x1",
        }
    found = recognise({f"{names[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}": value for key, value in ours.items()})
    assert (found.architecture, found.layout, found.options["simplified"]) == ("IMDN", "KAIR", True)
    assert found.state.keys() == ours.keys() and all(torch.equal(found.state[key], ours[key]) for key in ours)

    ours = built(rlfn_options).state_dict()
    theirs = {
        key.replace("conv_1.", "fea_conv.").replace("conv_2.", "LR_conv.").replace("block_", "B"): value
        for key, value in ours.items()
    }
    found = recognise(theirs)
    assert (found.architecture, found.layout, found.options["mid_channels"]) == ("RLFN", "NTIRE 2022", 12)
    assert found.state.keys() == ours.keys() and all(torch.equal(found.state[key], ours[key]) for key in ours)


def test_carn_of_several_scales_with_its_mean_shifts_is_one_file_for_all() -> None:
    options = FAMILIES[9][0]
    network = built(options)
    shifts = {
        "sub_mean.shifter.weight": torch.eye(3)[:, :, None, None],
        "sub_mean.shifter.bias": -DIV2K.flatten().float(),
        "add_mean.shifter.weight": torch.eye(3)[:, :, None, None],
        "add_mean.shifter.bias": DIV2K.flatten().float(),
    }
    found = recognise({**shifts, **network.state_dict()})
    assert found.scales == (2, 3, 4)
    assert (found.options["img_range"], found.options["rgb_mean"]) == (1.0, (0.4488, 0.4371, 0.4040))
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    for scale in found.scales:
        branch = build_network(found.at(scale).options).double()
        branch.load_state_dict(found.state)
        assert torch.allclose(branch(x), carn(network.state_dict(), x, scale), atol=1e-6)
        idle = [name for name, parameter in branch.named_parameters() if not parameter.requires_grad]
        assert idle and all(f"up{scale}." not in name and name.startswith("upsample.up") for name in idle)


@torch.no_grad()
def test_safmnpp_as_defined() -> None:
    network = built({"type": "SAFMNPP", "num_feat": 7, "num_block": 2, "ffn_scale": 1.3, "upscale": 2})
    state, x = network.state_dict(), torch.rand(2, 3, 19, 9, dtype=torch.float64)
    features = conv(state, "to_feat", x)
    for block in ("feats.0", "feats.1"):
        gated, others = conv(state, f"{block}.conv1.proj", features).tensor_split([2], 1)
        seen = conv(state, f"{block}.conv1.dwconv", F.adaptive_max_pool2d(gated, (2, 1)), groups=2)
        gated = F.gelu(F.interpolate(seen, (19, 9), mode="bilinear")) * gated
        joined = conv(state, f"{block}.conv1.out", F.gelu(torch.cat([others, gated], 1)))
        features = features + conv(state, f"{block}.conv2.conv2", F.gelu(conv(state, f"{block}.conv2.conv1", joined)))
    enlarged = F.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(network(x), enlarged + F.pixel_shuffle(conv(state, "to_img.0", features), 2))
    found = recognise(state)
    assert found is not None and int(found.options["ffn_scale"] * 7) == 9 and found.options["num_block"] == 2
