"""ncnn's runtime: options, files of others, files that are none."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.students import save_student, student

from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.runtimes.base import runtime_for
from basicsr.runtimes.ncnn_runtime import Ncnn
from basicsr.utils.errors import CheckpointError, DataError, OptionsError

# Enlarges by repetition, and adds 1 to the blob that comes in: a layer that works in place.
OF_OTHERS = """7767517
3 3
Input in 0 1 data
BinaryOp plus 1 1 data more 0=0 1=1 2=1.0
Interp enlarge 1 1 more output 0=1 1=3.0 2=3.0
"""


@pytest.fixture(scope="module")
def edsr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ncnn")
    network, block = student("EDSR", 2)
    exported = export(load_student(save_student(folder / "net.pth", network, block)), folder, targets=["ncnn"])
    return network, exported.files[0]


@pytest.fixture
def by_others(tmp_path):
    (tmp_path / "enlarge.bin").write_bytes(b"")
    (tmp_path / "enlarge.param").write_text(OF_OTHERS)
    return tmp_path / "enlarge.param"


def test_a_file_of_others_is_run_at_the_scale_that_it_turns_out_to_have(by_others):
    loaded = runtime_for(by_others).load(by_others, threads=1)
    assert (loaded.facts.scale, loaded.facts.channels, loaded.facts.size) == (3, 3, None)
    images = np.random.default_rng(0).random((2, 3, 7, 5), np.float32)
    before = images.copy()
    first = loaded(images)
    np.testing.assert_array_equal(first, images.repeat(3, 2).repeat(3, 3) + 1)
    np.testing.assert_array_equal(images, before)  # the layer's work in place is not in the caller's array
    loaded(np.zeros_like(images))
    np.testing.assert_array_equal(first, before.repeat(3, 2).repeat(3, 3) + 1)  # a result is the caller's


@torch.no_grad()
def test_precisions_are_what_they_say(edsr):
    network, path = edsr
    images = torch.rand(1, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    expected = network(images).numpy()

    def difference(**settings):
        loaded = Ncnn().load(path, threads=1, settings=settings)
        assert loaded.computes_in == settings.get("precision", "float32")
        return np.abs(loaded(images.numpy()) - expected).max()

    assert difference() < 5e-6
    assert difference(winograd=False) < 2e-6
    assert 1e-4 < difference(precision="bf16") < 3e-2  # eight bits


def test_threads_change_no_more_than_rounding(edsr):
    images = np.random.default_rng(0).random((1, 3, 30, 50), np.float32)
    one, two = (Ncnn().load(edsr[1], threads=threads)(images) for threads in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_settings_that_there_are_not_are_refused(edsr):
    with pytest.raises(OptionsError, match="ncnn has no setting depth; it has precision and winograd"):
        Ncnn().load(edsr[1], threads=1, settings={"depth": 3})
    with pytest.raises(OptionsError, match="precision int4: give one of float32, fp16, bf16"):
        Ncnn().load(edsr[1], threads=1, settings={"precision": "int4"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "is no .param file of ncnn, or is cut short"),
        (lambda text: "\udcff\n" + text, "is no .param file of ncnn"),
        (lambda text: text[: text.rindex("\n", 0, -1)], "is no .param file of ncnn, or is cut short"),
        (lambda text: text.replace("BinaryOp", "torch.gt"), "it knows no layer torch.gt"),
    ],
)
def test_a_param_file_that_is_broken_is_refused_in_a_line(by_others, change, message):
    by_others.write_text(change(OF_OTHERS), errors="surrogateescape")
    with pytest.raises(CheckpointError, match=message):
        Ncnn().load(by_others, threads=1)


def test_weights_that_are_missing_or_cut_short_are_refused(edsr, tmp_path):
    param = tmp_path / "net.param"
    param.write_bytes(edsr[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"there is no net\.bin"):
        Ncnn().load(param, threads=1)
    whole = edsr[1].with_suffix(".bin").read_bytes()
    (tmp_path / "net.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="no pair, or cut short"):
        Ncnn().load(param, threads=1)


def test_a_size_that_the_file_does_not_take_is_refused(tmp_path):
    network, block = student("EDSR", 2)
    given = load_student(save_student(tmp_path / "net.pth", network, block))
    path = export(given, tmp_path, targets=["ncnn"], size=(24, 20)).files[0]
    loaded = Ncnn().load(path, threads=1)
    assert loaded.facts.size == (24, 20)
    with pytest.raises(DataError, match="the file is for images of 24x20, not 20x24"):
        loaded(np.zeros((1, 3, 20, 24), np.float32))


def test_the_runtime_needs_no_pytorch(edsr):
    program = f"""
import sys
from pathlib import Path
import numpy
from basicsr.runtimes.ncnn_runtime import Ncnn
print(Ncnn().load(Path({str(edsr[1])!r}), threads=1)(numpy.zeros((1, 3, 9, 8), "f")).shape, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(1, 3, 18, 16) False"
