"""Exported students against PyTorch, by runtimes that know nothing of our code's checks."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from support.exports import exporter, images, onnx_output, output_of
from support.students import TRAINING, save_student, student

from basicsr.export import onnx_format
from basicsr.export.base import export_formats, load_student, names_of
from basicsr.export.checks import SIZES as SIZES_OF_CHECKS
from basicsr.export.checks import TOLERANCES, require, sizes_for
from basicsr.export.exporting import export
from basicsr.files.atomic_files import sha256_of
from basicsr.utils.errors import CheckpointError, MachineError, OptionsError
from basicsr.weights.recognise import load_pretrained

ARCHITECTURES = ("EDSR", "RCAN", "SwinIR")


def students() -> list[Any]:
    """Every architecture at every scale; SwinIR, whose export takes longest, at others than 2 only at length."""
    return [
        pytest.param(architecture, scale, marks=[pytest.mark.long] * (architecture == "SwinIR" and scale > 2))
        for architecture in ARCHITECTURES
        for scale in (2, 3, 4)
    ]


# None of them among the sizes that the export itself tries; 8 and 40 are multiples of the window, 48 is img_size.
SIZES = ((1, 8, 40), (3, 19, 23), (2, 48, 49), (1, 41, 9))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that exports a student once to all formats."""
    return exporter(tmp_path_factory.mktemp, student, save_student)


@pytest.mark.parametrize(("architecture", "scale"), students())
def test_onnxruntime_gives_pytorchs_outputs_at_other_sizes(made, architecture, scale):
    result = made(architecture, scale)
    for image in images((*SIZES, (1, 1, 1), (1, 3, 10))):
        expected = output_of(result.network, image)
        assert expected.shape[-1] == scale * image.shape[-1]
        torch.testing.assert_close(onnx_output(result.file[".onnx"], image), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("architecture", "scale"), students())
