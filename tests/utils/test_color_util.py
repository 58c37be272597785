from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr as skimage_rgb2ycbcr

from basicsr.utils import bgr2ycbcr, rgb2ycbcr, rgb2ycbcr_pt, ycbcr2rgb
from basicsr.utils.color_util import luma_of_bgr


@pytest.fixture
def img() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)


def test_black_and_white_are_16_and_235():
    pixels = np.array([[[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    assert rgb2ycbcr(pixels).tolist() == [[[16, 128, 128], [235, 128, 128]]]


def test_agrees_with_scikit_image_in_float(img):
    unit = img.astype(np.float32) / 255
    np.testing.assert_allclose(rgb2ycbcr(unit) * 255, skimage_rgb2ycbcr(img), atol=1e-4)


def test_uint8_is_rounded_to_the_nearest(img):
    exact = skimage_rgb2ycbcr(img)
    np.testing.assert_array_less(np.abs(rgb2ycbcr(img) - exact), 0.5 + 1e-4)
    assert rgb2ycbcr(img).dtype == np.uint8


def test_y_only_is_the_first_channel(img):
    np.testing.assert_array_equal(rgb2ycbcr(img, y_only=True), rgb2ycbcr(img)[..., 0])
    np.testing.assert_array_equal(bgr2ycbcr(img, y_only=True), bgr2ycbcr(img)[..., 0])


def test_bgr_is_rgb_with_reversed_channels(img):
    np.testing.assert_array_equal(bgr2ycbcr(img), rgb2ycbcr(img[..., ::-1]))


def test_the_matrix_of_luma_is_that_of_the_conversion(img):
    weights = luma_of_bgr()[0]
    np.testing.assert_allclose(img @ weights[:3] + weights[3], skimage_rgb2ycbcr(img[..., ::-1])[..., 0], atol=1e-12)


def test_float_images_keep_their_type_and_are_not_changed():
    for dtype in (np.float32, np.float64):
        img = np.full((2, 2, 3), 0.5, dtype)
        assert rgb2ycbcr(img).dtype == dtype
        assert (img == 0.5).all()


def test_ycbcr_to_rgb_inverts(img):
    unit = img.astype(np.float64) / 255
    np.testing.assert_allclose(ycbcr2rgb(rgb2ycbcr(unit)), unit, atol=1e-12)
    assert np.abs(ycbcr2rgb(rgb2ycbcr(img)).astype(int) - img).max() <= 2


def test_colours_outside_rgb_are_clipped_not_wrapped():
    assert ycbcr2rgb(np.array([[[255, 255, 255]]], dtype=np.uint8)).tolist()[0][0][0] == 255


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="int64"):
        rgb2ycbcr(np.zeros((2, 2, 3), dtype=np.int64))


def test_tensor_version_agrees_and_has_gradients():
    batch = torch.rand(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = rgb2ycbcr(batch.permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(rgb2ycbcr_pt(batch).permute(0, 2, 3, 1), torch.from_numpy(expected))
    assert rgb2ycbcr_pt(batch, y_only=True).shape == (2, 1, 5, 7)
    batch.requires_grad_()
    rgb2ycbcr_pt(batch, y_only=True).sum().backward()
    torch.testing.assert_close(batch.grad[0, :, 0, 0] * 255, torch.tensor([65.481, 128.553, 24.966]).double())


def test_tensor_version_stays_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rgb2ycbcr_pt(torch.rand(1, 3, 4, 4)).dtype == torch.float32
