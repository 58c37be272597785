"""Pictures of every kind through networks whose output is known: each pixel repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.networks import nearest_edsr

from basicsr.inference.pictures import Picture
from basicsr.inference.runner import ImageRunner
from basicsr.inference.trials import for_colours
from basicsr.inference.upscaling import Upscaler, fill_hidden
from basicsr.utils.color_util import rgb2ycbcr, ycbcr2rgb
from basicsr.utils.matlab_functions import imresize


def pixels(channels: int, dtype: type = np.uint8, height: int = 11, width: int = 13) -> np.ndarray:
    full = np.iinfo(dtype).max
    return np.random.default_rng(channels).integers(0, full + 1, (height, width, channels), dtype=dtype)


def repeated(array: np.ndarray, scale: int) -> np.ndarray:
    return array.repeat(scale, axis=0).repeat(scale, axis=1)


def upscaler(scale: int = 2, channels: int = 3, **options) -> Upscaler:
    network, _ = nearest_edsr(scale, channels)
    return Upscaler(ImageRunner(for_colours(network), scale, torch.device("cpu"), **options).to_array, scale, channels)


class TestPixels:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize(("channels", "network_channels"), [(1, 1), (2, 1), (1, 3), (2, 3), (3, 3), (4, 3)])
    def test_every_kind_of_picture_through_either_kind_of_network(self, channels, dtype, network_channels):
        """Exactly: float32 on a range of 255 errs by less than a hundredth of a 16-bit level."""
        given = pixels(channels, dtype)
        found = upscaler(3 if dtype == np.uint16 else 2, network_channels)(Picture(given)).pixels
        scale = found.shape[0] // given.shape[0]
        assert found.dtype == dtype
        visible = found[..., -1] > 0 if channels in (2, 4) else np.ones(found.shape[:2], bool)
        assert np.array_equal(found[visible], repeated(given, scale)[visible])
        if channels in (2, 4):
            assert np.array_equal(found[..., -1], repeated(given, scale)[..., -1])

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_a_gray_network_makes_the_luma_of_colours_and_bicubic_their_chroma(self, dtype):
        full = np.iinfo(dtype).max
        given = (pixels(4, dtype) // 4 + full // 3).astype(dtype)  # no colour leaves RGB
        found = upscaler(3, 1)(Picture(given)).pixels
        wanted = rgb2ycbcr(repeated(given[..., :3], 3) / full)
        wanted[..., 1:] = imresize(rgb2ycbcr(given[..., :3] / full), 3)[..., 1:]
        assert np.abs(found[..., :3] - ycbcr2rgb(wanted) * full).max() < (0.51 if dtype == np.uint8 else 0.6)
        assert np.array_equal(found[..., 3], repeated(given[..., 3], 3))

    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (37, 2)])
    def test_pictures_of_any_size_whole_and_in_tiles(self, size):
        given = pixels(4, height=size[0], width=size[1])
        given[..., 3] |= 1
        for options in ({}, {"tile": 16, "tile_overlap": 4}, {"self_ensemble": True}):
            found = upscaler(2, 3, **options)(Picture(given)).pixels
            assert np.array_equal(found, repeated(given, 2))

    def test_what_a_picture_carries_goes_along(self):
        picture = Picture(pixels(3), b"profile", {0x8769: {0xA002: 13, 0xA003: 11, 1: "x"}}, (300, 300), ("a note",))
        found = upscaler()(picture)
        assert (found.icc, found.dpi, found.notes) == (b"profile", (300, 300), ("a note",))
        assert found.exif == {0x8769: {0xA002: 26, 0xA003: 22, 1: "x"}}


class TestAlpha:
    def test_constant_alpha_is_not_run(self):
        for value in (0, 77, 255):
            given = pixels(4)
            given[..., 3] = value
            found = upscaler()(Picture(given)).pixels
            assert np.array_equal(found, repeated(given, 2))

    def test_what_was_opaque_or_transparent_stays_so_whatever_the_network_does(self):
        """A network that darkens by 20 and lightens by 20 in turn, as one that was never trained on flat areas."""
        alpha = np.zeros((12, 12), np.uint8)
        alpha[:, 6:] = 255
        given = np.dstack([pixels(3, height=12, width=12), alpha])
        exact = upscaler()

        def noisy(lq: torch.Tensor, dtype: type) -> np.ndarray:
            large = exact._run(lq, dtype).astype(int)
            return (large + np.where(np.indices(large.shape).sum(0) % 2, 20, -20)).clip(0, 255).astype(np.uint8)

        found = Upscaler(noisy, 2, 3)(Picture(given)).pixels[..., 3]
        assert (found[:, :10] == 0).all()
        assert (found[:, 14:] == 255).all()
        assert len(np.unique(found[:, 10:14])) > 2  # the edge itself is the network's

    def test_hidden_colours_become_those_of_the_nearest_visible_pixels(self):
        colours = np.zeros((5, 9, 3), np.uint8)
        alpha = np.zeros((5, 9), np.uint8)
        colours[2, 1], alpha[2, 1] = (10, 20, 30), 1
        colours[2, 7], alpha[2, 7] = (70, 80, 90), 255
        found = fill_hidden(colours, alpha)
        assert (found[:, :4] == (10, 20, 30)).all()
        assert (found[:, 5:] == (70, 80, 90)).all()
        assert (colours[0] == 0).all()

    def test_colours_are_left_where_all_or_nothing_is_hidden(self):
        for value in (0, 255):
            colours = pixels(3)
            assert fill_hidden(colours, np.full(colours.shape[:2], value, np.uint8)) is colours