def test_torch_export_gives_pytorchs_outputs_at_other_sizes(made, architecture, scale):
    result = made(architecture, scale)
    program = torch.export.load(result.file[".pt2"]).module()
    for image in images(SIZES):
        if architecture != "SwinIR" or min(image.shape[-2:]) >= 9:
            torch.testing.assert_close(program(image), output_of(result.network, image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("architecture", "scale"), students())
def test_safetensors_load_back_with_the_same_outputs_and_options(made, architecture, scale):
    result = made(architecture, scale)
    loaded = load_pretrained(result.file[".safetensors"])
    for image in images(SIZES):
        assert torch.equal(output_of(loaded.network, image), output_of(result.network, image))
    assert (loaded.architecture, loaded.layout, loaded.scale) == (architecture, "ours", scale)
    assert loaded.block == result.block
    assert loaded.metadata["training"] == TRAINING
    assert loaded.remark is None


@pytest.mark.parametrize("architecture", ["EDSR", "RCAN", pytest.param("SwinIR", marks=pytest.mark.long)])
def test_fp16_stays_within_one_and_a_half_steps_of_8_bits(made, architecture):
    result = made(architecture, 2, precision="fp16")
    program = torch.export.load(result.file[".pt2"]).module()
    loaded = load_pretrained(result.file[".safetensors"]).network
    image = images(((2, 19, 23),))[0]
    expected = output_of(result.network, image)
    for output in (onnx_output(result.file[".onnx"], image), program(image), output_of(loaded, image)):
        assert output.dtype == torch.float32
        difference = (output - expected).abs().max().item()
        assert 0 < difference <= 1 / 510 < TOLERANCES["fp16"]
    for path in result.exported.files[:2]:
        whole = made(architecture, 2).file[path.suffix].stat().st_size
        assert path.stem == "distilled_x2_fp16" and path.stat().st_size < 0.75 * whole


def test_onnx_file_says_what_it_is_and_nothing_of_this_machine(made):
    result = made("RCAN", 3)
    model = onnx.load(result.file[".onnx"])
    onnx.checker.check_model(model, full_check=True)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["architecture"] == "RCAN" and properties["scale"] == "3"
    assert properties["channels"] == "3" and properties["colour_order"] == "RGB" and "[0, 1]" in properties["range"]
    assert json.loads(properties["network"]) == {**result.block, "scale": 3}
    assert json.loads(properties["training"]) == TRAINING
    assert json.loads(properties["source"]) == {
        "file": "net_g_latest.pth",
        "weights": "params",
        "sha256": sha256_of(result.source),
    }
    assert [(entry.domain, entry.version) for entry in model.opset_import if entry.domain == ""] == [("", 18)]
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input
    ]
    assert shapes == [["batch", 3, "height", "width"]]
    output = [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    assert output == ["batch", 3, "3*height", "3*width"]
    assert str(Path(__file__).resolve().parents[2]).encode() not in result.file[".onnx"].read_bytes()


def test_safetensors_header_and_pt2_file_say_the_same_as_onnx(made):
    result = made("EDSR", 2)
    with safe_open(result.file[".safetensors"], framework="pt") as file:
        header = file.metadata()
    properties = {entry.key: entry.value for entry in onnx.load(result.file[".onnx"]).metadata_props}
    assert {key: value for key, value in header.items() if key != "format"} == properties
    extra = {"metadata.json": ""}
    torch.export.load(result.file[".pt2"], extra_files=extra)
    assert json.loads(extra["metadata.json"]) == properties
    assert re.fullmatch(r"mcadkd \S+, PyTorch \S+", properties["framework"])


def test_files_are_readable_by_all_and_no_others_are_left(made):
    files = made("EDSR", 2).exported.files
    assert sorted(path.name for path in files[0].parent.iterdir()) == sorted(path.name for path in files)
    assert len({stat.S_IMODE(path.stat().st_mode) for path in files}) == 1
    assert [path.suffix for path in files] == [export_formats()[name].ending for name in names_of(targets=False)]


def test_newer_opsets_are_written_too(tmp_path):
    network, block = student("EDSR", 2)
    source = save_student(tmp_path / "net.pth", network, block)
    exported = export(load_student(source), tmp_path, formats=["onnx"], opset=20, name="newer")
    assert exported.files == (tmp_path / "newer.onnx",)
    assert next(entry.version for entry in onnx.load(exported.files[0]).opset_import if not entry.domain) == 20


def test_gray_students_are_exported(tmp_path):
    network, block = student("EDSR", 2, num_in_ch=1, num_out_ch=1, rgb_mean=[0.5])
    exported = export(load_student(save_student(tmp_path / "net.pth", network, block)), tmp_path)
    image = images(((1, 9, 12),), channels=1)[0]
    onnx_path = next(path for path in exported.files if path.suffix == ".onnx")
    torch.testing.assert_close(onnx_output(onnx_path, image), output_of(network, image), rtol=0, atol=1e-5)
    assert {entry.key: entry.value for entry in onnx.load(onnx_path).metadata_props}["colour_order"] == "gray"
    assert onnx.load(onnx_path).doc_string == "EDSR x2: gray images in [0, 1], float32 inside"


def test_averaged_weights_are_taken_unless_others_are_named(tmp_path):
    network, block = student("EDSR", 2)
    averaged, _ = student("EDSR", 2, seed=1)
    source = save_student(tmp_path / "net.pth", network, block, params_ema=averaged.state_dict())
    image = images(((1, 9, 12),))[0]
    for key, wanted in ((None, averaged), ("params_ema", averaged), ("params", network)):
        loaded = load_student(source, param_key=key)
        assert loaded.weights == (key or "params_ema")
        path = export(loaded, tmp_path, formats=["safetensors"]).files[0]
        with safe_open(path, framework="pt") as file:
            assert json.loads(file.metadata()["source"])["weights"] == loaded.weights
        assert torch.equal(output_of(load_pretrained(path).network, image), output_of(wanted, image))
    with pytest.raises(CheckpointError, match="has no weights 'emma', it has params, params_ema; give one"):
        load_student(source, param_key="emma")


def test_only_names_of_weights_may_be_asked_for(tmp_path):
    network, block = student("EDSR", 2)
    source = save_student(tmp_path / "net.pth", network, block, **{"params_ema": {}, "optimizer": {"lr": 1}})
    content = torch.load(source, weights_only=True)
    torch.save({**content, 1: {2: 3}}, source)
    for key in ("network", "training", "params_ema", "optimizer", "zz", ""):
        with pytest.raises(CheckpointError, match=f"has no weights '{key}', it has params; give one of these"):
            load_student(source, param_key=key)
    assert load_student(source).weights == "params"


def test_an_exported_file_can_be_exported_again(made, tmp_path):
    first = made("SwinIR", 2).file[".safetensors"]
    again = export(load_student(first), tmp_path, formats=["safetensors"]).files[0]
    with safe_open(first, framework="pt") as one, safe_open(again, framework="pt") as two:
        assert all(torch.equal(one.get_tensor(key), two.get_tensor(key)) for key in one.keys())  # noqa: SIM118
        assert one.metadata()["training"] == two.metadata()["training"]


def damage(path: Path) -> None:
    """Changes one weight of an ONNX file by a thousandth of its layer's largest."""
    model = onnx.load(path)
    tensor = next(entry for entry in model.graph.initializer if entry.name.endswith("conv_last.bias"))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] += 0.001 * 255
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_a_file_that_differs_is_not_left_behind(tmp_path, monkeypatch):
    network, block = student("EDSR", 2)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "distilled_x2.onnx").write_text("an earlier one")
    write = onnx_format.write_onnx

    def write_and_damage(job, path):
        write(job, path)
        damage(path)

    monkeypatch.setattr(onnx_format, "write_onnx", write_and_damage)
    with pytest.raises(CheckpointError, match=r"distilled_x2.onnx was not written: .* by 0.001 at .*allowed is 0.0001"):
        export(loaded, folder)
    # The safetensors file was right, but files of one export belong together.
    assert [path.name for path in folder.iterdir()] == ["distilled_x2.onnx"]
    assert (folder / "distilled_x2.onnx").read_text() == "an earlier one"


