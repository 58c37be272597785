"""CSD: the contrastive loss against its equation written out in float64, and the student cut out of its teacher."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, context, kd_model, trained
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.archs.vgg_arch import VGGFeatureExtractor
from basicsr.distill.base import NetworkPair, NetworkView, StepContext
from basicsr.distill.csd import CSD, SharedCSD
from basicsr.optim.optimizers import Ema
from basicsr.utils.errors import OptionsError

WEIGHTS = {"relu1_1": 1 / 32, "relu2_1": 1 / 16, "relu3_1": 1 / 8, "relu4_1": 1 / 4, "relu5_1": 1.0}
WIDE = {**TEACHER, "num_block": STUDENT["num_block"]}
RCAN_STUDENT = {
    **{key: value for key, value in STUDENT.items() if key != "num_block"},
    "type": "RCAN",
    "num_group": 2,
    "num_block": 1,
    "squeeze_factor": 4,
}
RCAN_WIDE = {**RCAN_STUDENT, "num_feat": 20}
PAIRS = {"EDSR": (STUDENT, WIDE), "RCAN": (RCAN_STUDENT, RCAN_WIDE)}


def term(**options: Any) -> CSD:
    return CSD(vgg_weights="random", **options)


def shared(**options: Any) -> SharedCSD:
    return SharedCSD(vgg_weights="random", **options)


def step(count: int = 3, size: int = 12, scale: int = 2, **changes: Any) -> StepContext:
    """A step in float64, with LR images of their own."""
    generator = torch.Generator().manual_seed(7)
    lq = torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)
    large = context(count, size * scale, dtype=torch.float64)
    return dataclasses.replace(large, lq=lq, scale=scale, seed=3, **changes)


def cubic(x: float) -> float:
    """The interpolation kernel of Keys with a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """(3, h, w) to (3, scale h, scale w), pixels beyond the edge being those at the edge."""
    for axis in (1, 2):
        length = image.shape[axis]
        lines = []
        for target in range(length * scale):
            centre = (target + 0.5) / scale - 0.5
            first = math.floor(centre) - 1
            taps = [(min(max(i, 0), length - 1), cubic(centre - i)) for i in range(first, first + 4)]
            lines.append(sum(weight * image.take(i, axis) for i, weight in taps))
        image = np.stack(lines, axis)
    return image


def features(image: np.ndarray, vgg: VGGFeatureExtractor, factor: float = 1.0) -> dict[str, np.ndarray]:
    """Of one image (3, H, W), alone."""
    return {name: value[0].numpy() for name, value in vgg(torch.from_numpy(image * factor)[None]).items()}


def loss_by_hand(
    given: StepContext, negatives: list[int], vgg: VGGFeatureExtractor, factor: float, count: int
) -> float:
    sr, sr_teacher, lq = (images.detach().numpy() for images in (given.sr, given.sr_teacher, given.lq))
    far = [features(enlarged(lq[k], given.scale), vgg, factor) for k in negatives]
    losses = []
    for image, target in zip(sr, sr_teacher, strict=True):
        own, near = features(image, vgg, factor), features(target, vgg, factor)
        loss = 0.0
        for layer, weight in WEIGHTS.items():
            below = count * np.mean([np.abs(negative[layer] - own[layer]).mean() for negative in far])
            loss += weight * np.abs(near[layer] - own[layer]).mean() / (below + 1e-7)
        losses.append(loss)
    return float(np.mean(losses))


