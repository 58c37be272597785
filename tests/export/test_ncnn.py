"""ncnn's target: files as Upscayl takes them, students' layers, and what is refused."""

from __future__ import annotations

import pytest
import torch
from support.students import save_student, student
from torch import nn

from basicsr.archs import build_network
from basicsr.export import ncnn_format
from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.export.ncnn_format import upscayls_remarks
from basicsr.runtimes.ncnn_runtime import facts_in, read_layers
from basicsr.utils.errors import CheckpointError, OptionsError

# PReLU and repetition; attention by sigmoid; pooling, strides and bilinear resizing to the image's size; squares.
STUDENTS = {
    "SRVGGNetCompact": {"num_feat": 8, "num_conv": 2},
    "SPAN": {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8},
    "RLFN": {"num_feat": 8, "esa_channels": 4, "num_block": 1},
    "RCAN": {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_group": 1, "num_block": 1, "squeeze_factor": 4},
    "IMDN": {"num_feat": 32, "num_block": 1},
}


def saved(folder, name, **options):
    torch.manual_seed(0)
    block = {"type": name, "upscale": 3, **options}
    network = build_network(block).eval()
    for module in network.modules():
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
    return load_student(save_student(folder / "net.pth", network, block))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_layers_of_students_for_devices_are_converted(tmp_path, name):
    exported = export(saved(tmp_path, name, **STUDENTS[name]), tmp_path / "out", targets=["ncnn"])
    assert len(exported.checks) >= 4 and max(check.difference for check in exported.checks) < 5e-5


def test_files_are_as_upscayl_takes_them(tmp_path):
    given = saved(tmp_path, "SRVGGNetCompact", **STUDENTS["SRVGGNetCompact"])
    param, weights = export(given, tmp_path / "out", targets=["ncnn"], precision="float32").files
    assert (param.name, weights.name) == ("distilled_x3_ncnn.param", "distilled_x3_ncnn.bin")
    layers = read_layers(param)
    first, last = layers[0], layers[-1]
    assert first[0] == "Input" and first[2:] == ["0", "1", "data"]
    assert last[4 : 4 + int(last[2]) + int(last[3])][-1] == "output"
    blobs = [word for layer in layers for word in layer[4 : 4 + int(layer[2]) + int(layer[3])]]
    assert not {"in0", "out0"} & set(blobs)
    facts = facts_in(layers)
    assert facts["scale"] == "3" and facts["sha256"] == given.sha256 and len(first[1]) < 255


def test_fp16_halves_the_weights_and_is_checked_with_features_in_fp16(tmp_path):
    given = saved(tmp_path, "RLFN", **STUDENTS["RLFN"])
    exported = export(given, tmp_path / "out", targets=["ncnn"], precision=["float32", "fp16"])
    sizes = {file.name: file.stat().st_size for file in exported.files}
    assert sizes["distilled_x3_ncnn_fp16.bin"] < 0.65 * sizes["distilled_x3_ncnn.bin"]
    kinds = {check.kind for check in exported.checks}
    assert kinds == {"ncnn, float32", "ncnn, fp16", "ncnn, features in fp16 (by PyTorch)"}


def test_features_too_large_for_fp16_are_found(tmp_path):
    network, block = student("EDSR", 2)
    with torch.no_grad():
        network.body[0].conv1.weight *= 1e7
        network.body[0].conv2.weight /= 1e7
    given = load_student(save_student(tmp_path / "net.pth", network, block))
    with pytest.raises(CheckpointError, match="export it in float32"):
        export(given, tmp_path / "out", targets=["ncnn"], precision="fp16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stem", "scale", "read"),
    [
        ("edsr_x2_ncnn", 2, None),
        ("2xNomos", 2, None),
        ("edsr_64x16_x2", 2, 1),  # x16 has x1 in it
        ("edsr_x2_from_4x", 4, 2),
        ("edsr", 4, None),  # 4 is what it takes without any
        ("edsr", 3, 4),
        ("edsr_X3", 3, 4),
    ],
)
def test_the_scale_that_upscayl_reads_from_a_name(stem, scale, read):
    remarks = upscayls_remarks(stem, scale, 3, None)
    assert remarks == [] if read is None else f"for x{read}, by its name" in remarks[0]


def test_what_upscayl_cannot_run_is_said():
    for scale, channels, size in ((1, 3, None), (6, 3, None), (2, 1, None), (2, 3, (64, 64))):
        assert "Upscayl cannot run" in upscayls_remarks("net_x2", scale, channels, size)[0]


@pytest.mark.parametrize("size", [None, (24, 24)])
def test_windows_are_refused_before_any_work(tmp_path, size):
    network, block = student("SwinIR", 2)
    given = load_student(save_student(tmp_path / "net.pth", network, block))
    with pytest.raises(OptionsError, match="ncnn: SwinIR has attention in windows: ncnn's tensors have four axes"):
        export(given, tmp_path / "out", targets=["ncnn"], size=size)
    assert not (tmp_path / "out").exists()


def test_what_no_descriptor_knew_is_refused_in_a_line(tmp_path, monkeypatch):
    """As a network would be whose code is not ours: pnnx and ncnn say what they cannot do."""
    monkeypatch.setattr(ncnn_format.NcnnTarget, "limits", {})
    given = saved(tmp_path, "VDSR", num_feat=8, num_layer=3)
    with pytest.raises(CheckpointError, match=r"VDSR has operations that ncnn has not: torch\.narrow"):
        export(given, tmp_path / "out", targets=["ncnn"])
    assert not (tmp_path / "out").exists()


def test_a_converter_that_fails_is_told_with_its_last_words(tmp_path, monkeypatch):
    import pnnx

    program = tmp_path / "pnnx"
    program.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(program))
    given = saved(tmp_path, "RCAN", **STUDENTS["RCAN"])
    with pytest.raises(CheckpointError, match=r"pnnx cannot convert RCAN \(exit code 3: out of luck\)"):
        export(given, tmp_path / "out", targets=["ncnn"])
    monkeypatch.setattr(pnnx, "EXEC_PATH", str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="pnnx does not start: No such file"):
        export(given, tmp_path / "out", targets=["ncnn"])
    assert not (tmp_path / "out").exists()
