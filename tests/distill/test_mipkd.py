"""MiPKD, against the paper's equations written out in float64, and what its random choices are like."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, context, kd_model, trained
from torch import nn

from basicsr.distill.base import NetworkPair, NetworkView
from basicsr.distill.mipkd import MiPKD, mixing_mask, tossed_coins
from basicsr.models.kd_model import KDModel
from basicsr.utils import randomness
from basicsr.utils.errors import OptionsError
from basicsr.utils.precision import Precision

RCAN = {**STUDENT, "type": "RCAN", "num_group": 2, "num_block": 1, "squeeze_factor": 1}
SWINIR = {
    "type": "SwinIR", "upscale": 2, "img_size": 8, "window_size": 4, "embed_dim": 8, "depths": [2, 1], "mlp_ratio": 2.0,
    "num_heads": [2, 2], "upsampler": "pixelshuffledirect", "drop_path_rate": 0.0,
}  # fmt: skip
DEEPER = {
    "EDSR": TEACHER,
    "RCAN": {**RCAN, "num_feat": 12, "num_group": 3},
    "SwinIR": {**SWINIR, "embed_dim": 12, "depths": [1, 2, 1], "num_heads": [2, 2, 2]},
}
PAIRS = {
    "EDSR": (STUDENT, DEEPER["EDSR"]),
    "EDSR of one width": (STUDENT, {**STUDENT, "num_block": 5}),
    "RCAN": (RCAN, DEEPER["RCAN"]),
    "SwinIR": (SWINIR, DEEPER["SwinIR"]),
    "EDSR from RCAN": (STUDENT, DEEPER["RCAN"]),
}
RUN_SEED = 5  # that of support.distillation.kd_model


def build(pair: str = "EDSR", dtype: torch.dtype = torch.float64, **options: Any) -> KDModel:
    student, teacher = PAIRS[pair]
    return kd_model({"method": MiPKD(**options)}, student=student, teacher=teacher, dtype=dtype)


def small_batch(size: int = 6):
    return batch(size=size, dtype=torch.float64)


def drawn_routes(iteration: int, positions: int) -> list[str | None]:
    """What the step's generator gives: pairs (D, R)."""
    generator = randomness.generator(randomness.sample_seed(RUN_SEED, iteration), "routes of the block prior mixer")
    return [("student" if r else "teacher") if d else None for d, r in generator.integers(0, 2, size=(positions, 2))]


def iteration_with(*wanted: str | None) -> int:
    return next(i for i in itertools.count(1) if drawn_routes(i, len(wanted)) == list(wanted))


# The equations, by hand.


