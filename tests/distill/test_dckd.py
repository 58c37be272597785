"""DCKD: both losses against their equations in float64, the history model's schedule, and its negatives."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, context, kd_model, trained
from torch import nn

from basicsr.archs.vqgan_arch import VQGANEncoder
from basicsr.config.load import load_options
from basicsr.data.batch import Batch
from basicsr.distill.base import NetworkPair, NetworkView
from basicsr.distill.csd import SharedCSD
from basicsr.distill.dckd import DCKD, degrade
from basicsr.models.kd_model import KDModel
from basicsr.utils.errors import OptionsError
from basicsr.utils.randomness import generator

OPTIONS = Path(__file__).resolve().parents[2] / "options"

LAMBDA = (0.03125, 0.0625, 0.125, 0.25, 1.0)
NAFNET = {"type": "NAFNet", "width": 4, "middle_blk_num": 1, "enc_blk_nums": [1], "dec_blk_nums": [1]}


def term(**options: Any) -> DCKD:
    return DCKD(vqgan_weights="random", **options)


def moved(model: KDModel) -> KDModel:
    """The model with its student a little further than its history model."""
    noise = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return model


def history_of(model: KDModel) -> nn.Module:
    history = model.terms["dckd"].history
    assert isinstance(history, nn.Module)
    return history


def encoded(encoder: VQGANEncoder, images: torch.Tensor) -> list[tuple[list[np.ndarray], np.ndarray]]:
    """Features and latent of each image, encoded alone."""
    results = []
    for image in images:
        features, latent = encoder(image[None])
        results.append(([feature[0].numpy() for feature in features], latent[0].numpy()))
    return results


def contrast_by_hand(anchor: list, positive: list, negatives: list[list], weights: tuple[float, ...]) -> float:
    """L_dcl of one image: features of I_S, of I_T and of I_1 to I_N."""
    total = 0.0
    for layer, weight in enumerate(weights):
        below = sum(np.abs(anchor[layer] - negative[layer]).mean() for negative in negatives)
        total += weight * np.abs(anchor[layer] - positive[layer]).mean() / (below + 1e-7)
    return total


def categories(latent: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Probabilities of one image's latent (C, h, w): (h w, N)."""
    rows = []
    for position in latent.reshape(len(latent), -1).T:
        scores = np.array([-((position - entry) ** 2).sum() for entry in codebook])
        chances = np.exp(scores - scores.max())
        rows.append(chances / chances.sum())
    return np.array(rows)


@torch.no_grad()
def losses_by_hand(model: KDModel, given: Batch, kind: Any, whole: int, options: dict[str, Any]) -> dict[str, float]:
    """Both losses; the first `whole` of the negatives are of the input as it is."""
    encoder = VQGANEncoder(vqgan_weights="random", input_range=options.get("input_range", (-1.0, 1.0))).double()
    student = encoded(encoder, model.network(given.lq))
    teacher = encoded(encoder, model.teacher.network(given.lq))
    inputs = [given.lq] * whole
    for number in range(whole + 1, options.get("num_negatives", 5) + 1):
        inputs.append(
            degrade(given.lq, kind, [generator(seed, f"DCKD negative {number}") for seed in given.seeds.tolist()])
        )
    negatives = [encoded(encoder, history_of(model)(one)) for one in inputs]
    contrasts, entropies = [], []
    for image in range(len(given.lq)):
        (anchor, own), (positive, target) = student[image], teacher[image]
        others = [negative[image][0] for negative in negatives]
        contrasts.append(contrast_by_hand(anchor, positive, others, options.get("layer_weights", LAMBDA)))
        codebook = encoder.codebook.numpy()
        for wanted, found in zip(categories(target, codebook), categories(own, codebook), strict=True):
            entropies.append(-sum(p * np.log(q) for p, q in zip(wanted, found, strict=True)))
    return {"l_dcl": float(np.mean(contrasts)), "l_ce": float(np.mean(entropies))}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"degradation": "mix", "num_negatives": 2},
        {"include_undegraded": True, "num_negatives": 3},
        {"input_range": (0.0, 1.0), "num_negatives": 1, "layer_weights": (1.0, 2.0, 3.0, 4.0, 5.0)},
    ],
)
def test_the_losses_are_the_equations(options):
    model = moved(kd_model({"dckd": term(**options)}, dtype=torch.float64))
    given = batch(3, 20, dtype=torch.float64)
    parts = model(given, 1).parts
    whole = 1 if options.get("include_undegraded") else 0
    expected = losses_by_hand(model, given, options.get("degradation", "noise"), whole, options)
    assert set(parts) == set(expected)
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-8), name