@pytest.mark.parametrize(("vgg_input", "factor"), [("imagenet", 1.0), ("range255", 255.0)])
@pytest.mark.parametrize("count", [2, 10])
def test_the_loss_is_the_equation(count, vgg_input, factor):
    given = step()
    measured = term(num_negatives=count, vgg_input=vgg_input).double()(given)["l_csd"]
    layers = {"layer_name_list": list(WEIGHTS), "use_input_norm": vgg_input == "imagenet"}
    vgg = VGGFeatureExtractor(**layers, vgg_weights="random").double()
    drawn = given.step_generator("CSD negatives").permutation(3)[:count]
    assert len(drawn) == min(count, 3)
    # Where the batch has fewer than K images, the mean of those it has stands for the missing ones.
    negatives = [int(index) for index in drawn] if count <= 3 else [0, 1, 2]
    assert measured.item() == pytest.approx(loss_by_hand(given, negatives, vgg, factor, count), rel=1e-9)


def test_the_loss_is_as_strong_however_a_batch_is_split():
    method = term(num_negatives=10)
    images = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    whole = dataclasses.replace(context(8, 24), lq=images, scale=2)
    halves = [
        dataclasses.replace(whole, lq=images[part], sr=whole.sr[part], sr_teacher=whole.sr_teacher[part])
        for part in (slice(0, 4), slice(4, 8))
    ]
    split = sum(method(half)["l_csd"].item() for half in halves) / 2
    # The negatives are others, so it is not the same, but K is.
    assert split == pytest.approx(method(whole)["l_csd"].item(), rel=0.1)


def test_short_formats_are_subtracted_in_float32():
    method = term(layer_weights={"relu1_1": 1.0})
    given = step(2, 16)
    close = given.sr + 1e-3
    images = [tensor.float().detach() for tensor in (given.sr, close, given.lq)]
    half = dataclasses.replace(
        given, sr=images[0], sr_teacher=images[1], lq=images[2], autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    student, teacher = (method._features(half, image)["relu1_1"] for image in images[:2])
    assert student.dtype == torch.bfloat16
    apart = (student.float() - teacher.float()).abs().mean((1, 2, 3))
    others = method._features(half, method._negatives(half))["relu1_1"].float()
    aside = torch.stack([(student.float() - other).abs().mean((1, 2, 3)) for other in others]).mean(0) * 10
    assert method(half)["l_csd"].item() == pytest.approx((apart / (aside + 1e-7)).mean().item(), rel=1e-5)


def test_every_image_of_the_batch_becomes_a_negative_at_some_step():
    method = term(num_negatives=1)
    lq = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    large = torch.zeros(4, 3, 16, 16)
    drawn = {
        method._negatives(dataclasses.replace(context(4, 16), lq=lq, sr=large, iteration=iteration)).mean().item()
        for iteration in range(1, 40)
    }
    assert sorted(round(value, 4) for value in drawn) == [0, 1, 2, 3]


def test_negatives_are_drawn_alike_on_every_rank_and_never_twice():
    method, given = term(num_negatives=3), step(5)
    first, second = (method._negatives(dataclasses.replace(given, seeds=torch.arange(n, n + 5))) for n in (0, 90))
    assert torch.equal(first, second)
    assert len(torch.unique(first, dim=0)) == 3


def test_the_student_learns_and_neither_teacher_nor_vgg_does():
    method, given = term(), context(2, 32)
    method(given)["l_csd"].backward()
    assert given.sr.grad.abs().sum() > 0
    assert given.sr_teacher.grad is None
    assert not list(method.parameters()) and not method.state_dict()
    assert all(not p.requires_grad and p.grad is None for p in method.vgg.network.parameters())


def test_differences_taken_again_give_the_gradient_of_the_equation():
    method, given = term(num_negatives=2, layer_weights={"relu1_1": 1.0}).double(), step(2, 8)
    method(given)["l_csd"].backward()
    vgg, sr = method.vgg.network, given.sr.detach().clone().requires_grad_()
    own, near = vgg(sr)["relu1_1"], vgg(given.sr_teacher)["relu1_1"]
    far = vgg(F.interpolate(given.lq, scale_factor=2, mode="bicubic"))["relu1_1"]
    below = (own[:, None] - far[None]).abs().mean((2, 3, 4)).sum(1)
    ((own - near).abs().mean((1, 2, 3)) / (below + 1e-7)).mean().backward()
    assert torch.allclose(given.sr.grad, sr.grad, rtol=1e-10, atol=1e-16)


def test_a_student_that_equals_its_teacher_loses_nothing():
    given = context(2, 32)
    assert term()(dataclasses.replace(given, sr_teacher=given.sr.detach()))["l_csd"].item() == 0.0


def test_csd_takes_two_networks_of_any_kind_and_freezes_the_teacher():
    model = kd_model({"csd": term()}, student=RCAN_STUDENT, teacher=WIDE)
    model(batch(), 1).total.backward()
    assert model.network.conv_first.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.teacher.network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "num_negatives: input should be greater than or equal to 1, got 0"),
        ({"vgg_input": "rgb"}, "vgg_input: input should be 'imagenet' or 'range255', got 'rgb'"),
        (
            {"layer_weights": {"relu9_1": 1.0}},
            r"layer_weights\.relu9_1: unknown key \(did you mean 'relu._1'\?\); allowed: conv1_1",
        ),
    ],
)
@pytest.mark.parametrize("method", [term, shared])
def test_mistakes_in_options_are_named(method, options, message):
    with pytest.raises(OptionsError, match=message):
        method(**options)


