"""MCAD-KD's contrastive terms, against the equations written out in float64 with plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.distillation import context

from basicsr.config.load import load_options
from basicsr.distill.base import StepContext
from basicsr.distill.contrastive import HybridContrastive, crop_patches, crop_positions, info_nce
from basicsr.utils.errors import OptionsError
from basicsr.utils.registry import METHOD_REGISTRY

OPTIONS = Path(__file__).resolve().parents[2] / "options"


def term(**options) -> HybridContrastive:
    torch.manual_seed(0)
    return HybridContrastive(**{"patch_size": 8, "num_patches": 5, "embed_dim": 16, **options})


def embed(head: torch.nn.Module, image: torch.Tensor) -> np.ndarray:
    """One image (3, h, w) through the head, alone, in float64."""
    return head.double()(image.double()[None])[0].detach().numpy()


def loss_by_hand(queries, keys, tau: float, *, positive_in: bool = True, hardest: int | None = None) -> list[float]:
    """-log(exp(q_i k_i / tau) / sum_j exp(q_i k_j / tau)), one query after the other."""
    losses = []
    for i, query in enumerate(queries):
        negatives = [math.exp(float(query @ key) / tau) for j, key in enumerate(keys) if j != i]
        if hardest is not None:
            negatives = sorted(negatives)[-hardest:]
        positive = math.exp(float(query @ keys[i]) / tau)
        losses.append(-math.log(positive / (sum(negatives) + (positive if positive_in else 0.0))))
    return losses


def test_image_loss_is_equation_2():
    method, step = term(mode="image", mining="all"), context()
    measured = method.double()(step_in_double(step))["l_img"]
    queries = [embed(method.image_head, image) for image in step.sr]
    keys = [embed(method.image_head, image) for image in step.sr_teacher]
    assert measured.item() == pytest.approx(np.mean(loss_by_hand(queries, keys, 0.07)), abs=1e-9)


def step_in_double(step: StepContext) -> StepContext:
    import dataclasses

    return dataclasses.replace(step, sr=step.sr.double(), sr_teacher=step.sr_teacher.double())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_patch_loss_is_equation_4(reduction):
    method, step = term(mode="patch", mining="all", reduction=reduction), context()
    measured = method.double()(step_in_double(step))["l_patch"]
    per_image = []
    for sr, sr_teacher, generator in zip(step.sr, step.sr_teacher, step.generators("contrastive crops"), strict=True):
        corners = generator.integers(0, 20 - 8 + 1, size=(5, 2))
        crops = [(slice(None), slice(top, top + 8), slice(left, left + 8)) for top, left in corners]
        queries = [embed(method.patch_head, sr[crop]) for crop in crops]
        keys = [embed(method.patch_head, sr_teacher[crop]) for crop in crops]
        per_image.append(loss_by_hand(queries, keys, 0.07))
    totals = [sum(losses) if reduction == "sum" else np.mean(losses) for losses in per_image]
    assert measured.item() == pytest.approx(np.mean(totals), abs=1e-9)


def test_the_equations_piece_is_equations_2_4_and_7d_to_the_letter():
    """As shipped, with its sizes and weights: every negative, sums over an image's patches, the mean over images."""
    piece = load_options(OPTIONS / "train/mcadkd_equations_edsr_x2.yml", training=True, paths=False).train
    method = METHOD_REGISTRY.build(piece.distill["contrastive"]).double()
    step = step_in_double(context(batch=3, size=64))
    parts = method(step)
    image_queries, image_keys = ([embed(method.image_head, one) for one in x] for x in (step.sr, step.sr_teacher))
    l_img = np.mean(loss_by_hand(image_queries, image_keys, 0.07))
    per_image = []
    for sr, sr_teacher, generator in zip(step.sr, step.sr_teacher, step.generators("contrastive crops"), strict=True):
        corners = generator.integers(0, 64 - 48 + 1, size=(8, 2))
        crops = [(slice(None), slice(top, top + 48), slice(left, left + 48)) for top, left in corners]
        queries, keys = ([embed(method.patch_head, image[crop]) for crop in crops] for image in (sr, sr_teacher))
        assert len(queries[0]) == 256
        per_image.append(sum(loss_by_hand(queries, keys, 0.07)))
    l_patch = np.mean(per_image)
    assert parts["l_img"].item() == pytest.approx(l_img, rel=1e-9)
    assert parts["l_patch"].item() == pytest.approx(l_patch, rel=1e-9)
    weighted = sum(method.weights[name] * part.item() for name, part in parts.items())
    assert weighted == pytest.approx(0.05 * (0.3 * l_img + 0.7 * l_patch), rel=1e-9)


@pytest.mark.parametrize("positive_in", [True, False])
@pytest.mark.parametrize("hardest", [None, 1, 2])
def test_info_nce_selects_and_sums_what_it_says(positive_in, hardest):
    generator = np.random.default_rng(3)
    queries, keys = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in generator.normal(size=(2, 5, 7)))
    measured = info_nce(
        torch.from_numpy(queries @ keys.T),
        torch.arange(5),
        0.2,
        denominator="all" if positive_in else "negatives",
        mining="all" if hardest is None else "hard",
        num_negatives=hardest,
    )
    assert measured.numpy() == pytest.approx(
        loss_by_hand(queries, keys, 0.2, positive_in=positive_in, hardest=hardest), abs=1e-12
    )


