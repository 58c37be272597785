from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import structural_similarity

from basicsr.metrics import calculate_metric, calculate_psnr, calculate_ssim
from basicsr.metrics.metric_util import NoFigureWarning, reorder_image, to_y_channel
from basicsr.utils.errors import DataError, OptionsError
from basicsr.utils.registry import METRIC_REGISTRY


def pair(shape: tuple[int, ...], seed: int = 0, noise: float = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    img = generator.integers(0, 256, shape, dtype=np.uint8)
    return img, np.clip(img + generator.normal(0, noise, shape), 0, 255).astype(np.uint8)


def test_psnr_by_hand() -> None:
    img = np.zeros((4, 4, 3), np.uint8)
    other = img.copy()
    other[0, 0, 0] = 6
    assert calculate_psnr(img, other, 0) == pytest.approx(10 * math.log10(255**2 / (36 / 48)), rel=1e-15)


def test_dark_minus_bright_does_not_wrap_around() -> None:
    dark, bright = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 255, np.uint8)
    assert calculate_psnr(dark, bright, 0) == 0
    assert calculate_psnr(bright, dark, 0) == 0


def test_equal_images_are_infinitely_good() -> None:
    img, _ = pair((16, 16, 3))
    assert calculate_psnr(img, img.copy(), 0) == math.inf
    assert calculate_psnr(img, img.copy(), 2, test_y_channel=True) == math.inf
    assert calculate_ssim(img, img.copy(), 0) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("shape", [(32, 40, 3), (11, 11, 1), (23, 17, 3)])
@pytest.mark.parametrize("noise", [3, 40])
def test_ssim_agrees_with_scikit_image(shape: tuple[int, ...], noise: float) -> None:
    """scikit-image averages over the same pixels: those with a whole window."""
    img, img2 = pair(shape, noise=noise)
    expected = structural_similarity(
        img.astype(np.float64),
        img2.astype(np.float64),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert calculate_ssim(img, img2, 0) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_flat_images_by_hand() -> None:
    """Without variance SSIM is (2 a b + c1) / (a^2 + b^2 + c1)."""
    img, img2 = np.full((15, 15), 100, np.uint8), np.full((15, 15), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert calculate_ssim(img, img2, 0) == pytest.approx(expected, rel=1e-9)


# From basicsr 1.4.2, imported as in scripts/reference/losses_metrics.py (prepare_reference), with `pattern` below:
#   calculate_psnr(*pattern(), crop_border=4, test_y_channel=luma), and calculate_ssim likewise
FROZEN = {
    ("calculate_psnr", False): 31.795962176690956,
    ("calculate_psnr", True): 37.03841063466656,
    ("calculate_ssim", False): 0.9946468533021849,
    ("calculate_ssim", True): 0.9966947925514629,
}


def pattern() -> tuple[np.ndarray, np.ndarray]:
    rows, columns, channels = np.meshgrid(np.arange(37), np.arange(45), np.arange(3), indexing="ij")
    img = (rows * 7 + columns * 5 + channels * 31 + rows * columns) % 256
    img2 = np.clip(img + (rows * 3 + columns * 11 + channels * 5) % 23 - 11, 0, 255)
    return img.astype(np.uint8), img2.astype(np.uint8)


@pytest.mark.parametrize(("name", "luma"), list(FROZEN))
def test_figures_are_those_of_basicsr(name: str, luma: bool) -> None:
    img, img2 = pattern()
    options = {"type": name, "crop_border": 4, "test_y_channel": luma}
    assert calculate_metric({"img": img, "img2": img2}, options) == pytest.approx(FROZEN[name, luma], abs=1e-6)


def test_luma_of_primary_colours_by_hand() -> None:
    """BGR, not RGB: Y of pure blue is 16 + 24.966, of green 16 + 128.553, of red 16 + 65.481."""
    img = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]], np.uint8)
    expected = [40.966, 144.553, 81.481, 235.0, 16.0]
    assert to_y_channel(img)[0, :, 0].tolist() == pytest.approx(expected, abs=1e-4)


def test_psnr_on_luma_by_hand() -> None:
    """A difference of 10 in red alone is one of 65.481 * 10 / 255 in Y."""
    img = np.full((8, 8, 3), 100, np.uint8)
    img2 = img.copy()
    img2[..., 2] += 10
    expected = 20 * math.log10(255 / (65.481 * 10 / 255))
    assert calculate_psnr(img, img2, 0, test_y_channel=True) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
@pytest.mark.parametrize("luma", [False, True])
def test_the_border_is_left_out_and_the_order_of_dimensions_makes_no_difference(metric, luma: bool) -> None:
    img, img2 = pair((30, 26, 3))
    expected = metric(img[4:-4, 4:-4], img2[4:-4, 4:-4], 0, test_y_channel=luma)
    assert metric(img, img2, 4, test_y_channel=luma) == expected
    turned = img.transpose(2, 0, 1), img2.transpose(2, 0, 1)
    assert metric(*turned, 4, input_order="CHW", test_y_channel=luma) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