def test_images_that_the_vgg_cannot_take_are_refused():
    message = r"CSD: the VGG needs gray or colour images of 16x16.* 3 channels and 12x12 pixels"
    with pytest.raises(OptionsError, match=message):
        term()(context(2, 12))
    with pytest.raises(OptionsError, match="the output has 2 channels"):
        term().check_output((2, 32, 32))


def test_gray_images_count_as_three_equal_channels():
    def channels(count: int) -> StepContext:
        given = context(2, 32)
        images = {name: getattr(given, name)[:, :1].expand(-1, count, -1, -1) for name in ("lq", "sr", "sr_teacher")}
        return dataclasses.replace(given, **images)

    gray, colour = (term()(channels(count))["l_csd"].item() for count in (1, 3))
    assert gray == pytest.approx(colour, rel=1e-6) and gray > 0


# The student as the teacher's first channels.


def ordinary(kind: str, state: dict[str, torch.Tensor], **changes: Any) -> torch.nn.Module:
    """A narrow network as the options build it, with the leading slices of a wide one's weights."""
    network = build_network({**PAIRS[kind][0], **changes})
    own = network.state_dict()
    for name, value in own.items():
        rows, *columns = value.shape
        value.copy_(state[name][:rows, : columns[0]] if columns else state[name][:rows])
    network.load_state_dict(own)
    return network