def test_hard_mining_takes_half_of_the_negatives_and_at_least_one():
    similarity = torch.tensor([[0.9, 0.1, 0.8, -0.5, 0.3], [0.2, 0.7, 0.1, 0.6, -0.9]], dtype=torch.float64)
    hard = info_nce(similarity, torch.tensor([0, 1]), 1.0, mining="hard")
    by_hand = [-math.log(math.exp(p) / sum(map(math.exp, (p, *n)))) for p, n in ((0.9, (0.8, 0.3)), (0.7, (0.6, 0.2)))]
    assert hard.numpy() == pytest.approx(by_hand, abs=1e-12)
    one = info_nce(similarity[:, :2], torch.tensor([0, 1]), 1.0, mining="hard")
    assert one.numpy() == pytest.approx([math.log(1 + math.exp(-0.8)), math.log(1 + math.exp(-0.5))], abs=1e-12)


def test_easy_negatives_get_no_gradient_from_hard_mining():
    similarity = torch.tensor([[0.9, 0.1, 0.8, -0.5, 0.3]], requires_grad=True)
    info_nce(similarity, torch.tensor([0]), 0.07, mining="hard").sum().backward()
    assert (similarity.grad != 0).tolist() == [[True, False, True, False, True]]


def test_a_batch_of_one_has_no_negatives_and_no_loss():
    parts = term()(context(batch=1))
    assert parts["l_img"].item() == 0.0
    assert parts["l_patch"].item() > 0.0


def test_without_negatives_every_parameter_is_in_the_graph_still():
    for options, batch in (({"mode": "image"}, 1), ({"mode": "patch", "num_patches": 1}, 2)):
        method = term(**options)
        sum(method(context(batch=batch)).values()).backward()
        assert all(parameter.grad is not None for parameter in method.parameters())


def test_student_and_teacher_crops_lie_at_the_same_positions():
    import dataclasses

    step = context()
    same = dataclasses.replace(step, sr_teacher=step.sr.detach())
    student, teacher = term()._patches(same)
    assert torch.equal(student, teacher)
    student, teacher = term(crops="independent")._patches(same)
    assert not torch.equal(student, teacher)


def test_crop_positions_belong_to_the_sample_not_to_the_batch():
    alone = crop_positions(context(batch=1, seeds=(11,)).generators("x"), 5, 20, 30, 8)
    among = crop_positions(context(batch=3, seeds=(10, 11, 12)).generators("x"), 5, 20, 30, 8)
    assert np.array_equal(alone[0], among[1])


def test_crop_positions_cover_the_image_up_to_its_edges():
    positions = crop_positions([np.random.default_rng(0)], 4000, 10, 12, 8)[0]
    assert positions.min(0).tolist() == [0, 0]
    assert positions.max(0).tolist() == [2, 4]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_crops_are_the_slices_and_their_gradient_is_exact(layout):
    images = torch.rand(2, 3, 7, 9, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    positions = np.array([[[0, 0], [3, 5]], [[2, 1], [2, 2]]])
    patches = crop_patches(images, positions, 4)
    assert torch.equal(patches[1], images[0, :, 3:7, 5:9])
    assert torch.equal(patches[2], images[1, :, 2:6, 1:5])
    assert torch.autograd.gradcheck(lambda x: crop_patches(x, positions, 4), images)


def test_every_weight_enters_once_and_modes_keep_them():
    both = term(loss_weight=0.05, image_weight=0.3, patch_weight=0.7).weights
    assert both == pytest.approx({"l_img": 0.015, "l_patch": 0.035})
    assert set(term(mode="image").weights) == {"l_img"}
    assert set(term(mode="patch").weights) == {"l_patch"}


def test_heads_and_temperature_receive_gradients_and_the_teacher_does_not():
    method, step = term(), context()
    sum(method(step).values()).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert step.sr.grad.abs().sum() > 0
    assert step.sr_teacher.grad is None


def test_heads_stay_as_they_are_where_train_heads_is_false_and_the_student_still_learns():
    method, step = term(train_heads=False), context()
    sum(method(step).values()).backward()
    assert all(parameter.grad is None for parameter in method.parameters())
    assert step.sr.grad.abs().sum() > 0


def test_temperature_stays_within_its_bounds_and_can_come_back():
    method = term(mode="image")
    with torch.no_grad():
        method.log_tau.fill_(-20.0)
    method(context())["l_img"].backward()
    assert method.tau.item() == pytest.approx(0.01)
    assert method.log_tau.grad.abs() > 0


def test_patch_negatives_of_the_whole_batch():
    step = context()
    method = term(mode="patch", mining="all", patch_negatives="batch")
    measured = method.double()(step_in_double(step))["l_patch"]
    student, teacher = method._patches(step)
    queries, keys = ([embed(method.patch_head, patch) for patch in patches] for patches in (student, teacher))
    assert measured.item() == pytest.approx(np.mean(loss_by_hand(queries, keys, 0.07)), abs=1e-9)


def test_mistakes_are_named():
    with pytest.raises(OptionsError, match=r"patch_size 48 is larger than the 20x20 output"):
        term(patch_size=48)(context())
    with pytest.raises(OptionsError, match="tau: input should be less than or equal to 1, got 5"):
        term(tau=5.0)
    with pytest.raises(OptionsError, match="num_negatives: is 3, without effect beside mining: all; leave num_neg"):
        term(mining="all", num_negatives=3)
