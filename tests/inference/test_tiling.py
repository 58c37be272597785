"""Where tiles lie."""

from __future__ import annotations

import numpy as np
import pytest

from basicsr.inference.tiling import Region, cut_into_cores, with_context

SIZES = [(1, 1), (37, 53), (64, 64), (71, 130), (17, 200), (129, 97)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [1, 8, 29, 64, None])
def test_cores_cover_every_pixel_once_and_are_no_larger_than_asked(size, tile):
    covered = np.zeros(size, int)
    for core in cut_into_cores(Region(0, 0, *size), tile):
        covered[core.slices] += 1
        assert max(core.height, core.width) <= (tile or max(size))
    assert (covered == 1).all()


def test_cores_differ_by_a_pixel_at_most():
    heights = {core.height for core in cut_into_cores(Region(0, 0, 300, 10), 256)}
    assert heights == {150}
    widths = [core.width for core in cut_into_cores(Region(0, 5, 10, 105), 33)]
    assert sorted(widths) == [25, 25, 25, 25]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 5, 16])
@pytest.mark.parametrize("multiple", [1, 7, 8])
def test_a_region_holds_its_context_and_keeps_to_the_grid_of_windows(size, overlap, multiple):
    height, width = size
    for core in cut_into_cores(Region(0, 0, *size), 24):
        region = with_context(core, height, width, overlap, multiple)
        assert region.top % multiple == region.left % multiple == 0
        assert region.top <= max(core.top - overlap, 0) and region.left <= max(core.left - overlap, 0)
        assert min(core.bottom + overlap, height) <= region.bottom <= height
        assert min(core.right + overlap, width) <= region.right <= width
        # A network extends images to full windows at the right and at the bottom: only where the whole image ends.
        assert region.bottom == height or region.height % multiple == 0
        assert region.right == width or region.width % multiple == 0
        assert region.height >= min(multiple, height) and region.width >= min(multiple, width)
