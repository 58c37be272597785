from __future__ import annotations

import numpy as np
import pytest
import torch

from basicsr.utils.matlab_functions import imresize, imresize_integer

# scale, antialiasing, shape, values [1, :4, 2], sum of values times cos(place) by basicsr 1.4.2:
# python scripts/reference/imresize.py
REFERENCE = [
    (0.5, True, (12, 14, 3), [0.410123, 0.506143, 0.431939, 0.435493], -1.42614),
    (0.5, False, (12, 14, 3), [0.540686, 0.461765, 0.485294, 0.430392], -2.31357),
    (1 / 3, True, (8, 9, 3), [0.525148, 0.395736, 0.380968, 0.425983], 1.06077),
    (1 / 3, False, (8, 9, 3), [0.396078, 0.266667, 0.137255, 0.007843], 1.36312),
    (0.25, True, (6, 7, 3), [0.541624, 0.451382, 0.441736, 0.577492], -0.03408),
    (0.7, True, (17, 19, 3), [0.195020, 0.439751, 0.552641, 0.332614], 0.12529),
    (0.7, False, (17, 19, 3), [0.149234, 0.307960, 0.731493, 0.312791], -0.08135),
    (2, True, (48, 54, 3), [-0.004965, 0.019599, 0.068727, 0.123238], -1.88276),
    (1.5, True, (36, 41, 3), [-0.001872, 0.070496, 0.191703, 0.339670], 0.15821),
]


def pattern(height: int, width: int) -> np.ndarray:
    rows, columns, channels = np.indices((height, width, 3))
    return ((7 * rows * rows + 13 * columns + 29 * channels * columns * rows) % 256 / 255).astype(np.float32)


@pytest.mark.parametrize("scale, antialiasing, shape, values, spread", REFERENCE)
def test_agrees_with_basicsr(scale, antialiasing, shape, values, spread):
    resized = imresize(pattern(24, 27), scale, antialiasing)
    assert resized.shape == shape
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized[1, :4, 2], values, atol=1e-5)
    waves = np.cos(np.arange(resized.size)).reshape(shape)
    assert float((resized.astype(np.float64) * waves).sum()) == pytest.approx(spread, abs=1e-4)


def test_value_by_hand_for_one_half():
    # Output pixel 2 of 4 lies at 3.5; weights k(d / 2) / 2 for d = 0.5, 1.5, 2.5, 3.5 on either side.
    weights = [(1.5 * d**3 - 2.5 * d**2 + 1) / 2 for d in (0.25, 0.75)]
    weights += [(-0.5 * d**3 + 2.5 * d**2 - 4 * d + 2) / 2 for d in (1.25, 1.75)]
    row = np.zeros((1, 8))
    row[0, 3] = 1.0  # pixel 4, half a pixel to the right
    tall = np.repeat(row, 8, axis=0)
    assert sum(weights) == pytest.approx(0.5)
    np.testing.assert_allclose(imresize(tall, 0.5)[1, 1], weights[0], atol=1e-12)
    np.testing.assert_allclose(imresize(tall, 0.5)[1, 0], weights[2], atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 0.25, 0.7, 2, 3])
def test_a_flat_image_stays_flat_up_to_the_border(scale):
    np.testing.assert_allclose(imresize(np.full((12, 24), 0.3), scale), 0.3, atol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 1 / 3, 2])
def test_mirrored_images_give_mirrored_results(scale):
    img = pattern(24, 30).astype(np.float64)
    np.testing.assert_allclose(imresize(img[::-1, ::-1], scale), imresize(img, scale)[::-1, ::-1], atol=1e-12)


@pytest.mark.parametrize("size, scale", [(49, 1 / 49), (2035, 1 / 5), (510, 1 / 3), (3, 1 / 3)])
def test_sizes_are_whole_where_the_scale_divides_them(size, scale):
    assert imresize(np.zeros((size, 4)), scale).shape[0] == round(size * scale)


def test_images_smaller_than_the_kernel_are_resized():
    np.testing.assert_allclose(imresize(np.full((2, 1, 3), 0.5), 0.25), np.full((1, 1, 3), 0.5))


def test_tensors_give_the_arrays_result_with_channels_first():
    img = pattern(12, 10)
    tensor = torch.from_numpy(img.transpose(2, 0, 1)).requires_grad_()
    resized = imresize(tensor, 0.5)
    assert not resized.requires_grad
    np.testing.assert_array_equal(resized.numpy().transpose(1, 2, 0), imresize(img, 0.5))
    assert imresize(tensor[0].bfloat16(), 2).shape == (24, 20)
    assert imresize(tensor.double(), 2).dtype == torch.float64


class TestIntegers:
    def test_each_pass_rounds_halves_upwards_after_rows_and_columns(self):
        img = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        rows = np.stack([imresize(img[:, [i] * 8].astype(np.float64), 0.5)[:, 0] for i in range(24)], axis=1)
        rows = np.floor(np.clip(rows, 0, 255) + 0.5)
        both = np.stack([imresize(rows[[i] * 8], 0.5)[0] for i in range(10)])
        np.testing.assert_array_equal(imresize_integer(img, 0.5), np.floor(np.clip(both, 0, 255) + 0.5))

    def test_once_rounds_the_floating_point_result(self):
        img = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        exact = imresize(img.astype(np.float64), 0.5)
        once = imresize_integer(img, 0.5, "once")
        np.testing.assert_array_equal(once, np.floor(np.clip(exact, 0, 255) + 0.5))
        assert (once != imresize_integer(img, 0.5)).any()

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_overshoot_is_clipped_to_the_type(self, dtype):
        top = np.iinfo(dtype).max
        edge = np.zeros((8, 8), dtype)
        edge[:, 4:] = top
        resized = imresize_integer(edge, 2)
        assert resized.dtype == dtype
        assert (resized.min(), resized.max()) == (0, top)