def test_grey_images_have_the_figures_of_one_channel(metric) -> None:
    img, img2 = pair((20, 24))
    expected = metric(img, img2, 2)
    assert metric(img[..., None], img2[..., None], 2) == expected
    assert metric(img, img2, 2, input_order="CHW") == expected
    assert metric(img, img2, 2, test_y_channel=True) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
def test_the_images_stay_as_they_are_and_may_be_swapped(metric) -> None:
    img, img2 = pair((20, 24, 3))
    before = img.copy(), img2.copy()
    assert metric(img, img2, 1) == pytest.approx(metric(img2, img, 1), rel=1e-14)
    assert np.array_equal(img, before[0])
    assert np.array_equal(img2, before[1])


def test_floating_point_images_give_the_figures_of_the_same_whole_numbers() -> None:
    img, img2 = pair((20, 24, 3))
    for metric in (calculate_psnr, calculate_ssim):
        assert metric(img.astype(np.float32), img2.astype(np.float32), 0) == metric(img, img2, 0)


def test_reordering_knows_its_orders() -> None:
    assert reorder_image(np.zeros((3, 4, 5)), "CHW").shape == (4, 5, 3)
    assert reorder_image(np.zeros((4, 5)), "CHW").shape == (4, 5, 1)
    with pytest.raises(OptionsError, match="input_order is 'WHC'; allowed: HWC, CHW"):
        reorder_image(np.zeros((3, 4, 5)), "WHC")
    with pytest.raises(DataError, match=r"shape \(1, 3, 4, 5\)"):
        reorder_image(np.zeros((1, 3, 4, 5)))


