"""What every registered export format must do; a new one is covered without editing this file."""

from __future__ import annotations

import pytest
from support.registering import documented_file
from support.students import save_student, student

from basicsr.export.base import ExportFormat, export, export_formats, load_student
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
    assert entry.ending.startswith(".") and [other.ending for other in FORMATS.values()].count(entry.ending) == 1


@pytest.mark.parametrize("precision", ["float32", "fp16"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_writes_one_file_and_checks_it_at_several_sizes(tmp_path, loaded, name, precision):
    exported = export(loaded, tmp_path, formats=[name], precision=precision, name="student")
    assert exported.files == (tmp_path / f"student{FORMATS[name].ending}",)
    assert [path.name for path in tmp_path.iterdir()] == [exported.files[0].name]
    assert len({check.shape for check in exported.checks}) >= 4
    assert all(check.passed and check.tolerance <= 1.5 / 255 for check in exported.checks)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_refuses_a_file_whose_outputs_differ(tmp_path, loaded, name):
    wrong = [(lq, expected + 0.01) for lq, expected in loaded.examples]
    other = type(loaded)(loaded.pretrained, loaded.source, loaded.sha256)
    other.__dict__["examples"] = wrong  # where cached_property keeps its value
    with pytest.raises(CheckpointError, match=r"was not written: .* differs from PyTorch by 0\.01"):
        export(other, tmp_path, formats=[name])
    assert list(tmp_path.iterdir()) == []


def test_a_format_is_one_file(tmp_path, loaded):
    with documented_file("docs/shipping.md", "basicsr/export/pth_format.py", tmp_path, EXPORT_REGISTRY):
        assert export_formats().keys() - FORMATS.keys() == {"pth"}
        exported = export(loaded, tmp_path / "out", formats=["pth"], precision="fp16")
        assert exported.files[0].name == "distilled_x2_fp16.pth" and len(exported.checks) >= 4