def convolve(image: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """(B, C, H, W) with zeros around it, correlated with the layer's kernels."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    around, (height, width) = weight.shape[-1] // 2, image.shape[-2:]
    padded = np.pad(image, ((0, 0), (0, 0), (around, around), (around, around)))
    result = np.zeros((len(image), len(weight), height, width)) + bias[:, None, None]
    for dy, dx in np.ndindex(weight.shape[2:]):
        result += np.einsum("oc,bchw->bohw", weight[:, :, dy, dx], padded[..., dy : dy + height, dx : dx + width])
    return result


def two_layers(image: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    return convolve(np.maximum(convolve(image, layers[0]), 0), layers[2])


def edsr_features(network: nn.Module, lq: torch.Tensor) -> list[torch.Tensor]:
    """The input of the body, then the output of each of its blocks."""
    features = [network.conv_first((lq - network.mean) * network.img_range)]
    for block in network.body:
        features.append(block(features[-1]))
    return features


def edsr_rest(network: nn.Module, features: np.ndarray, first: int, lq: torch.Tensor) -> np.ndarray:
    x = torch.from_numpy(features)
    for block in network.body[first:]:
        x = block(x)
    x = network.conv_after_body(x) + edsr_features(network, lq)[0]
    return (network.conv_last(network.upsample(x)) / network.img_range + network.mean).detach().numpy()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).sum() / one.size)


def by_hand(model: KDModel, step, iteration: int, *, starts, probability=0.5, truth=0.5) -> dict[str, float]:
    """Eqs. 3 to 5 and 8, summed over the positions as eq. 9 does; `starts`: after how many blocks each position is."""
    term, student, teacher = model.terms["method"], model.network, model.teacher.network
    totals = {"l_feat": 0.0, "l_ae": 0.0, "l_block": 0.0}
    ways = drawn_routes(iteration, len(starts))
    for k, ((own_start, other_start), way) in enumerate(zip(starts, ways, strict=True)):
        own = edsr_features(student, step.lq)[own_start].detach().numpy()
        other = edsr_features(teacher, step.lq)[other_start].detach().numpy()
        space = term.spaces[k]
        z_student, z_teacher = two_layers(own, space.encode_student), two_layers(other, space.encode_teacher)
        mask = np.stack([image_mask(int(seed), k, z_student.shape[1:], probability) for seed in step.seeds])
        enhanced = two_layers(z_student * (1 - mask) + z_teacher * mask, space.decode)
        totals["l_feat"] += distance(enhanced, other)
        totals["l_ae"] += distance(two_layers(z_teacher, space.decode), other)
        if way is None:
            continue
        to_width = (term.to_student if way == "student" else term.to_teacher)[k]
        going_on = convolve(enhanced, to_width) if isinstance(to_width, nn.Conv2d) else enhanced
        network, first = (student, own_start) if way == "student" else (teacher, other_start)
        image = edsr_rest(network, going_on, first, step.lq)
        image_teacher = teacher(step.lq).numpy()
        totals["l_block"] += (1 - truth) * distance(image, image_teacher) + truth * distance(image, step.gt.numpy())
    return totals


def image_mask(seed: int, position: int, shape: tuple[int, ...], probability: float) -> np.ndarray:
    purpose = f"mask of the feature prior mixer {position}"
    generator = torch.Generator().manual_seed(randomness.derived_seed(seed, purpose))
    return (torch.rand(shape, generator=generator) < probability).double().numpy()


@pytest.mark.parametrize("pair", ["EDSR", "EDSR of one width"])
@pytest.mark.parametrize("ways", [("student", "teacher"), ("teacher", "student"), (None, "teacher"), (None, None)])
def test_the_parts_are_the_equations(pair, ways):
    model, step, iteration = build(pair, positions=2), small_batch(), iteration_with(*ways)
    blocks = PAIRS[pair][1]["num_block"]
    expected = by_hand(model, step, iteration, starts=[(1, (blocks + 1) // 2), (2, blocks)])
    output = model(step, iteration)
    assert {name: part.item() for name, part in output.parts.items()} == pytest.approx(expected, rel=1e-10)
    weighted = expected["l_feat"] + expected["l_ae"] + 0.1 * expected["l_block"]
    assert output.total.item() == pytest.approx(weighted, rel=1e-10)
    assert (expected["l_block"] == 0) == (ways == (None, None))


def test_the_options_numbers_are_where_the_equations_have_them():
    options = {"mask_probability": 0.2, "ground_truth_share": 0.9, "latent_channels": 7, "positions": 1}
    model = build(**options, feature_weight=3.0, autoencoder_weight=0.5, block_weight=2.0)
    step, iteration = small_batch(), iteration_with("teacher")
    assert model.terms["method"].spaces[0].decode[0].in_channels == 7
    expected = by_hand(model, step, iteration, starts=[(2, 3)], probability=0.2, truth=0.9)
    output = model(step, iteration)
    assert {name: part.item() for name, part in output.parts.items()} == pytest.approx(expected, rel=1e-10)
    weighted = 3 * expected["l_feat"] + 0.5 * expected["l_ae"] + 2 * expected["l_block"]
    assert output.total.item() == pytest.approx(weighted, rel=1e-10)


@pytest.mark.parametrize("way", ["student", "teacher"])
@pytest.mark.parametrize("arch", DEEPER)
@pytest.mark.parametrize("size", [8, 6])  # SwinIR extends 6 to 8
def test_between_equal_networks_the_features_go_on_as_in_the_network_itself(arch, way, size):
    network = DEEPER[arch]
    method = MiPKD(encoder="none", positions=3)
    model = kd_model({"method": method}, student=network, teacher=network, dtype=torch.float64)
    model.network.load_state_dict(model.teacher.network.state_dict())
    step = small_batch(size)
    parts = model(step, iteration_with(way, way, way)).parts
    alone = (model.teacher(step.lq).double() - step.gt).abs().mean().item()
    assert parts["l_feat"].item() == pytest.approx(0, abs=1e-12)
    assert parts["l_block"].item() == pytest.approx(3 * 0.5 * alone, rel=1e-9)


def coins_of(iteration: int, positions: int) -> list[tuple[int, int]]:
    """D and R of each position."""
    generator = randomness.generator(randomness.sample_seed(RUN_SEED, iteration), "routes of the block prior mixer")
    return [(int(d), int(r)) for d, r in generator.integers(0, 2, size=(positions, 2))]


@pytest.mark.parametrize("pair", ["EDSR", "EDSR of one width"])
@pytest.mark.parametrize("sides", [(1, 0, 1), (0, 1, 0), (1, 1, 0), (0, 0, 0)])
def test_with_a_coin_for_each_block_features_change_network_where_their_coins_do(pair, sides):
    """By hand: the features of the first of three positions, all others dropped, part by part."""
    wanted = [(1, sides[0]), (0, sides[1]), (0, sides[2])]
    iteration = next(i for i in itertools.count(1) if coins_of(i, 3) == wanted)
    model, step = build(pair, positions=3, feature_mixer=False, coins="block"), small_batch()
    term, student, teacher = model.terms["method"], model.network, model.teacher.network
    starts = {1: [-(-2 * k // 3) for k in (1, 2, 3)], 0: [-(-len(teacher.body) * k // 3) for k in (1, 2, 3)]}
    network = {1: student, 0: teacher}
    x = edsr_features(student, step.lq)[starts[1][0]]
    x = (term.to_student if sides[0] else term.to_teacher)[0](x)
    for part in (1, 2):
        before, after = sides[part - 1], sides[part]
        for block in network[before].body[starts[before][part - 1] : starts[before][part]]:
            x = block(x)
        if before != after:
            x = term.crossings[str(part)]["student" if after else "teacher"](x)
    last = network[sides[2]]
    image = edsr_rest(last, x.detach().numpy(), len(last.body), step.lq)
    expected = 0.5 * distance(image, teacher(step.lq).numpy()) + 0.5 * distance(image, step.gt.numpy())
    assert model(step, iteration).parts["l_block"].item() == pytest.approx(expected, rel=1e-10)


def test_with_coins_that_agree_both_ways_to_toss_them_give_one_loss():
    wanted = [(1, 1), (1, 1), (1, 1)]
    iteration = next(i for i in itertools.count(1) if coins_of(i, 3) == wanted)
    models = [build(positions=3, coins=coins) for coins in ("position", "block")]
    own = models[0].terms["method"].state_dict()
    models[1].terms["method"].load_state_dict(own, strict=False)
    models[1].network.load_state_dict(models[0].network.state_dict())
    models[1].teacher.network.load_state_dict(models[0].teacher.network.state_dict())
    first, second = (model(small_batch(), iteration).parts for model in models)
    assert second == first


def test_the_autoencoders_loss_may_end_with_the_initial_stage():
    model, always = build(autoencoder_until=5), build()
    for iteration in (1, 5, 6, 7):
        parts, expected = model(small_batch(), iteration).parts, always(small_batch(), iteration).parts
        assert parts["l_ae"].item() == (expected["l_ae"].item() if iteration <= 5 else 0)
        assert expected["l_ae"] > 0 and parts["l_feat"] == expected["l_feat"]
    model(small_batch(), 6).total.backward()
    assert all(parameter.grad is not None for parameter in trained(model).values())


# Random choices.


def mask_of(kind="random", shape=(4, 16, 24, 24), share=0.5, purpose="p", seeds=(), features=None, **layout):
    z_student, z_teacher = features if features is not None else torch.randn(2, *shape)
    step = context(seeds=tuple(seeds) or tuple(range(len(z_student))))
    return mixing_mask(kind, z_student.to(**layout), z_teacher.to(**layout), share, step, purpose)


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_random_masks_are_fair_and_independent_in_every_direction(share):
    mask = mask_of(share=share).double()
    deviation = np.sqrt(share * (1 - share))
    assert mask.mean().item() == pytest.approx(share, abs=5 * deviation / np.sqrt(mask.numel()))
    centred = (mask - share) / deviation
    for axis in range(4):
        for step in (1, 2):
            size = mask.shape[axis] - step
            product = centred.narrow(axis, 0, size) * centred.narrow(axis, step, size)
            assert abs(product.mean().item()) < 5 / np.sqrt(product.numel()), (axis, step)
    other = (mask_of(share=share, purpose="another position").double() - share) / deviation
    assert abs((centred * other).mean().item()) < 5 / np.sqrt(mask.numel())


def test_an_images_mask_depends_on_its_own_seed_alone():
    both, alone = mask_of(seeds=(3, 8), shape=(2, 5, 6, 7)), mask_of(seeds=(8,), shape=(1, 5, 6, 7))
    assert torch.equal(both[1:], alone)


def test_random_masks_leave_features_in_their_layout():
    for layout in (torch.channels_last, torch.contiguous_format):
        mask = mask_of(memory_format=layout)
        features = torch.randn(4, 16, 24, 24).contiguous(memory_format=layout)
        assert torch.where(mask, features, features).is_contiguous(memory_format=layout)
    assert torch.equal(mask_of(memory_format=torch.channels_last), mask_of(memory_format=torch.contiguous_format))


def test_the_grid_is_a_chequerboard():
    mask = mask_of("grid", shape=(2, 3, 4, 5)).expand(2, 3, 4, 5)
    for b, c, y, x in np.ndindex(2, 3, 4, 5):
        assert mask[b, c, y, x].item() == ((y + x) % 2 == 0)


def test_cosine_takes_the_teacher_where_the_two_are_least_alike():
    features = torch.randn(2, 2, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = mask_of("cosine", features=features, share=0.3)
    assert mask.shape == (2, 1, 4, 5)
    own, other = features.numpy()
    for b in range(2):
        cosines = {}
        for y, x in np.ndindex(4, 5):
            a, c = own[b, :, y, x], other[b, :, y, x]
            cosines[y, x] = a @ c / np.sqrt((a @ a) * (c @ c))
        chosen = set(sorted(cosines, key=cosines.get)[:6])  # 0.3 of 20
        assert {tuple(place) for place in mask[b, 0].nonzero().tolist()} == chosen


def test_cka_takes_the_teachers_channels_where_the_two_are_least_alike():
    features = torch.randn(2, 2, 6, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = mask_of("cka", features=features)
    assert mask.shape == (2, 6, 1, 1)
    centring = np.eye(7) - 1 / 7

    def hsic(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.trace(one @ one.T @ centring @ other @ other.T @ centring))

    own, other = features.numpy()
    for b in range(2):
        pairs = list(zip(own[b], other[b], strict=True))
        alike = [hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y)) for x, y in pairs]
        assert mask[b, :, 0, 0].nonzero().flatten().tolist() == sorted(np.argsort(alike)[:3])


def test_features_without_any_pattern_give_masks_all_the_same():
    for kind in ("cosine", "cka"):
        mask = mask_of(kind, features=torch.zeros(2, 1, 4, 6, 6)).expand(1, 4, 6, 6)
        assert mask.double().mean() == 0.5


def test_routes_are_fair_and_independent_coins_that_every_rank_tosses_alike():
    steps = [dataclasses.replace(context(batch=1), seed=7, iteration=i) for i in range(1, 4001)]
    drawn = np.array([[(kept, side == "student") for kept, side in tossed_coins(step, 3)] for step in steps])
    kept = drawn[..., 0].astype(float)
    assert kept.mean(0) == pytest.approx(0.5, abs=0.03)
    for k in range(3):
        through_student = drawn[drawn[:, k, 0], k, 1]
        assert through_student.mean() == pytest.approx(0.5, abs=0.04)
    assert np.corrcoef(kept.T)[~np.eye(3, dtype=bool)] == pytest.approx(0, abs=0.06)
    assert np.corrcoef(kept[1:, 0], kept[:-1, 0])[0, 1] == pytest.approx(0, abs=0.06)
    other_rank = dataclasses.replace(steps[41], seeds=torch.tensor([123]))
    assert tossed_coins(other_rank, 3) == tossed_coins(steps[41], 3)


# Gradients.


def gradients(model: KDModel, iteration: int) -> dict[str, bool]:
    """Of each trained parameter, whether the step moves it; and that it has a gradient at all."""
    teacher = model.teacher.network
    before = copy.deepcopy(teacher.state_dict())
    model(small_batch(), iteration).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert all(p.grad is not None for p in trained(model).values())
    return {name: bool(p.grad.abs().sum() > 0) for name, p in trained(model).items()}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("way", ["student", "teacher", None])
def test_what_the_block_mixer_alone_teaches(pair, way):
    model = build(pair, positions=1, feature_weight=0.0, autoencoder_weight=0.0)
    moved = gradients(model, iteration_with(way))
    for name, moves in moved.items():
        part = name.removeprefix("terms.method.").split(".")[0]
        if part == "to_student":
            assert moves == (way == "student"), name
        elif part == "spaces" or name.startswith(("network.body", "network.layers")):
            assert moves == (way is not None), name
        else:
            # The position is the end of the body: what follows in the student is its reconstruction.
            before_body = name.startswith(("network.conv_first", "network.patch_embed"))
            assert moves == (way is not None if before_body else way == "student"), name


@pytest.mark.parametrize("pair", ["EDSR", "RCAN", "SwinIR"])
@pytest.mark.parametrize("way", ["student", "teacher"])
def test_the_gradient_of_the_first_layer_is_the_slope_of_the_block_mixers_loss(pair, way):
    """Through what follows the positions, and, in the student, through its long skip."""
    model = build(pair, positions=2, feature_weight=0.0, autoencoder_weight=0.0, block_weight=1.0)
    step, iteration = small_batch(), iteration_with(way, way)
    model(step, iteration).total.backward()
    first = model.network.conv_first.weight
    direction = torch.randn(first.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Up the slope, lest the random direction lie across it.
    direction = direction / direction.norm() + first.grad / first.grad.norm()
    start, values = first.detach().clone(), []
    for distance_gone in (1e-6, -1e-6):
        with torch.no_grad():
            first.copy_(start + distance_gone * direction)
            values.append(model(step, iteration).total.item())
    slope = (values[0] - values[1]) / 2e-6
    assert (first.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_every_trained_parameter_moves_in_some_step(pair):
    reached: set[str] = set()
    for ways in (("student", "student"), ("teacher", "teacher")):
        model = build(pair, positions=2)
        reached |= {name for name, moves in gradients(model, iteration_with(*ways)).items() if moves}
    assert reached == set(trained(model))


def test_training_teaches_the_decoder_to_bring_the_teachers_features_back():
    model, step = build(dtype=torch.float32, positions=2), batch(size=8)
    optimizer = torch.optim.Adam(trained(model).values(), lr=3e-3)
    history = []
    for iteration in range(1, 61):
        optimizer.zero_grad()
        output = model(step, iteration)
        output.total.backward()
        optimizer.step()
        history.append(output.parts)
    for part in ("l_feat", "l_ae"):
        assert history[-1][part] < 0.5 * history[0][part]


# Ablations.

ABLATIONS: list[dict[str, Any]] = [
    {},
    {"encoder": "mlp"},
    {"encoder": "shared"},
    {"encoder": "none"},
    {"mask": "grid"},
    {"mask": "cosine"},
    {"mask": "cka"},
    {"autoencoder": False},
    {"feature_mixer": False},
    {"block_mixer": False},
    {"latent_channels": 5},
    {"positions": 1},
    {"coins": "block"},
]


@pytest.mark.parametrize("pair", PAIRS)
def test_every_ablation_makes_a_step_and_differs_from_the_others(pair):
    totals, ways = [], iteration_with("teacher", "student")
    for options in ABLATIONS:
        model = build(pair, **{"positions": 2, **options})
        output = model(small_batch(), ways)
        assert output.parts.keys() == model.terms["method"].weights.keys()
        output.total.backward()
        assert torch.isfinite(output.total)
        assert all(parameter.grad is not None for parameter in trained(model).values()), options
        totals.append(round(output.total.item(), 10))
    assert len(set(totals)) == len(ABLATIONS)


def test_the_parts_that_an_ablation_leaves_are_these():
    assert MiPKD().weights == {"l_feat": 1.0, "l_ae": 1.0, "l_block": 0.1}
    assert MiPKD(autoencoder=False).weights.keys() == {"l_feat", "l_block"}
    assert MiPKD(encoder="none").weights.keys() == {"l_feat", "l_block"}
    assert MiPKD(block_mixer=False).weights.keys() == {"l_feat", "l_ae"}
    assert MiPKD(feature_mixer=False).weights.keys() == {"l_block"}


def test_without_the_feature_mixer_the_students_features_go_on_themselves():
    model, step = build(feature_mixer=False, positions=1), small_batch()
    own, teacher = model.network(step.lq), model.teacher(step.lq)
    through_student = model(step, iteration_with("student")).parts["l_block"]
    expected = 0.5 * distance(own.detach().numpy(), teacher.numpy()) + 0.5 * distance(
        own.detach().numpy(), step.gt.numpy()
    )
    assert through_student.item() == pytest.approx(expected, rel=1e-10)

    lifted = convolve(edsr_features(model.network, step.lq)[2].detach().numpy(), model.terms["method"].to_teacher[0])
    image = edsr_rest(model.teacher.network, lifted, 3, step.lq)
    expected = 0.5 * distance(image, teacher.numpy()) + 0.5 * distance(image, step.gt.numpy())
    through_teacher = model(step, iteration_with("teacher")).parts["l_block"]
    assert through_teacher.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("pair", ["EDSR", "EDSR of one width"])
def test_one_shared_encoder_serves_both_and_is_saved_once(pair):
    model, step = build(pair, encoder="shared", positions=1, block_mixer=False), small_batch()
    (space,) = model.terms["method"].spaces
    own = edsr_features(model.network, step.lq)[-1].detach().numpy()
    other = edsr_features(model.teacher.network, step.lq)[-1].detach().numpy()
    lifted = convolve(own, space.lift) if pair == "EDSR" else own
    mask = np.stack([image_mask(int(seed), 0, other.shape[1:], 0.5) for seed in step.seeds])
    mixed = two_layers(lifted, space.encode_teacher) * (1 - mask) + two_layers(other, space.encode_teacher) * mask
    expected = distance(two_layers(mixed, space.decode), other)
    assert model(step, 1).parts["l_feat"].item() == pytest.approx(expected, rel=1e-10)
    layers = 2 + 2 + (1 if pair == "EDSR" else 0)  # the encoder's, the decoder's, the 1x1 convolution
    assert len(model.terms.state_dict()) == 2 * layers


def test_without_encoders_the_students_features_take_the_place_of_the_teachers():
    model, step = build("EDSR of one width", encoder="none", positions=1), small_batch()
    own = edsr_features(model.network, step.lq)[-1].detach().numpy()
    other = edsr_features(model.teacher.network, step.lq)[-1].detach().numpy()
    mask = np.stack([image_mask(int(seed), 0, other.shape[1:], 0.5) for seed in step.seeds])
    assert model(step, 1).parts["l_feat"].item() == pytest.approx(distance((own - other) * (1 - mask), 0 * own))
    assert not list(model.terms.parameters())


# Around it.


def test_the_training_state_holds_the_heads_and_no_network():
    prefixes = {key.split(".")[1] for key in build().terms.state_dict()}
    assert prefixes == {"spaces", "to_student"}
    inside = build().terms["method"]
    assert not any(module in set(inside.modules()) for module in inside._networks.values())


def test_positions_are_the_ends_of_even_parts_of_both_bodies():
    term = build("EDSR of one width", positions=2).terms["method"]
    assert (term.student_taps, term.teacher_taps) == (("body.0", "body.1"), ("body.2", "body.4"))
    assert build("EDSR of one width").terms["method"].student_taps == ("body.0", "body.0", "body.1", "body.1")


def test_a_teacher_in_half_precision_teaches_a_student_in_full():
    half = build(dtype=torch.float32, positions=2)
    half.teacher.precision = Precision("cpu", "bf16")
    step, iteration = batch(size=6), iteration_with("teacher", "student")
    full = build(dtype=torch.float32, positions=2)(step, iteration).parts
    for name, part in half(step, iteration).parts.items():
        assert part.dtype == torch.float32
        assert part.item() == pytest.approx(full[name].item(), rel=0.05)


def test_features_that_fit_into_only_one_network_are_refused():
    model = kd_model({"method": MiPKD()}, student=STUDENT, teacher=DEEPER["SwinIR"])
    assert torch.isfinite(model(batch(size=8), 1).total)
    with pytest.raises(OptionsError, match=r"MiPKD: 'body\.0' of the student gives 6x6 features, 'layers\.0' of the"):
        model(batch(size=6), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 0}, "MiPKD: positions: input should be greater than or equal to 1, got 0"),
        ({"feature_mixer": False, "block_mixer": False}, "feature_mixer: is false, as is block_mixer"),
        ({"mask_probability": 1.0}, "mask_probability: input should be less than 1, got 1.0"),
        ({"ground_truth_share": 1.5}, "ground_truth_share: input should be less than or equal to 1, got 1.5"),
        ({"latent_channels": 0}, "latent_channels: input should be greater than or equal to 1, got 0"),
        (
            {"latent_channels": 8, "encoder": "none"},
            "latent_channels: means nothing to encoder 'none'",
        ),
        (
            {"mask": "grid", "mask_probability": 0.3},
            "mask_probability: is 0.3, but mask 'grid' is half",
        ),
        ({"feature_weight": -1.0}, "feature_weight: input should be greater than or equal to 0, got -1.0"),
        ({"autoencoder_weight": -0.5}, "autoencoder_weight: input should be greater than or equal to 0, got -0.5"),
        ({"block_weight": float("nan")}, "block_weight: input should be a finite number, got nan"),
        ({"autoencoder_until": 0}, "autoencoder_until: input should be greater than or equal to 1, got 0"),
        ({"coins": "stage"}, "MiPKD: coins: input should be 'position' or 'block', got 'stage'"),
        ({"encoder": "vit"}, "MiPKD: encoder: input should be 'conv', 'mlp', 'shared' or 'none', got 'vit'"),
        ({"mask": "noise"}, "MiPKD: mask: input should be 'random', 'grid', 'cosine' or 'cka', got 'noise'"),
    ],
)
def test_mistakes_are_told_in_a_line(options, message):
    with pytest.raises(OptionsError, match=message) as caught:
        MiPKD(**options)
    assert "\n" not in str(caught.value)


OF_THE_FEATURE_MIXER = {
    "encoder": "mlp", "latent_channels": 8, "autoencoder": False, "mask": "cka", "mask_probability": 0.4,
    "feature_weight": 2.0, "autoencoder_weight": 0.5, "autoencoder_until": 9,
}  # fmt: skip


@pytest.mark.parametrize(
    ("beside", "without", "idle"),
    [
        ("feature_mixer: false", {"feature_mixer": False}, OF_THE_FEATURE_MIXER),
        (
            "block_mixer: false",
            {"block_mixer": False},
            {"block_weight": 0.2, "ground_truth_share": 0.4, "coins": "block"},
        ),
        ("autoencoder: false", {"autoencoder": False}, {"autoencoder_weight": 0.5, "autoencoder_until": 9}),
        ("encoder: none", {"encoder": "none"}, {"autoencoder_weight": 0.5, "autoencoder": False}),
    ],
)
def test_options_that_nothing_reads_are_refused(beside, without, idle):
    MiPKD(**without)
    for name, value in idle.items():
        with pytest.raises(OptionsError) as caught:
            MiPKD(**without, **{name: value})
        assert str(caught.value) == f"MiPKD: {name}: is {value}, without effect beside {beside}; leave {name} out"


def test_a_network_without_stages_is_refused():
    plain = NetworkView("network_g", nn.Conv2d(3, 3, 1))
    with pytest.raises(OptionsError, match="network_g, Conv2d, is not built of a stem, stages"):
        MiPKD().attach(NetworkPair(plain, plain))