@torch.no_grad()
def test_the_piece_as_published_is_the_public_codes_losses():
    """Means over the batch divided by each other, and a softmax of the softmax, image by image and by hand."""
    distill = load_options(OPTIONS / "train/dckd_as_published_rcan_x2.yml", training=True, paths=False).train.distill
    published = {key: value for key, value in distill["dckd"].items() if key != "type"}
    model = moved(kd_model({"dckd": term(**published)}, dtype=torch.float64))
    given = batch(3, 20, dtype=torch.float64)
    encoder = VQGANEncoder(vqgan_weights="random", input_range=(0.0, 1.0)).double()
    student, teacher = (encoded(encoder, network(given.lq)) for network in (model.network, model.teacher.network))
    inputs = [given.lq]
    for number in (2, 3, 4, 5):
        draws = [generator(seed, f"DCKD negative {number}") for seed in given.seeds.tolist()]
        inputs.append(degrade(given.lq, "noise", draws))
    negatives = [encoded(encoder, history_of(model)(one)) for one in inputs]
    l_dcl = 0.0
    for layer, weight in enumerate(LAMBDA):
        near, *far = (
            np.mean([np.abs(own[0][layer] - one[0][layer]).mean() for own, one in zip(student, others, strict=True)])
            for others in (teacher, *negatives)
        )
        l_dcl += weight * near / (sum(far) + 1e-7)
    entropies = []
    for (_, own), (_, target) in zip(student, teacher, strict=True):
        codebook = encoder.codebook.numpy()
        for wanted, found in zip(categories(target, codebook), categories(own, codebook), strict=True):
            again = np.exp(found) / np.exp(found).sum()
            entropies.append(-sum(p * np.log(q) for p, q in zip(wanted, again, strict=True)))
    parts = model(given, 1).parts
    assert parts["l_dcl"].item() == pytest.approx(l_dcl, rel=1e-8)
    assert parts["l_ce"].item() == pytest.approx(np.mean(entropies), rel=1e-8)


def test_a_student_that_equals_its_teacher_has_no_contrast_and_the_entropy_of_its_categories():
    model = kd_model({"dckd": term()}, teacher=STUDENT, dtype=torch.float64)
    model.teacher.network.load_state_dict(model.network.state_dict())
    given = batch(dtype=torch.float64)
    parts = model(given, 1).parts
    assert parts["l_dcl"].item() == 0.0
    encoder = VQGANEncoder(vqgan_weights="random").double()
    with torch.no_grad():
        latents = [latent for _, latent in encoded(encoder, model.network(given.lq))]
    chances = np.concatenate([categories(latent, encoder.codebook.numpy()) for latent in latents])
    assert parts["l_ce"].item() == pytest.approx(-(chances * np.log(chances)).sum(1).mean(), rel=1e-9)


def test_an_images_loss_does_not_depend_on_its_batch():
    model, given = moved(kd_model({"dckd": term()}, dtype=torch.float64)), batch(3, dtype=torch.float64)
    alone = []
    for image in range(3):
        chosen = slice(image, image + 1)
        one = dataclasses.replace(given, lq=given.lq[chosen], gt=given.gt[chosen], seeds=given.seeds[chosen])
        alone.append(model(one, 1).parts)
    for name, value in model(given, 1).parts.items():
        assert value.item() == pytest.approx(np.mean([parts[name].item() for parts in alone]), rel=1e-9)


