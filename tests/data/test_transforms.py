from __future__ import annotations

import random
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from basicsr.data.transforms import Coins, augment, mod_crop, paired_random_crop, turned
from basicsr.utils.errors import DataError
from basicsr.utils.randomness import generator, preserved_global_state


def coordinates(height: int, width: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=2)


def test_mod_crop_cuts_below_and_right_and_copies():
    img = coordinates(7, 10)
    cropped = mod_crop(img, 3)
    np.testing.assert_array_equal(cropped, img[:6, :9])
    cropped[:] = -1
    assert img.min() == 0
    with pytest.raises(DataError, match="got 4"):
        mod_crop(np.zeros((1, 2, 3, 4)), 2)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_hr_and_lr_patches_show_the_same_place(scale):
    lq, gt = coordinates(9, 11), coordinates(9 * scale, 11 * scale)
    for seed in range(20):
        patch_gt, patch_lq = paired_random_crop(gt, lq, 4 * scale, scale, rng=generator(seed, "crop"))
        assert patch_lq.shape == (4, 4, 2)
        assert patch_gt.shape == (4 * scale, 4 * scale, 2)
        np.testing.assert_array_equal(patch_gt[::scale, ::scale], patch_lq * scale)


def test_every_place_is_reached_up_to_the_far_corner():
    lq, gt = coordinates(5, 6), coordinates(10, 12)
    found = set()
    for seed in range(200):
        _, patch = paired_random_crop(gt, lq, 8, 2, rng=generator(seed, "crop"))
        found.add(tuple(patch[0, 0].tolist()))
    assert found == {(top, left) for top in range(2) for left in range(3)}


def test_tensors_and_lists_are_cropped_alike():
    lq, gt = coordinates(9, 11), coordinates(18, 22)
    tensors = [torch.from_numpy(img).permute(2, 0, 1) for img in (gt, lq)]
    array_gt, array_lq = paired_random_crop(gt, [lq, lq], 8, 2, rng=generator(1, "crop"))
    tensor_gt, tensor_lq = paired_random_crop(tensors[0], tensors[1], 8, 2, rng=generator(1, "crop"))
    np.testing.assert_array_equal(tensor_gt.permute(1, 2, 0).numpy(), array_gt)
    for entry in array_lq:
        np.testing.assert_array_equal(tensor_lq.permute(1, 2, 0).numpy(), entry)


def test_pairs_that_do_not_fit_are_refused_by_name_and_size():
    with pytest.raises(DataError, match=r"HR a\.png is 11x12, LR image is 5x6 .* must be 10x12"):
        paired_random_crop(coordinates(11, 12), coordinates(5, 6), 4, 2, "a.png")
    with pytest.raises(DataError, match=r"a\.png is 10x12.* smaller than patches of 12 \(LR 6\)"):
        paired_random_crop(coordinates(10, 12), coordinates(5, 6), 12, 2, "a.png")


def test_augmentation_reaches_all_eight_ways_equally_often_and_changes_nothing_in_place():
    img = np.arange(6).reshape(2, 3)
    counts = Counter()
    rng = generator(0, "augment")
    for _ in range(800):
        counts[str(augment(img, rng=rng).tolist())] += 1
    square = [np.rot90(turned, k) for turned in (img, img[:, ::-1]) for k in range(4)]
    assert set(counts) == {str(entry.tolist()) for entry in square}
    assert min(counts.values()) > 60
    assert img.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("hflip, rotation, ways", [(False, False, 1), (True, False, 2), (False, True, 4)])
def test_only_what_is_allowed_happens(hflip, rotation, ways):
    img = np.arange(6).reshape(2, 3)
    rng = generator(0, "augment")
    assert len({str(augment(img, hflip, rotation, rng=rng)) for _ in range(100)}) == ways


def test_all_images_of_a_list_are_turned_alike_and_the_coins_reported():
    img = coordinates(4, 4)
    for seed in range(10):
        (one, two), (hflip, vflip, swapped) = augment([img, img * 2], return_status=True, rng=generator(seed, "a"))
        np.testing.assert_array_equal(one * 2, two)
        expected = img[:, ::-1] if hflip else img
        expected = expected[::-1] if vflip else expected
        np.testing.assert_array_equal(one, expected.transpose(1, 0, 2) if swapped else expected)


def test_without_a_generator_pythons_global_random_is_used_as_in_basicsr():
    lq, gt = coordinates(20, 20), coordinates(40, 40)
    with preserved_global_state():
        random.seed(4)
        first = paired_random_crop(gt, lq, 8, 2)[1], augment(lq)
        random.seed(4)
        top, left = random.randint(0, 16), random.randint(0, 16)
        np.testing.assert_array_equal(first[0][0, 0], [top, left])
        coins = [random.random() < 0.5 for _ in range(3)]
        random.seed(4)
        paired_random_crop(gt, lq, 8, 2)
        assert augment(lq, return_status=True)[1] == tuple(coins)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int64, bool])
@pytest.mark.parametrize("channels", [1, 3, 4, None])
def test_turning_is_flipping_and_swapping_for_arrays_of_any_kind_and_order(dtype, channels):
    shape = (9, 11) if channels is None else (9, 11, channels)
    whole = np.random.default_rng(0).integers(0, 250, shape).astype(dtype)
    views = [whole, whole[2:7, 3:9], whole[::-1], whole[:, ::-2], whole.swapaxes(0, 1)]
    if channels is not None:
        views += [whole[..., ::-1], whole[1:6, 2:5, ::-1], whole[::-1, :, ::-1]]
    for img, horizontal, vertical, swapped in product(views, *[(False, True)] * 3):
        before = img.copy()
        expected = img[:: -1 if vertical else 1, :: -1 if horizontal else 1]
        expected = expected.swapaxes(0, 1) if swapped else expected
        found = turned(img, Coins(horizontal, vertical, swapped))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(img, before)
        assert found.dtype == img.dtype and (found.flags.c_contiguous or found[..., ::-1].flags.c_contiguous)


def test_augmented_images_are_contiguous_whatever_the_order_of_their_channels():
    img = np.random.default_rng(0).integers(0, 250, (9, 11, 3), dtype=np.uint8)
    for seed in range(8):
        one, other = (augment(view, rng=np.random.default_rng(seed)) for view in (img[..., ::-1], img))
        assert one.flags.c_contiguous
        np.testing.assert_array_equal(one, other[..., ::-1])
