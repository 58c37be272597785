"""DUKD: zoomed images and label consistency, against the equations with plain loops and MATLAB's imresize."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.distillation import STUDENT, TEACHER, batch, context, kd_model
from torch import nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.data.batch import Batch
from basicsr.distill.base import StepContext
from basicsr.distill.dukd import DUKD, LabelConsistency, applied, drawn_operations, reduced, undone
from basicsr.utils.errors import OptionsError
from basicsr.utils.matlab_functions import imresize

COMBINATIONS = list(itertools.product([False, True], repeat=4))


def by_hand(image: np.ndarray, which: tuple[bool, ...]) -> np.ndarray:
    """One image (C, H, W): colours inverted, flipped horizontally, flipped vertically, transposed."""
    invert, horizontally, vertically, transpose = which
    if invert:
        image = 1 - image
    if horizontally:
        image = image[:, :, ::-1]
    if vertically:
        image = image[:, ::-1, :]
    return image.transpose(0, 2, 1) if transpose else image


def undone_by_hand(image: np.ndarray, which: tuple[bool, ...]) -> np.ndarray:
    invert, horizontally, vertically, transpose = which
    for chosen, single in (
        (transpose, (False, False, False, True)),
        (vertically, (False, False, True, False)),
        (horizontally, (False, True, False, False)),
        (invert, (True, False, False, False)),
    ):
        image = by_hand(image, single) if chosen else image
    return image


def pictures(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Values that are whole multiples of 1/256, for which 1 - (1 - x) is exact, as it is not for k/255."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 257, (count, 3, height, width), generator=generator) / 256


def step(lq: torch.Tensor, scale: int, seed: int = 10, **changes: Any) -> StepContext:
    """A step on `lq` and random HR images; student and teacher repeat each pixel unless told otherwise."""
    count, _, height, width = lq.shape
    gt = pictures(count, height * scale, width * scale, seed=1).to(lq.dtype)
    seeds = torch.arange(seed, seed + count)

    def repeated(images: torch.Tensor) -> torch.Tensor:
        return images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)

    defaults = {"student": repeated, "teacher": repeated}
    return dataclasses.replace(context(count, 8), lq=lq, gt=gt, scale=scale, seeds=seeds, **{**defaults, **changes})


def test_every_combination_is_what_it_says_and_is_undone_exactly_on_multiples_of_1_256():
    which = torch.tensor(COMBINATIONS)
    images = pictures(16, 5, 5)
    changed = applied(images, which)
    for image, result, combination in zip(images, changed, COMBINATIONS, strict=True):
        assert np.array_equal(result.numpy(), by_hand(image.numpy(), combination)), combination
    assert len(torch.unique(applied(images[:1].expand(16, -1, -1, -1), which), dim=0)) == 16
    assert torch.equal(undone(changed, which), images)


def test_the_inversion_of_8_bit_values_is_undone_up_to_rounding_the_rest_exactly():
    images = (torch.arange(256, dtype=torch.float32) / 255).view(1, 1, 16, 16).expand(16, -1, -1, -1)
    which = torch.tensor(COMBINATIONS)
    error = (undone(applied(images, which), which) - images).abs()
    assert error.max() <= 6e-8
    assert not error[~which[:, 0]].any()


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_network_that_treats_all_directions_and_colours_alike_sees_no_difference(combination):
    """Repetition of pixels, and a mean over neighbours in four directions, commute with all operations."""
    kernel = torch.tensor([[0.0, 1, 0], [1, 2, 1], [0, 1, 0]], dtype=torch.float64).expand(3, 1, 3, 3) / 6

    def network(images: torch.Tensor) -> torch.Tensor:
        large = images.repeat_interleave(3, -2).repeat_interleave(3, -1)
        return F.conv2d(F.pad(large, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)

    which, images = torch.tensor([combination] * 2), pictures(2, 6, 6).double()
    assert torch.allclose(undone(network(applied(images, which)), which), network(images), atol=1e-14)


def test_gradients_pass_through_the_operations():
    which = torch.tensor(COMBINATIONS)
    images = pictures(16, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: undone(applied(x, which) ** 2, which), images)


@pytest.mark.parametrize(("size", "scale"), [((48, 48), 4), ((48, 36), 3), ((28, 12), 2), ((4, 4), 4)])
def test_images_are_reduced_as_by_imresize(size, scale):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([imresize(image, 1 / scale) for image in images])
    assert reduced(images, scale).dtype == torch.float32
    assert torch.allclose(reduced(images, scale), expected, rtol=0, atol=1e-7)
    exactly = torch.stack([imresize(image, 1 / scale) for image in images.double()])
    assert torch.allclose(reduced(images.double(), scale), exactly, rtol=0, atol=1e-14)


def test_reduced_images_are_not_clipped_where_they_overshoot_at_edges():
    lq = torch.zeros(2, 3, 8, 8)
    lq[0, ..., 4:] = lq[1, :, 4:] = 1
    # MATLAB's cubic, stretched to twice its width, at a step from 0 to 1.
    across = torch.tensor([-3.0, 17, 239, 259]) / 256
    expected = torch.stack([across.expand(3, 4, 4), across[:, None].expand(3, 4, 4)])
    assert torch.allclose(reduced(lq, 2), expected, rtol=0, atol=1e-7)
    shown: dict[str, torch.Tensor] = {}

    def network(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def shown_to(images: torch.Tensor) -> torch.Tensor:
            shown[name] = images
            return images.repeat_interleave(2, -2).repeat_interleave(2, -1)

        return shown_to

    parts = DUKD(zoom_in=False)(step(lq, 2, student=network("student"), teacher=network("teacher")))
    for images in (shown["student"], shown["teacher"]):
        assert torch.allclose(images, expected, rtol=0, atol=1e-7)
    # Over both sides of the edge |Y - I_LR| is 3, 3, 17 and 17.
    assert parts["l_zoom_out_pix"].item() == pytest.approx(10 / 256, rel=1e-5)


@pytest.mark.parametrize("consistency", [0.0, 0.5])
@pytest.mark.parametrize(("scale", "size", "patches"), [(2, 12, 1), (3, 10, 2)])
def test_the_parts_are_the_equations(scale, size, patches, consistency):
    method = DUKD(num_patches=patches, consistency_probability=consistency, zoom_out_consistency=True)
    blocks = ({**block, "upscale": scale} for block in (STUDENT, TEACHER))
    student, teacher = (build_network(block).double() for block in blocks)
    generator = torch.Generator().manual_seed(4)
    lq = torch.rand(3, 3, size, size, generator=generator, dtype=torch.float64)
    given = step(lq, scale, student=student, teacher=torch.no_grad()(teacher))
    with torch.no_grad():
        parts = method(given)
    gt, zoom_in, zoom_out, pixels = given.gt.numpy(), [], [], []

    def run(network: nn.Module, image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(np.ascontiguousarray(image))[None])[0].numpy()

    streams = (given.generators(purpose) for purpose in ("DUKD tiles", "DUKD zoom-in", "DUKD zoom-out"))
    for b, (tiles, inner, outer) in enumerate(zip(*streams, strict=True)):
        places = tiles.permutation(scale * scale)[:patches]
        for place, draw in zip(places, inner.random((patches, 4)), strict=True):
            i, j = divmod(int(place), scale)
            tile = gt[b, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
            which = tuple(draw < consistency)
            own = undone_by_hand(run(student, by_hand(tile, which)), which)
            zoom_in.append(np.abs(own - run(teacher, tile)).mean())
        left = size - size % scale
        target = lq[b, :, :left, :left]
        small = imresize(target, 1 / scale).numpy()
        which = tuple(outer.random((1, 4))[0] < consistency)
        own = undone_by_hand(run(student, by_hand(small, which)), which)
        zoom_out.append(np.abs(own - run(teacher, small)).mean())
        pixels.append(np.abs(own - target.numpy()).mean())
    assert parts["l_zoom_in"].item() == pytest.approx(np.mean(zoom_in), rel=1e-10)
    assert parts["l_zoom_out"].item() == pytest.approx(np.mean(zoom_out), rel=1e-10)
    assert parts["l_zoom_out_pix"].item() == pytest.approx(np.mean(pixels), rel=1e-10)


def test_a_perfect_student_loses_nothing_whatever_is_drawn():
    given = step(pictures(16, 6, 6), 2)
    parts = DUKD(consistency_probability=0.5, zoom_out_consistency=True, num_patches=4)(given)
    assert parts["l_zoom_in"].item() == 0.0
    assert parts["l_zoom_out"].item() == pytest.approx(0.0, abs=1e-7)
    assert parts["l_zoom_out_pix"].item() > 0.0


def seen(method: DUKD, given: StepContext, number: int = 0) -> torch.Tensor:
    """What the student is shown first, or second as `number` 1."""
    shown: list[torch.Tensor] = []

    def student(images: torch.Tensor) -> torch.Tensor:
        shown.append(images)
        assert given.teacher is not None
        return given.teacher(images)

    method(dataclasses.replace(given, student=student))
    return shown[number]


def test_zoom_out_is_without_label_consistency_unless_told():
    given = step(pictures(3, 8, 8), 2)
    plain = seen(DUKD(consistency_probability=1.0), given, 1)
    assert torch.equal(plain, reduced(given.lq, 2))
    turned = seen(DUKD(zoom_in=False, consistency_probability=1.0, zoom_out_consistency=True), given)
    assert torch.equal(turned, applied(reduced(given.lq, 2), torch.ones(3, 4, dtype=torch.bool)))


def test_operations_and_tiles_of_a_sample_do_not_depend_on_its_batch():
    lq, method = pictures(4, 6, 6), DUKD(zoom_out=False, num_patches=3)
    whole = step(lq, 3)
    together = seen(method, whole).view(4, 3, 3, 6, 6)
    for number in range(4):
        alone = dataclasses.replace(
            whole, lq=lq[number : number + 1], gt=whole.gt[number : number + 1], seeds=whole.seeds[number : number + 1]
        )
        assert torch.equal(seen(method, alone), together[number])


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_operation_comes_with_its_probability_independently_of_the_others(probability):
    count = 4000
    given = step(torch.zeros(count, 1, 2, 2), 2)
    which = drawn_operations(given, "DUKD zoom-in", 1, probability, given.lq).double().numpy()
    deviation = np.sqrt(probability * (1 - probability) / count)
    assert which.mean(0) == pytest.approx([probability] * 4, abs=4 * deviation)
    pairs = which.T @ which / count
    assert pairs[~np.eye(4, dtype=bool)] == pytest.approx([probability**2] * 12, abs=4 * deviation)


def test_every_tile_is_taken_as_often_and_none_twice_for_one_image():
    scale, count, size = 3, 900, 2
    number = torch.arange(scale * scale, dtype=torch.float32).view(scale, scale)
    gt = number.repeat_interleave(size, 0).repeat_interleave(size, 1).expand(count, 1, -1, -1)
    method = DUKD(zoom_out=False, consistency_probability=0.0, num_patches=4)
    given = dataclasses.replace(step(torch.zeros(count, 1, size, size), scale), gt=gt)
    tiles = method._tiles(given)
    assert tiles.shape == (count * 4, 1, size, size)
    assert all((tile == tile[0, 0]).all() for tile in tiles[:, 0])
    places = tiles[:, 0, 0, 0].view(count, 4)
    assert all(len(set(row.tolist())) == 4 for row in places)
    assert np.bincount(places.flatten().int().numpy()) == pytest.approx([count * 4 / 9] * 9, rel=0.2)


def test_patches_that_are_not_square_are_flipped_but_not_transposed():
    given = step(pictures(8, 4, 6), 2)
    method = DUKD(consistency_probability=1.0, zoom_out_consistency=True)
    which = drawn_operations(given, "DUKD zoom-in", 1, method.consistency_probability, given.lq)
    assert which.tolist() == [[True, True, True, False]] * 8
    assert method(given)["l_zoom_in"].item() == 0.0


def test_sides_that_the_scale_does_not_divide_are_cut_for_zoom_out():
    given = step(pictures(2, 11, 9), 4)
    assert torch.equal(seen(DUKD(zoom_in=False), given), reduced(given.lq[..., :8, :8], 4))


def test_weights_are_the_published_ones_and_enter_once():
    assert DUKD().weights == {"l_zoom_in": 1.0, "l_zoom_out": 1.0, "l_zoom_out_pix": 5.0}
    assert DUKD(zoom_out=False).weights == {"l_zoom_in": 1.0}
    assert DUKD(kd_weight=3.0, pixel_weight=7.0, loss_weight=0.5).weights == {
        "l_zoom_in": 1.5,
        "l_zoom_out": 1.5,
        "l_zoom_out_pix": 3.5,
    }
    model = kd_model({"dukd": DUKD(loss_weight=2.0)})
    output = model(batch(), 1)
    assert output.total.item() == pytest.approx(
        2 * output.parts["l_zoom_in"] + 2 * output.parts["l_zoom_out"] + 10 * output.parts["l_zoom_out_pix"]
    )


@pytest.mark.parametrize("options", [{"zoom_out": False}, {"zoom_in": False}])
def test_each_way_alone_teaches_the_student_and_not_the_teacher(options):
    model = kd_model({"dukd": DUKD(**options)})
    model(batch(), 1).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.network.parameters())
    assert all(p.grad is None for p in model.teacher.network.parameters())


def test_a_swinir_takes_patches_smaller_than_its_window():
    block = {"type": "SwinIR", "upscale": 2, "img_size": 8, "window_size": 8, "depths": [1], "num_heads": [2]}
    block |= {"in_chans": 3, "embed_dim": 8, "upsampler": "pixelshuffle", "img_range": 1.0, "mlp_ratio": 2}
    model = kd_model({"dukd": DUKD()}, student=block)
    assert torch.isfinite(model(batch(size=10), 1).total)


def test_mistakes_are_named():
    with pytest.raises(OptionsError, match="zoom_in: is false, as is zoom_out"):
        DUKD(zoom_in=False, zoom_out=False)
    with pytest.raises(OptionsError, match="num_patches: input should be greater than or equal to 1, got 0"):
        DUKD(num_patches=0)
    with pytest.raises(OptionsError, match="consistency_probability: input should be less than or equal to 1, got 30"):
        DUKD(consistency_probability=30)
    for name in ("kd_weight", "pixel_weight", "loss_weight"):
        with pytest.raises(OptionsError, match=f"DUKD: {name}: input should be greater than or equal to 0, got -1.0"):
            DUKD(**{name: -1.0})
    with pytest.raises(OptionsError, match="DUKD: num_patches: is 5, but at scale 2 an HR image has 4 tiles; lower it"):
        DUKD(num_patches=5)(step(pictures(1, 4, 4), 2))
    with pytest.raises(OptionsError, match="DUKD needs a scale of 2 or more to zoom, got 1"):
        DUKD()(step(pictures(1, 4, 4), 1))
    with pytest.raises(OptionsError, match="LR patches of 3x8 cannot be reduced 4 times"):
        DUKD(zoom_in=False)(step(pictures(1, 3, 8), 4))


@pytest.mark.parametrize(
    ("beside", "without", "idle"),
    [
        ("zoom_out: false", {"zoom_out": False}, {"zoom_out_consistency": True}),
        ("zoom_out: false", {"zoom_out": False}, {"pixel_weight": 1.0}),
        ("zoom_in: false", {"zoom_in": False}, {"num_patches": 2}),
        (
            "zoom_in: false and zoom_out_consistency: false",
            {"zoom_in": False},
            {"consistency_probability": 0.5},
        ),
    ],
)
def test_options_that_nothing_reads_are_refused(beside, without, idle):
    DUKD(**without)
    ((name, value),) = idle.items()
    with pytest.raises(OptionsError) as caught:
        DUKD(**without, **idle)
    assert str(caught.value) == f"DUKD: {name}: is {value}, without effect beside {beside}; leave {name} out"


def test_label_consistency_alone_is_on_the_teachers_input():
    """As in the public code of DCKD: the student's output against A^-1(T(A(I_LR))), each image's A by its seed."""
    given = dataclasses.replace(step(pictures(6, 5, 5), 2), sr=pictures(6, 10, 10), teacher=doubled_ramp)
    method = LabelConsistency(probability=0.5)
    targets = []
    for image, rng in zip(given.lq, given.generators("label consistency"), strict=True):
        chosen = tuple(bool(draw < 0.5) for draw in rng.random(4))
        seen = doubled_ramp(torch.from_numpy(by_hand(image.numpy(), chosen).copy())[None])[0]
        x = torch.from_numpy(undone_by_hand(seen.numpy(), chosen).copy())[None]
        targets.append(x)
    expected = (given.sr - torch.cat(targets)).abs().mean()
    assert method(given)["l_consistency"].item() == pytest.approx(expected.item(), rel=1e-6)
    plain = (given.sr - doubled_ramp(given.lq)).abs().mean()
    assert LabelConsistency(probability=0)(given)["l_consistency"].item() == pytest.approx(plain.item(), rel=1e-6)
    assert abs(expected - plain) > 1e-3
    wide = dataclasses.replace(step(pictures(2, 4, 5), 2), sr=pictures(2, 8, 10), teacher=doubled_ramp)
    assert torch.isfinite(LabelConsistency(probability=1)(wide)["l_consistency"])
    with pytest.raises(OptionsError, match="LabelConsistency: probability: input should be less than or equal to 1"):
        LabelConsistency(probability=1.5)


def doubled_ramp(images: torch.Tensor) -> torch.Tensor:
    """Twice the size, times a ramp in both directions, so that no operation commutes with it."""
    enlarged = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    rows, columns = (torch.arange(side, dtype=images.dtype) / 10 for side in enlarged.shape[-2:])
    return enlarged * (rows[:, None] + 2 * columns)


def test_a_step_in_the_model_runs_on_the_batch_it_is_given():
    """The whole way through a KD model: the parts are those of its student and teacher on the batch's images."""
    model, images = kd_model({"dukd": DUKD(consistency_probability=0.0)}), batch(seeds=(21, 22))
    assert isinstance(images, Batch)
    parts = model(images, 3).parts
    small = torch.stack([imresize(image, 0.5) for image in images.lq])
    with torch.no_grad():
        own, target = model.network(small), model.teacher.network(small)
    assert parts["l_zoom_out"].item() == pytest.approx((own - target).abs().mean().item(), rel=1e-4)
    assert parts["l_zoom_out_pix"].item() == pytest.approx((own - images.lq).abs().mean().item(), rel=1e-5)