@pytest.mark.parametrize(("student", "scale"), [(STUDENT, 2), ({**STUDENT, "upscale": 4}, 4), (NAFNET, 1)])
def test_the_student_learns_and_nothing_else_does_at_any_scale(student, scale):
    teacher = {**NAFNET, "width": 8} if scale == 1 else {**TEACHER, "upscale": scale}
    model = moved(kd_model({"dckd": term()}, student=student, teacher=teacher))
    method, before = model.terms["dckd"], copy.deepcopy(history_of(model).state_dict())
    model(batch(2, 24 // scale * 2, scale), 1).total.backward()
    assert set(trained(model)) == {f"network.{name}" for name, _ in model.network.named_parameters()}
    assert all(parameter.grad is not None for parameter in trained(model).values())
    assert sum(parameter.grad.abs().sum() for parameter in trained(model).values()) > 0
    for frozen in (history_of(model), model.teacher.network, method.vqgan.network):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
        assert not any(module.training for module in frozen.modules())
    assert all(torch.equal(value, before[name]) for name, value in history_of(model).state_dict().items())
    assert set(method.state_dict()) == {f"history.{name}" for name in model.network.state_dict()}


# The history model.


class Tiny(nn.Module):
    """A weight that is the number of the iteration, and a buffer that is ten times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.register_buffer("buffer", torch.zeros((), dtype=torch.float64))

    def at(self, iteration: int) -> Tiny:
        with torch.no_grad():
            self.weight.copy_(torch.tensor([iteration, -2 * iteration]))
            self.buffer.fill_(10 * iteration)
        return self


def followed(**options: Any) -> tuple[DCKD, Tiny]:
    method, student = term(**options), Tiny().at(7)
    method.attach(NetworkPair(NetworkView("network_g", student), NetworkView("network_t", Tiny())))
    return method, student


PAPER = [*range(1000, 100_001, 1000), *range(102_000, 200_001, 2000), *range(201_000, 250_001, 3000)]
LOOKED_AT = sorted({t + d for t in [*range(0, 250_001, 1000)] for d in (-1, 0, 1) if 1 <= t + d <= 250_000})


def test_the_history_is_updated_at_the_papers_iterations_by_the_papers_formula_and_comes_back():
    method, student = followed()
    expected, updates = 7.0, []
    for iteration in LOOKED_AT:
        if iteration == 150_001:
            state = copy.deepcopy(method.state_dict())
            method, _ = followed()
            method.load_state_dict(state)
        before = method.history.weight.clone()
        method.after_update(student.at(iteration), iteration)
        if not torch.equal(method.history.weight, before):
            updates.append(iteration)
        if iteration in PAPER:
            expected = 0.1 * expected + 0.9 * iteration
            assert method.history.buffer.item() == 10 * iteration
        assert method.history.weight.tolist() == pytest.approx([expected, -2 * expected], rel=1e-12)
    assert updates == PAPER


def test_another_schedule_and_attenuation():
    method, student = followed(update_steps=[2, 3], period=4, attenuation=0.75)
    expected = 7.0
    for iteration in range(1, 20):
        method.after_update(student.at(iteration), iteration)
        if iteration in (2, 4, 6, 9, 12, 15, 18):
            expected = 0.75 * expected + 0.25 * iteration
        assert method.history.weight[0].item() == pytest.approx(expected, rel=1e-12)


def test_the_history_may_follow_the_moving_average():
    method, student = followed(update_steps=[2], history_of="average")
    average, expected = Tiny(), 7.0
    for iteration in range(1, 6):
        method.after_update(student.at(-iteration), iteration)
        method.after_average(average.at(iteration), iteration)
        if iteration in (2, 4):
            expected = 0.1 * expected + 0.9 * iteration
        assert method.history.weight[0].item() == pytest.approx(expected, rel=1e-12)


def test_the_history_is_a_copy_in_eval_mode_that_starts_as_the_student_and_is_what_makes_negatives():
    model, given = kd_model({"dckd": term()}), batch()
    history = history_of(model)
    assert model.training and model.network.training and not any(module.training for module in history.modules())
    for own, other in zip(history.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(own, other) and own.data_ptr() != other.data_ptr()
    first = model(given, 1).parts["l_dcl"]
    with torch.no_grad():
        for parameter in history.parameters():
            parameter.zero_()
    assert not torch.equal(model(given, 1).parts["l_dcl"], first)


def test_of_a_student_cut_out_of_its_teacher_the_history_has_the_slices():
    wide = {**TEACHER, "num_block": STUDENT["num_block"]}
    model = kd_model({"csd": SharedCSD(vgg_weights="random"), "dckd": term(update_steps=[1])}, teacher=wide)
    model(batch(), 1).total.backward()
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter -= 0.01 * parameter.grad.sign()
    before = [parameter.clone() for parameter in history_of(model).parameters()]
    model.after_update(1)
    slices = model.terms["csd"].student_weights().values()
    for own, old, new in zip(history_of(model).parameters(), before, slices, strict=True):
        assert torch.allclose(own, 0.1 * old + 0.9 * new, atol=1e-6)


# The negatives.


def negatives(method: DCKD, given: Batch) -> torch.Tensor:
    """(N, B, 3, H, W), the history model handing its input on."""
    step = dataclasses.replace(context(len(given.lq), 8), lq=given.lq, seeds=given.seeds)
    method.history = nn.Identity()
    return torch.stack(list(method._negatives(step)))


def test_features_of_one_negative_at_a_time_are_in_memory():
    model, made = kd_model({"dckd": term(num_negatives=4)}), list[weakref.ref[torch.Tensor]]()
    held: list[int] = []
    vqgan = model.terms["dckd"].vqgan
    vqgan.register_forward_pre_hook(lambda *_: held.append(sum(feature() is not None for feature in made)))
    vqgan.register_forward_hook(lambda _, __, output: made.extend(map(weakref.ref, output[0])))
    model(batch(), 1)
    first_negative = len(held) - 4
    assert first_negative > 0 and set(held[first_negative:]) == {held[first_negative]}


@pytest.mark.parametrize("kind", ["noise", "blur", "mix"])
def test_negatives_differ_from_each_other_from_image_to_image_and_from_the_input_and_repeat(kind):
    image = batch(1, 16).lq
    given = dataclasses.replace(batch(3, 16), lq=image.expand(3, -1, -1, -1))
    method = term(degradation=kind)
    drawn = negatives(method, given)
    assert drawn.shape == (5, 3, 3, 16, 16) and not drawn.requires_grad
    assert len(torch.unique(torch.cat([drawn.flatten(0, 1), image]), dim=0)) == 16
    assert torch.equal(negatives(method, given), drawn)
    turned = dataclasses.replace(given, seeds=given.seeds.flip(0))
    assert torch.equal(negatives(method, turned), drawn.flip(1))
    # The first ones are the same however many there are.
    assert torch.equal(negatives(term(degradation=kind, num_negatives=2), given), drawn[:2])


def test_one_of_the_negatives_may_be_undegraded():
    given = batch(2, 16)
    drawn = negatives(term(include_undegraded=True, num_negatives=3), given)
    assert torch.equal(drawn[0], given.lq) and not torch.equal(drawn[1], given.lq)
    assert torch.equal(drawn[1:], negatives(term(num_negatives=3), given)[1:])


# Ablations and mistakes.


def test_each_part_can_be_left_out():
    both = moved(kd_model({"dckd": term()}))
    assert both.terms["dckd"].weights == {"l_dcl": 0.1, "l_ce": 0.001}
    parts = both(batch(), 1).parts
    for options, name in (({"distribution": False, "dcl_weight": 3.0}, "l_dcl"), ({"contrastive": False}, "l_ce")):
        model = moved(kd_model({"dckd": term(**options)}))
        assert list(model.terms["dckd"].weights) == [name]
        output = model(batch(), 1)
        assert list(output.parts) == [name]
        assert output.parts[name].item() == pytest.approx(parts[name].item(), rel=1e-5)
        assert output.total.item() == pytest.approx(
            {"l_dcl": 3.0, "l_ce": 0.001}[name] * output.parts[name].item(), rel=1e-5
        )
        model.after_update(1000)
        assert bool(model.terms["dckd"].state_dict()) == (name == "l_dcl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": False, "distribution": False}, "contrastive: is false, as is distribution; turn one on"),
        ({"num_negatives": 0}, "num_negatives: input should be greater than or equal to 1, got 0"),
        ({"num_negatives": 128}, "num_negatives: input should be less than or equal to 127, got 128"),
        ({"degradation": "rain"}, "degradation: input should be 'noise', 'blur', 'resize' or 'mix', got 'rain'"),
        ({"attenuation": 1.5}, "attenuation: input should be less than or equal to 1, got 1.5"),
        ({"update_steps": []}, r"update_steps: is \[\], allowed: one or more, each from 1"),
        ({"update_steps": [1000, 0]}, r"update_steps\[1\]: input should be greater than or equal to 1, got 0"),
        ({"quotient": "mean"}, "quotient: input should be 'image' or 'batch', got 'mean'"),
        ({"history_of": "ema"}, "history_of: input should be 'student' or 'average', got 'ema'"),
        ({"period": 0}, "period: input should be greater than or equal to 1, got 0"),
        ({"layer_weights": [1.0]}, "layer_weights has 1 entries, the VQGAN 5 layers; give each one"),
        ({"input_range": (1.0, 0.0)}, "DCKD: input_range: is"),
    ],
)
def test_mistakes_in_options_are_named(options, message):
    with pytest.raises(OptionsError, match=message) as error:
        term(**options)
    assert str(error.value).startswith("DCKD: ") and "\n" not in str(error.value)


def test_images_that_the_vqgan_cannot_take_are_refused_in_one_line():
    message = r"^DCKD: the VQGAN needs gray or colour images of 16x16 .* 3 channels and 14x14 pixels; raise gt_size"
    with pytest.raises(OptionsError, match=message) as error:
        kd_model({"dckd": term()})(batch(size=7), 1)
    assert "\n" not in str(error.value)
    grey = {"num_in_ch": 1, "num_out_ch": 1, "rgb_mean": [0.5]}
    model, given = kd_model({"dckd": term()}, student={**STUDENT, **grey}, teacher={**TEACHER, **grey}), batch()
    parts = model(dataclasses.replace(given, lq=given.lq[:, :1], gt=given.gt[:, :1]), 1).parts
    assert all(part.isfinite() for part in parts.values()) and len(parts) == 2  # gray is seen in three equal channels


def test_an_input_too_small_for_the_blur_is_refused_naming_the_method():
    with pytest.raises(OptionsError, match=r"^DCKD: degradation is 'fog'; allowed: "):
        degrade(torch.rand(1, 3, 8, 8), "fog", [generator(0, "test")])
    with pytest.raises(OptionsError, match=r"^DCKD: an LR image of 4x4 is too small to be blurred .* raise gt_size"):
        for seed in range(20):
            student, teacher = ({**block, "upscale": 4} for block in (STUDENT, TEACHER))
            model = kd_model({"dckd": term(degradation="blur")}, student=student, teacher=teacher)
            model(batch(1, 4, 4, seeds=(seed,)), 1)