def test_fp16_that_overflows_is_refused(tmp_path):
    network, block = student("EDSR", 2)
    with torch.no_grad():
        network.conv_first.weight *= 4000
        network.conv_last.weight /= 4000
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    export(loaded, tmp_path / "whole", formats=["torch-export"])
    with pytest.raises(CheckpointError, match=r"by (nan|inf) at .* beyond fp16's 65504; export it in float32"):
        export(loaded, tmp_path / "half", formats=["torch-export"], precision="fp16")
    assert not (tmp_path / "half").exists()


def test_a_network_whose_outputs_are_not_finite_is_refused(tmp_path):
    network, block = student("RCAN", 2)
    with torch.no_grad():
        network.conv_last.weight.fill_(3e38)  # finite, as loading asks; their sums are not
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    with pytest.raises(CheckpointError, match="own outputs are not finite"):
        export(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_swinir_for_one_size_is_exported_for_that_size_only(tmp_path):
    network, block = student("SwinIR", 2, ape=True, img_size=16)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    for size in (None, (16, 24)):
        with pytest.raises(CheckpointError, match="works at one size only: give --size 16 16"):
            export(loaded, tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()
    exported = export(loaded, tmp_path / "out", formats=["safetensors", "torch-export"], size=(16, 16))
    assert {check.shape for check in exported.checks} == {(1, 3, 16, 16)}


def test_graphs_for_one_size_take_that_size_only(tmp_path):
    network, block = student("EDSR", 2)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    exported = export(loaded, tmp_path, size=(12, 20), name="fixed")
    assert exported.remarks == ("the graph takes one image at a time",)
    image = images(((1, 12, 20),))[0]
    torch.testing.assert_close(
        onnx_output(tmp_path / "fixed.onnx", image), output_of(network, image), rtol=0, atol=1e-5
    )
    dims = onnx.load(tmp_path / "fixed.onnx").graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 24, 40]
    with pytest.raises(Exception, match="Got invalid dimensions"):
        onnx_output(tmp_path / "fixed.onnx", images(((1, 13, 20),))[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["onnx", "coreml"]}, "--formats coreml is not supported: give some of safetensors, onnx, torch-e"),
        ({"formats": []}, "--formats nothing"),
        ({"opset": 17}, "--opset 17 is not supported: give 18 to 23"),
        ({"name": "../other"}, "--name '../other'"),
        ({"name": "\u00e9" * 101}, "--name is too long, 202 bytes: give at most 200"),
        ({"size": (0, 16)}, "--size 0 16: give a height and a width from 1 to 4096"),
        ({"formats": ["onnx"], "layout": "spandrel"}, "--layout spandrel is about the safetensors file"),
    ],
)
def test_arguments_are_checked_before_anything_is_made(made, tmp_path, options, message):
    with pytest.raises(OptionsError, match=re.escape(message)):
        export(load_student(made("EDSR", 2).source), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(made, tmp_path, monkeypatch):
    student = load_student(made("EDSR", 2).source)
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(__import__("sys").modules, name, None)  # what Python does to hide a module
    with pytest.raises(MachineError, match=r"needs onnxscript, onnxruntime, .*pip install -e '.\[export\]'"):
        export(student, tmp_path / "out")
    export(student, tmp_path / "out", formats=["safetensors"])


def test_a_folder_that_cannot_be_made_is_told(made, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="there is a file of this name"):
        export(load_student(made("EDSR", 2).source), tmp_path / "taken")


def test_checks_cover_odd_sizes_and_all_formats(made):
    checks = made("SwinIR", 2).exported.checks
    assert {check.kind.split()[0] for check in checks} == set(names_of(targets=False))
    assert {"safetensors", "onnx (onnxruntime)", "torch-export"} <= {check.kind for check in checks}
    shapes = {check.shape for check in checks if check.kind.startswith("onnx")}
    assert {(1, 3, 24, 24), (2, 3, 17, 31), (1, 3, 64, 40), (1, 3, 33, 80)} <= shapes
    assert all(np.isfinite(check.difference) and check.passed for check in checks)


@pytest.mark.long
def test_swinir_with_large_windows_is_exported_and_checked_with_more_images(tmp_path):
    network, block = student("SwinIR", 2, window_size=24, img_size=48, num_heads=[1], embed_dim=4)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    exported = export(loaded, tmp_path, formats=["onnx", "torch-export"])
    checked = [check.shape for check in exported.checks if check.kind == "torch-export"]
    assert checked == [(1, 3, 64, 40), (1, 3, 33, 80), (1, 3, 48, 48), (2, 3, 25, 34), (1, 3, 51, 25)]
    program = torch.export.load(exported.files[1]).module()
    for image in images(((1, 73, 26), (2, 48, 27))):
        expected = output_of(network, image)
        torch.testing.assert_close(onnx_output(exported.files[0], image), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(program(image), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [7, 8, 16, 17, 24, 48, 64, 500])
def test_images_for_the_checks_suit_every_window(window):
    smallest = window + 1  # as torch-export files of SwinIR ask for
    suitable = [size for size in sizes_for(smallest) if min(size[1:]) >= smallest]
    assert len(suitable) >= 2 and {batch for batch, _, _ in suitable} == {1, 2}
    assert sizes_for(smallest)[: len(SIZES_OF_CHECKS)] == SIZES_OF_CHECKS


def test_a_file_without_any_check_is_refused():
    with pytest.raises(CheckpointError, match=r"net\.pt2 was not written: there was no image to check it with"):
        require([], Path("net.pt2"))


def test_a_folder_in_the_way_is_told_before_any_work(made, tmp_path):
    (tmp_path / "e2.onnx").mkdir()
    started: list[str] = []
    with pytest.raises(CheckpointError, match=re.escape(f"cannot save {tmp_path / 'e2.onnx'}: there is a folder")):
        export(load_student(made("EDSR", 2).source), tmp_path, name="e2", report=started.append)
    assert started == [] and [path.name for path in tmp_path.iterdir()] == ["e2.onnx"]


def test_files_already_moved_are_taken_back_if_one_cannot_be(made, tmp_path):
    (tmp_path / "e2.safetensors").write_text("an earlier one")

    def put_folder_in_the_way(line: str) -> None:
        if line.startswith("onnx"):
            (tmp_path / "e2.onnx").mkdir()

    formats = ["torch-export", "safetensors", "onnx"]
    with pytest.raises(CheckpointError, match=re.escape(f"cannot save {tmp_path / 'e2.onnx'}: there is a folder")):
        export(load_student(made("EDSR", 2).source), tmp_path, formats=formats, name="e2", report=put_folder_in_the_way)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e2.onnx", "e2.safetensors"]
    assert (tmp_path / "e2.safetensors").read_text() == "an earlier one"
    (tmp_path / "e2.onnx").rmdir()
    export(load_student(made("EDSR", 2).source), tmp_path, formats=["safetensors"], name="e2")
    assert [path.name for path in tmp_path.iterdir()] == ["e2.safetensors"]
    assert load_pretrained(tmp_path / "e2.safetensors").architecture == "EDSR"


def test_files_are_named_after_what_is_short_enough(tmp_path):
    network, block = student("EDSR", 2)
    for run, file, expected in (
        ("r" * 200, "net", "r" * 200 + "_x2"),
        ("r" * 201, "net", "net_x2"),
        ("../../r", "net", "net_x2"),
        ("r" * 300, "n" * 201, "EDSR_x2"),
    ):
        source = save_student(tmp_path / f"{file}.pth", network, block)
        content = torch.load(source, weights_only=True)
        torch.save({**content, "training": {"name": run}}, source)
        written = export(load_student(source), tmp_path / "out", formats=["safetensors"]).files[0]
        assert written.name == f"{expected}.safetensors"


def test_whatever_a_checkpoint_says_of_its_training_is_written_as_valid_json(tmp_path):
    network, block = student("EDSR", 2)
    source = save_student(tmp_path / "net.pth", network, block)
    content = torch.load(source, weights_only=True)
    training = {
        "loss": float("nan"),
        "best": [float("inf"), 1.5],
        "mean": torch.zeros(2),
        "shape": torch.Size([3]),
        4: 5,
    }
    torch.save({**content, "training": training}, source)
    path = export(load_student(source), tmp_path, formats=["safetensors"]).files[0]
    with safe_open(path, framework="pt") as file:
        text = file.metadata()["training"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(text, parse_constant=refuse) == {
        "loss": None,
        "best": [None, 1.5],
        "mean": "tensor([0., 0.])",
        "shape": [3],
        "4": 5,
    }
    endless: list[Any] = []
    endless.append(endless)
    torch.save({**content, "training": {"all": endless}}, source)
    with pytest.raises(CheckpointError, match="holds itself"):
        load_student(source)
