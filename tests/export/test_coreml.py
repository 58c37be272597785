"""Core ML's target: what the package says, what is in it, and what cannot be made. Core ML itself is not here."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from support.students import save_student, student

from basicsr.archs import build_network
from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.export.mil_evaluation import _KNOWN, MilProgram
from basicsr.runtimes.coreml_runtime import CoreML
from basicsr.utils.errors import MachineError, OptionsError

coremltools = pytest.importorskip("coremltools")


def loaded(folder, network, block):
    return load_student(save_student(folder / "net.pth", network, block))


def spec_of(path):
    return coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()


@pytest.fixture(scope="module")
def edsr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coreml")
    given = loaded(folder, *student("EDSR", 2, num_block=1))
    return given, export(given, folder, targets=["coreml"], precision=["float32", "fp16"])


def test_the_package_says_what_it_takes(edsr):
    given, exported = edsr
    path = exported.files[0]
    assert path.name == "distilled_x2_coreml.mlpackage" and path.is_dir()
    spec = spec_of(path)
    assert spec.specificationVersion == coremltools.target.iOS16
    (taken,), (made,) = spec.description.input, spec.description.output
    assert (taken.name, made.name) == ("input", "output")
    ranges = [(one.lowerBound, one.upperBound) for one in taken.type.multiArrayType.shapeRange.sizeRanges]
    assert ranges == [(1, 1), (3, 3), (2, 2048), (2, 2048)]
    told = spec.description.metadata.userDefined
    assert told["scale"] == "2" and given.sha256 in told["source"] and told["precision"] == "float32"
    assert any("was not run by Core ML" in remark for remark in exported.remarks) or sys.platform == "darwin"


def test_in_fp16_all_is_half_but_the_ends(edsr):
    _, (single, half) = edsr[0], edsr[1].files
    types = {"conv": [], "pixel_shuffle": []}
    for op in MilProgram(half)._main.operations:
        if op.op_type in types:
            types[op.op_type].append(op.outputs[0].dtype.__name__)
    assert types["conv"][0] == types["conv"][-1] == "fp32" and set(types["conv"][1:-1]) == {"fp16"}
    weights = [sum(file.stat().st_size for file in path.rglob("*.bin")) for path in (single, half)]
    assert weights[1] < 0.7 * weights[0]
    for feature in (*spec_of(half).description.input, *spec_of(half).description.output):
        assert feature.type.multiArrayType.dataType == 65568  # ArrayFeatureType's FLOAT32


def test_what_is_checked_is_the_file(edsr, tmp_path):
    """Other weights in the package give another output."""
    import shutil

    given, exported = edsr
    changed = shutil.copytree(exported.files[0], tmp_path / "changed.mlpackage")
    (weights,) = changed.rglob("weight.bin")
    content = bytearray(weights.read_bytes())
    content[-512:] = bytes(512)
    weights.write_bytes(content)
    image = given.examples[0][0]
    assert (MilProgram(changed)(image) - MilProgram(exported.files[0])(image)).abs().max() > 1e-4


def test_windows_are_written_for_one_size(tmp_path):
    given = loaded(tmp_path, *student("SwinIR", 2))
    with pytest.raises(OptionsError, match=r"coreml: SwinIR has attention in windows: .*; give --size H W"):
        export(given, tmp_path / "out", targets=["coreml"])
    exported = export(given, tmp_path / "out", targets=["coreml"], size=(24, 16))
    assert max(check.difference for check in exported.checks) < 1e-5
    # Core ML takes tensors of five axes at most.
    operations = MilProgram(exported.files[0])._main.operations
    assert max(len(var.shape) for op in operations for var in op.outputs) <= 5
    assert spec_of(exported.files[0]).description.metadata.userDefined["size"] == "24x16"


def test_attention_with_pooling_and_resizing_is_written_for_one_size(tmp_path):
    block = {"type": "RLFN", "num_feat": 8, "esa_channels": 4, "num_block": 1, "upscale": 3}
    torch.manual_seed(0)
    given = loaded(tmp_path, build_network(block).eval(), block)
    folder = tmp_path / "out" / "net_x3_coreml.mlpackage"  # of an earlier export
    (folder / "old").mkdir(parents=True)
    exported = export(given, tmp_path / "out", targets=["coreml"], size=(30, 41), name="net_x3")
    assert max(check.difference for check in exported.checks) < 1e-5
    assert list((tmp_path / "out").iterdir()) == [folder] == list(exported.files)
    assert not (folder / "old").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="has Core ML")
def test_elsewhere_than_on_apples_systems_it_is_not_run(edsr):
    assert not CoreML.installed()
    with pytest.raises(MachineError, match="only Apple's systems run Core ML"):
        CoreML().load(edsr[1].files[0], threads=1)


def numbers(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_slices_are_numpys():
    x = torch.arange(60.0).reshape(3, 4, 5)
    flags = torch.tensor([False, True, False])
    given = {"x": x, "begin": numbers(-2, 9, 1), "end": numbers(3, -1, 2), "stride": numbers(1, 2, 1)}
    got = _KNOWN["slice_by_index"]({**given, "begin_mask": flags, "squeeze_mask": torch.tensor([False, False, True])})
    np.testing.assert_array_equal(got, x.numpy()[-2:3, :-1:2, 1])


def test_a_factor_that_is_a_little_too_small_loses_a_row():
    """As Core ML rounds down: 7 times the number below 1.5 is less than 10.5 anyway, 8 times less than 12."""
    below = np.nextafter(np.float32(1.5), np.float32(0))
    grow = _KNOWN["upsample_nearest_neighbor"]
    for side, grown in ((7, 10), (8, 11)):
        x = torch.zeros(1, 1, side, side)
        assert grow({"x": x, "scale_factor_height": below, "scale_factor_width": below}).shape[-1] == grown
    assert grow({"x": x, "scale_factor_height": 1.5, "scale_factor_width": 1.5}).shape[-1] == 12


def test_sizes_are_computed_as_single_numbers():
    """As a program for any size does: a side of the image's shape, joined to others."""
    shape = _KNOWN["shape"]({"x": torch.zeros(1, 3, 5, 7)})
    height = _KNOWN["gather"]({"x": shape, "indices": torch.tensor(2, dtype=torch.int32), "axis": 0})
    assert height.shape == () and height == 5
    joined = _KNOWN["concat"]({"values": [height, numbers(4, 2)], "axis": 0})
    assert joined.tolist() == [5, 4, 2]
