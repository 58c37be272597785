from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import write_graph

from basicsr.inference.file_networks import FileNetwork
from basicsr.inference.runner import ImageRunner
from basicsr.inference.tiling import Region, of_size
from basicsr.runtimes.base import LoadedFile, runtimes
from basicsr.utils.errors import MachineError, OptionsError


def network_of(path, runtime="onnxruntime"):
    return FileNetwork(runtimes()[runtime].load(path, threads=1), path.name)


def runner_of(network, **settings):
    return ImageRunner(
        network,
        network.scale,
        torch.device("cpu"),
        only_size=network.only_size,
        follows_pooling=False,
        **settings,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same graph for any size, and for 24x32 only."""
    folder = tmp_path_factory.mktemp("graphs")
    return write_graph(folder / "any.onnx"), write_graph(folder / "fixed.onnx", size=(24, 32))


def image(height, width):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("size", "self_ensemble"),
    [((24, 32), False), ((40, 70), False), ((25, 33), False), ((24, 90), False), ((40, 70), True), ((33, 32), True)],
)
def test_a_file_of_one_size_makes_the_same_of_larger_images_as_one_of_any_size(files, size, self_ensemble):
    expected = runner_of(network_of(files[0]), tile=None, self_ensemble=self_ensemble)(image(*size))
    found = runner_of(network_of(files[1]), tile_overlap=3, self_ensemble=self_ensemble)(image(*size))
    assert torch.allclose(found, expected, atol=1e-6)


def test_smaller_images_are_extended_by_reflection_and_cut_again(files):
    small = image(10, 20)
    extended = np.pad(small.numpy(), ((0, 0), (0, 0), (0, 14), (0, 12)), mode="reflect")
    expected = network_of(files[1])(torch.from_numpy(extended))[..., :20, :40]
    assert torch.equal(runner_of(network_of(files[1]))(small), expected)
    assert runner_of(network_of(files[1]))(image(1, 1)).shape == (1, 3, 2, 2)


def test_a_file_of_a_largest_size_makes_the_same_of_larger_images_in_tiles_and_takes_smaller_ones_as_they_are(files):
    class Bounded(LoadedFile):
        """As ExecuTorch's files, whose memory is planned for one size."""

        def __init__(self) -> None:
            self.loaded = runtimes()["onnxruntime"].load(files[0], threads=1)
            self.facts, self.computes_in = replace(self.loaded.facts, most=(24, 32)), self.loaded.computes_in

        def __call__(self, images):
            assert images.shape[-2] <= 24 and images.shape[-1] <= 32
            return self.loaded(images)

    network = FileNetwork(Bounded(), "bounded")
    for size in ((40, 70), (24, 32), (10, 20)):
        expected = runner_of(network_of(files[0]), tile=None)(image(*size))
        assert torch.allclose(runner_of(network, tile_overlap=3)(image(*size)), expected, atol=1e-6)


def test_tiles_of_a_file_are_those_of_the_whole_image(files):
    network = network_of(files[0])
    whole = runner_of(network, tile=None)(image(50, 61))
    assert torch.allclose(runner_of(network, tile=16)(image(50, 61)), whole, atol=1e-6)


def test_a_picture_in_bytes_is_that_of_the_floats(files):
    network = network_of(files[0])
    expected = runner_of(network, tile=None)(image(21, 30))[0].clamp(0, 1).permute(1, 2, 0).mul(255).round()
    assert np.array_equal(runner_of(network, tile=16).to_array(image(21, 30), np.uint8), expected.numpy())


def test_an_overlap_that_leaves_no_tile_is_refused(files):
    with pytest.raises(OptionsError, match=r"tile_overlap 12: fixed\.onnx takes images of 24 pixels a side only"):
        runner_of(network_of(files[1]), tile_overlap=12)


def test_what_a_runtime_says_is_told_in_a_line(files):
    with pytest.raises(MachineError, match=r"any.onnx fails on images of 8x8 \(.*\)$") as caught:
        network_of(files[0])(torch.zeros(1, 4, 8, 8))
    assert "\n" not in str(caught.value)


@given(
    *(st.integers(1, 80) for _ in range(2)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_regions_of_one_size_hold_the_region_within_the_image(height, width, exact, shares):
    top, left = int(shares[0] * (height - 1)), int(shares[1] * (width - 1))
    region = Region(
        top,
        left,
        top + 1 + int(shares[2] * (min(exact[0], height - top) - 1)),
        left + 1 + int(shares[3] * (min(exact[1], width - left) - 1)),
    )
    found = of_size(region, height, width, exact)
    assert (found.height, found.width) == (min(exact[0], height), min(exact[1], width))
    assert 0 <= found.top <= region.top and region.bottom <= found.bottom <= height
    assert 0 <= found.left <= region.left and region.right <= found.right <= width