def shared_model(kind: str = "EDSR", amp: str = "none", scale: int = 2, **options: Any):
    student, teacher = ({**block, "upscale": scale} for block in PAIRS[kind])
    return kd_model({"csd": shared(**options)}, student=student, teacher=teacher, amp=amp)


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", PAIRS)
def test_the_student_is_an_ordinary_narrow_network_with_sliced_weights(kind, scale, amp):
    model = shared_model(kind, amp, scale)
    narrow = ordinary(kind, model.terms["csd"].wide.state_dict(), upscale=scale)
    lq = batch(size=12).lq
    with model.precision.autocast():
        assert torch.equal(model.run_network(lq), narrow(lq).float())
        assert torch.equal(model.network(lq), narrow(lq))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_slice_of_the_upsampling_keeps_whole_groups_of_the_pixel_shuffle(scale):
    """In a teacher whose first channels hear nothing of the others, they are the student's, to the last image."""
    student, teacher = (build_network({**block, "upscale": scale}).double() for block in PAIRS["EDSR"])
    few, many = STUDENT["num_feat"], WIDE["num_feat"]
    with torch.no_grad():
        for weight in teacher.parameters():
            if weight.dim() == 4 and weight.shape[1] == many:
                weight[: weight.shape[0] * few // many if weight.shape[0] % many == 0 else None, few:] = 0
    shared().attach(NetworkPair(NetworkView("network_g", student), NetworkView("network_t", teacher)))
    lq = torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(student(lq), teacher(lq), atol=1e-12)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_students_gradient_arrives_in_the_slices_and_nowhere_else(kind):
    model, given = shared_model(kind), batch()
    wide = model.terms["csd"].wide
    narrow = ordinary(kind, wide.state_dict())
    F.l1_loss(model.run_network(given.lq), given.gt).backward()
    F.l1_loss(narrow(given.lq), given.gt).backward()
    arrived = dict(wide.named_parameters())
    for name, parameter in narrow.named_parameters():
        rows, *columns = parameter.shape
        expected = torch.zeros_like(arrived[name])
        if columns:
            expected[:rows, : columns[0]] = parameter.grad
        else:
            expected[:rows] = parameter.grad
        assert torch.equal(arrived[name].grad, expected), name


def test_the_parts_are_the_contrast_with_the_wide_image_and_its_own_reconstruction():
    model, given = shared_model(), batch()
    output, wide = model(given, 4), model.terms["csd"].wide
    by_two = kd_model({"csd": term()}, student=STUDENT, teacher=WIDE)
    by_two.network.load_state_dict(model.network.state_dict())
    by_two.teacher.network.load_state_dict(wide.state_dict())
    assert output.parts["l_csd"].item() == pytest.approx(by_two(given, 4).parts["l_csd"].item(), rel=1e-5)
    own = np.abs(wide(given.lq).detach().double().numpy() - given.gt.double().numpy()).mean()
    assert output.parts["l_wide"].item() == pytest.approx(own, rel=1e-6)
    assert model.terms["csd"].weights == {"l_csd": 200.0, "l_wide": 1.0}
    assert shared(loss_weight=3.0, teacher_weight=0.5).weights == {"l_csd": 3.0, "l_wide": 0.5}


@pytest.mark.parametrize("detach", [True, False])
def test_the_contrast_reaches_what_only_the_teacher_has_where_it_is_not_detached(detach):
    model = shared_model(teacher_weight=0.0, detach_teacher=detach)
    model(batch(), 1).total.backward()
    gradient = model.terms["csd"].wide.conv_first.weight.grad
    few = STUDENT["num_feat"]
    assert gradient[:few].abs().sum() > 0
    assert (gradient[few:].abs().sum() > 0) == (not detach)


def test_the_detached_contrast_teaches_the_slices_what_csd_teaches_a_student():
    model, given = shared_model(teacher_weight=0.0), batch(dtype=torch.float64)
    by_two = kd_model({"csd": term()}, student=STUDENT, teacher=WIDE).double()
    by_two.network.load_state_dict(model.network.state_dict())
    by_two.teacher.network.double().load_state_dict(model.terms["csd"].wide.state_dict())
    model.double()(given, 4).total.backward()
    by_two(given, 4).total.backward()
    arrived = dict(model.terms["csd"].wide.named_parameters())
    for name, parameter in by_two.network.named_parameters():
        slices = tuple(slice(length) for length in parameter.shape)
        expected = torch.zeros_like(arrived[name])
        expected[slices] = parameter.grad
        assert torch.allclose(arrived[name].grad, expected, rtol=1e-9, atol=1e-12), name


def test_the_gradient_of_both_together_is_the_slope():
    model, given = shared_model(detach_teacher=False).double(), batch(dtype=torch.float64)
    parameters = list(trained(model).values())
    model(given, 1).total.backward()
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True)).item()

    def at(distance: float) -> torch.Tensor:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, direction in zip(trained(moved).values(), directions, strict=True):
                parameter += distance * direction
            return moved(given, 1).total

    # Both images move almost alike and their differences have kinks: the way must be short.
    assert ((at(1e-9) - at(-1e-9)) / 2e-9).item() == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_student_follows_its_slices_and_the_average_follows_the_student(kind):
    model = shared_model(kind)
    wide, ema = model.terms["csd"].wide, Ema(model.network, 0.75)
    assert set(trained(model)) == {f"terms.csd.wide.{name}" for name, _ in wide.named_parameters()}
    optimizer = torch.optim.Adam(trained(model).values(), lr=1e-2)
    average = {name: value.clone() for name, value in model.network.state_dict().items()}
    for iteration in (1, 2):
        optimizer.zero_grad()
        model(batch(), iteration).total.backward()
        optimizer.step()
        before = {name: value.clone() for name, value in model.network.state_dict().items()}
        model.after_update(iteration)
        ema.update(model.network)
        expected = ordinary(kind, wide.state_dict()).state_dict()
        assert not torch.equal(before["conv_first.weight"], expected["conv_first.weight"])
        for name, value in model.network.state_dict().items():
            assert torch.equal(value, expected[name]), name
            average[name] = 0.75 * average[name] + 0.25 * value
            assert torch.allclose(ema.network.state_dict()[name], average[name], atol=1e-7), name