@pytest.mark.parametrize("metric", [calculate_psnr, calculate_ssim])
@pytest.mark.parametrize(
    ("shape", "shape2", "crop_border", "message"),
    [
        ((20, 20, 3), (20, 21, 3), 0, r"\(20, 20, 3\) and \(20, 21, 3\)"),
        ((20, 20, 3), (20, 20, 1), 0, r"\(20, 20, 3\) and \(20, 20, 1\)"),
        ((20, 30, 3), (20, 30, 3), 10, "crop_border 10 leaves nothing of 20 x 30"),
        ((20, 30, 3), (20, 30, 3), -1, "crop_border is -1; it must be 0 or more"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(metric, shape, shape2, crop_border: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        metric(np.zeros(shape, np.uint8), np.zeros(shape2, np.uint8), crop_border)
    assert "\n" not in str(caught.value)


def test_ssim_needs_one_whole_window() -> None:
    img, img2 = pair((18, 19, 3))
    with pytest.warns(NoFigureWarning, match="crop_border 4 leaves 10 x 11 pixels; SSIM needs 11 x 11"):
        assert math.isnan(calculate_ssim(img, img2, 4))


def test_a_metric_is_called_by_its_options_and_does_not_see_better() -> None:
    img, img2 = pair((20, 24, 3))
    options = {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True, "better": "higher"}
    expected = calculate_psnr(img, img2, 2, test_y_channel=True)
    assert calculate_metric({"img": img, "img2": img2}, options) == expected
    assert set(options) == {"type", "crop_border", "test_y_channel", "better"}


def test_a_misspelt_key_is_named() -> None:
    img, img2 = pair((20, 24, 3))
    with pytest.raises(OptionsError, match=r"calculate_psnr: crop_boarder: unknown key .did you mean 'crop_border'"):
        calculate_metric({"img": img, "img2": img2}, {"type": "calculate_psnr", "crop_boarder": 2})
    with pytest.raises(OptionsError, match="did you mean 'calculate_ssim'"):
        calculate_metric({"img": img, "img2": img2}, {"type": "calculate_sim", "crop_border": 2})


def test_a_metric_written_for_basicsr_works_dropped_in() -> None:
    def calculate_mean_difference(img, img2, crop_border, **kwargs):
        return float(np.abs(img.astype(float) - img2).mean()) + crop_border + kwargs["offset"]

    METRIC_REGISTRY.register()(calculate_mean_difference)
    try:
        data = {"img": np.zeros((4, 4, 3), np.uint8), "img2": np.full((4, 4, 3), 2, np.uint8)}
        options = {"type": "calculate_mean_difference", "crop_border": 1, "offset": 0.5, "better": "lower"}
        assert calculate_metric(data, options) == 3.5
    finally:
        del METRIC_REGISTRY._members["calculate_mean_difference"]


def luma_by_hand(img: np.ndarray) -> np.ndarray:
    blue, green, red = np.moveaxis(img.astype(np.float64), 2, 0)
    return 16 + (24.966 * blue + 128.553 * green + 65.481 * red) / 255


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Of two float64 planes, window by window, with variances from the differences to the mean."""
    gauss = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = np.outer(gauss, gauss) / gauss.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    figures = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            variances = (weights * ((a - mean_a) ** 2 + (b - mean_b) ** 2)).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            figure = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
            figures.append(figure / ((mean_a**2 + mean_b**2 + c1) * (variances + c2)))
    return math.fsum(figures) / len(figures)


def hard_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images in which a variance is the small difference of large numbers, and some that are not so hard."""
    generator = np.random.default_rng(3)

    def pixels(values: np.ndarray) -> np.ndarray:
        colours = np.broadcast_to(np.atleast_3d(values), (33, 46, 3))
        return np.clip(colours.round(), 0, 255).astype(np.uint8)

    noise = generator.normal(0, 4, (33, 46))
    flat, ramp = np.full((33, 46), 240.0), np.broadcast_to(np.linspace(0, 255, 46), (33, 46))
    stripes = np.where(np.arange(46) // 15 % 2, 250.0, 5.0) + 0 * flat
    photograph = skimage.data.astronaut()[100:133, 200:246]
    return {
        "random": (
            generator.integers(0, 256, (33, 46, 3), np.uint8),
            generator.integers(0, 256, (33, 46, 3), np.uint8),
        ),
        "flat": (pixels(flat), pixels(flat - 20)),
        "black and white": (pixels(0 * flat), pixels(0 * flat + 255)),
        "nearly flat": (pixels(flat), pixels(flat + (noise > 8))),
        "ramp": (pixels(ramp), pixels(ramp * 0.98 + noise / 4)),
        "opposite ramps": (pixels(ramp), pixels(255 - ramp)),
        "opposite stripes": (pixels(stripes), pixels(255 - stripes)),
        "opposite noise on white": (pixels(flat + noise), pixels(flat - noise)),
        "opposite noise on stripes": (pixels(stripes + noise), pixels(stripes - noise)),
        "photograph": (photograph, cv2.GaussianBlur(photograph, (5, 5), 1)),
        "one window": (photograph[:11, :11], pixels(ramp)[:11, :11]),
    }


@pytest.mark.parametrize("name", list(hard_pairs()))
def test_figures_are_those_worked_out_window_by_window(name: str) -> None:
    """One channel to float64's rounding; luma, of which SSIM is computed in float32, to what the tables do not show.

    Rounding leaves a variance wrong by up to 3 * 2^-24 * 220^2 = 0.009, where s or d lies that far from its mean over
    the block; SSIM changes by up to 1 / (2 c2) = 0.0085 times the error of var_s and 0.017 times that of var_d, so by
    less than 1e-4. It takes images that are each other's opposite to come near that.
    """
    tolerance = 5e-5 if name.startswith("opposite") else 1e-7 if name == "photograph" else 1e-6
    img, img2 = hard_pairs()[name]
    x, y = luma_by_hand(img), luma_by_hand(img2)
    found = calculate_ssim(img, img2, 0, test_y_channel=True)
    assert found == pytest.approx(ssim_by_hand(x, y), abs=tolerance)
    expected_psnr = 10 * math.log10(255**2 / ((x - y) ** 2).mean())
    assert calculate_psnr(img, img2, 0, test_y_channel=True) == pytest.approx(expected_psnr, abs=1e-9)
    blue = img[..., 0].astype(np.float64), img2[..., 0].astype(np.float64)
    assert calculate_ssim(img[..., 0], img2[..., 0], 0) == pytest.approx(ssim_by_hand(*blue), abs=1e-11)


# Of one block, of several, and of blocks whose height the number of rows cannot be divided by.
@pytest.mark.parametrize(("height", "width", "border"), [(60, 70, 4), (419, 400, 3), (35, 9000, 0), (9001, 30, 0)])
@pytest.mark.parametrize("luma", [False, True])
def test_the_number_of_threads_makes_no_difference_to_the_last_bit(
    height: int, width: int, border: int, luma: bool
) -> None:
    img, img2 = pair((height, width, 3))
    before = torch.get_num_threads()
    figures = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            figures.append(
                [metric(img, img2, border, test_y_channel=luma) for metric in (calculate_psnr, calculate_ssim)]
            )
    finally:
        torch.set_num_threads(before)
    assert figures[0] == figures[1] == figures[2]
    inner = slice(border, height - border), slice(border, width - border)
    x, y = (luma_by_hand(image[inner]) if luma else image[inner].astype(np.float64) for image in (img, img2))
    expected = structural_similarity(
        x,
        y,
        channel_axis=None if luma else 2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert figures[0][1] == pytest.approx(expected, abs=1e-7 if luma else 1e-12)
    assert figures[0][0] == pytest.approx(10 * math.log10(255**2 / ((x - y) ** 2).mean()), abs=1e-10)


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float16, np.float64])
def test_types_and_strides_make_no_difference(dtype: type) -> None:
    img, img2 = pair((24, 31, 3))
    for metric in (calculate_psnr, calculate_ssim):
        expected = metric(img, img2, 2, test_y_channel=True)
        assert metric(img.astype(dtype), img2.astype(dtype), 2, test_y_channel=True) == expected
        reversed_twice = img[..., ::-1].copy()[..., ::-1], np.asfortranarray(img2)
        assert metric(*reversed_twice, 2, test_y_channel=True) == expected


def test_a_figure_that_is_not_a_number_stays_visible() -> None:
    img, img2 = (image.astype(np.float64) for image in pair((24, 31, 3)))
    img[12, 12] = math.nan
    for metric in (calculate_psnr, calculate_ssim):
        for luma in (False, True):
            assert math.isnan(metric(img, img2, 0, test_y_channel=luma))
