"""What every registered export format and target must do; a new one is covered without editing this file."""

from __future__ import annotations

import pytest
from support.exports import int8_of
from support.registering import documented_file
from support.students import save_student, student

from basicsr.export.base import ExportFormat, export_formats, load_student
from basicsr.export.exporting import export
from basicsr.utils.errors import CheckpointError
from basicsr.utils.registry import EXPORT_REGISTRY

FORMATS = export_formats()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    network, block = student("EDSR", 2)
    return load_student(save_student(tmp_path_factory.mktemp("student") / "net.pth", network, block))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_has_a_name_an_ending_and_a_description(name):
    entry = FORMATS[name]
    assert isinstance(entry, ExportFormat) and entry.name == name and entry.__doc__
    assert entry.ending.startswith(".") and all(ending.startswith(".") for ending in entry.further)
    others = [other.ending for other in FORMATS.values() if not other.runtime]
    assert entry.runtime or others.count(entry.ending) == 1
    assert set(entry.precisions) <= {"float32", "fp16", "int8"} and entry.precisions[0] == "float32"


def as_arguments(name):
    return {"targets": [name]} if FORMATS[name].runtime else {"formats": [name]}


def float_precisions():
    return [(name, one) for name, entry in FORMATS.items() for one in entry.precisions if one != "int8"]


@pytest.mark.parametrize(("name", "precision"), float_precisions())
def test_a_format_writes_its_files_and_checks_them_at_several_sizes(tmp_path, loaded, name, precision):
    entry = FORMATS[name]
    exported = export(loaded, tmp_path, **as_arguments(name), precision=precision, name="student")
    stem = f"student_{name}{'_fp16' * (precision == 'fp16')}" if entry.runtime else "student"
    assert exported.files == tuple(tmp_path / f"{stem}{ending}" for ending in (entry.ending, *entry.further))
    assert sorted(tmp_path.iterdir()) == sorted(exported.files)
    assert len({check.shape for check in exported.checks}) >= 4
    assert all(check.passed and check.tolerance <= 1.5 / 255 for check in exported.checks)


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if "int8" in entry.precisions])
def test_a_target_in_int8_is_checked_and_its_loss_measured(tmp_path, loaded, name):
    exported = export(loaded, tmp_path, targets=[name], precision="int8", name="student", int8=int8_of(loaded))
    assert all(path.name.startswith(f"student_{name}_int8.") for path in exported.files)
    assert len({check.shape for check in exported.checks}) >= 4 and all(check.passed for check in exported.checks)
    (loss,) = exported.losses
    assert loss.images == 2 and abs(loss.drop) < 0.5 and loss.psnr > 25


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_refuses_a_file_whose_outputs_differ(tmp_path, loaded, name):
    wrong = [(lq, expected + 0.01) for lq, expected in loaded.examples]
    other = type(loaded)(loaded.pretrained, loaded.source, loaded.sha256)
    other.__dict__["examples"] = wrong  # where cached_property keeps its value
    with pytest.raises(CheckpointError, match=r"was not written: .* differs from PyTorch by 0\.01"):
        export(other, tmp_path, **as_arguments(name))
    assert list(tmp_path.iterdir()) == []


def test_a_format_is_one_file(tmp_path, loaded):
    with documented_file("docs/shipping.md", "basicsr/export/pth_format.py", tmp_path, EXPORT_REGISTRY):
        assert export_formats().keys() - FORMATS.keys() == {"pth"}
        exported = export(loaded, tmp_path / "out", formats=["pth"], precision="fp16")
        assert exported.files[0].name == "distilled_x2_fp16.pth" and len(exported.checks) >= 4