def test_the_teacher_that_was_given_stays_as_it_was_and_the_copy_starts_from_it():
    student, teacher = (build_network(block) for block in PAIRS["EDSR"])
    before = copy.deepcopy(teacher.state_dict())
    method = shared()
    method.attach(
        NetworkPair(NetworkView("network_g", student), NetworkView("network_t", teacher.requires_grad_(False)))
    )
    with torch.no_grad():
        for parameter in method.wide.parameters():
            assert parameter.requires_grad
            parameter += 1
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in (*teacher.parameters(), *student.parameters()))
    assert torch.equal(student.conv_first.weight, before["conv_first.weight"][: STUDENT["num_feat"]])


def test_the_state_is_the_wide_network_alone():
    model = shared_model()
    wide = model.terms["csd"].wide.state_dict()
    assert set(model.terms["csd"].state_dict()) == {f"wide.{name}" for name in wide}


def refused(student: dict[str, Any], teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message) as caught:
        kd_model({"csd": shared()}, student=student, teacher=teacher)
    assert "\n" not in str(caught.value)


def test_pairs_that_cannot_share_are_refused():
    swinir = {"type": "SwinIR", "upscale": 2, "img_size": 8, "window_size": 4, "depths": [1], "num_heads": [2]}
    swinir |= {"in_chans": 3, "embed_dim": 8, "upsampler": "pixelshuffle", "img_range": 1.0, "mlp_ratio": 2}
    refused(swinir, {**swinir, "embed_dim": 12}, "network_g is SwinIR, network_t SwinIR; allowed: two EDSR or two RCAN")
    refused(STUDENT, RCAN_WIDE, "network_g is EDSR, network_t RCAN")
    refused(STUDENT, TEACHER, r"only network_t has 'body.2.conv1.weight'; give both the same num_block")
    refused(STUDENT, {**WIDE, "upscale": 4}, "only network_t has 'upsample.2.weight'")
    refused(STUDENT, {**WIDE, "upscale": 3}, "upscale is 2 in network_g, 3 in network_t")
    refused(STUDENT, {**WIDE, "res_scale": 0.1}, "res_scale is 1 in network_g, 0.1 in network_t.*give both the same")
    refused(STUDENT, {**WIDE, "img_range": 255.0}, "img_range is 1.0 in network_g, 255.0 in network_t")
    refused(STUDENT, {**WIDE, "rgb_mean": [0.5, 0.5, 0.5]}, "differ in rgb_mean or num_in_ch")
    refused(WIDE, STUDENT, r"'conv_first.weight' is \(12, 3, 3, 3\) in network_g, \(8, 3, 3, 3\) in network_t")
    refused({**RCAN_STUDENT, "squeeze_factor": 1}, RCAN_WIDE, "lower its num_feat, or raise its squeeze_factor")
