"""Loading weights: BasicSR's and others' layouts, prefixes, kinds of file, and what an error tells."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from support import published
from torch import nn

from basicsr.archs import build_network
from basicsr.files.torch_files import load_tensors
from basicsr.utils.errors import CheckpointError
from basicsr.utils.logger import WarningRemark
from basicsr.weights.loading import load_network
from basicsr.weights.recognise import network_for


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(OrderedDict(first=nn.Conv2d(3, width, 3), last=nn.Conv2d(width, 3, 3)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params": state, "params_ema": {}},
        lambda state: {"params": {f"module.{key}": value for key, value in state.items()}},
        lambda state: state,
    ],
)
def test_known_layouts_load(tmp_path, wrap):
    source, target = network(), network()
    torch.save(wrap(source.state_dict()), tmp_path / "net.pth")
    assert load_network(target, tmp_path / "net.pth") is None
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value)


def test_the_key_asked_for_is_taken_and_a_substitute_is_told(tmp_path):
    plain, averaged, target = network(), network(), network()
    torch.save({"params": plain.state_dict(), "params_ema": averaged.state_dict()}, tmp_path / "net.pth")
    assert load_network(target, tmp_path / "net.pth", param_key="params_ema") is None
    assert torch.equal(target.last.bias, averaged.last.bias)
    torch.save({"params": plain.state_dict()}, tmp_path / "net.pth")
    remark = load_network(target, tmp_path / "net.pth", param_key="params_ema")
    assert remark is not None and "no 'params_ema': loaded 'params'" in remark


def test_another_networks_checkpoint_is_refused_with_keys_and_shapes(tmp_path):
    state = network(6).state_dict()
    state["extra.weight"] = torch.zeros(1)
    del state["last.bias"]
    torch.save(state, tmp_path / "net.pth")
    target = network()
    before = target.first.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_network(target, tmp_path / "net.pth")
    summary, *table = str(caught.value).splitlines()
    assert "is for another network than this Sequential: 1 weight is missing, 1 weight is not the network's" in summary
    assert ", 3 weights have another shape. None of its weights fits: give another file" in summary
    assert [line.split(maxsplit=1) for line in table[1:3]] == [
        ["first.weight", "(6, 3, 3, 3)  (4, 3, 3, 3)"],
        ["first.bias", "(6,)          (4,)"],
    ]
    assert table[0].split() == ["key", "in", "the", "file", "in", "the", "network"]
    assert any(line.split() == ["last.bias", "-", "(3,)"] for line in table)
    assert any(line.split() == ["extra.weight", "(1,)", "-"] for line in table)
    assert torch.equal(target.first.weight, before)


def test_what_fits_is_loaded_where_strict_is_off(tmp_path):
    source, target = network(), network()
    state = source.state_dict()
    del state["last.bias"]
    torch.save(state, tmp_path / "net.pth")
    remark = load_network(target, tmp_path / "net.pth", strict=False)
    assert isinstance(remark, WarningRemark) and "loaded what fits Sequential; 1 weight is missing" in remark
    assert torch.equal(target.first.weight, source.first.weight)
    averaged = {"params_ema": state}
    torch.save(averaged, tmp_path / "net.pth")
    remark = load_network(target, tmp_path / "net.pth", strict=False)
    assert isinstance(remark, WarningRemark), "whatever else is remarked"


def test_one_of_two_networks_that_fit_is_not_taken_in_silence(tmp_path):
    source, averaged, larger = network().state_dict(), network().state_dict(), network(6).state_dict()

    def write(**parts: dict[str, torch.Tensor]) -> Path:
        state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
        torch.save({"state_dict": state}, tmp_path / "net.pth")
        return tmp_path / "net.pth"

    with pytest.raises(CheckpointError, match="holds two networks that fit Sequential, with different values of"):
        load_network(network(), write(model=source, model_ema=averaged))
    target = network()
    load_network(target, write(student=source, teacher=larger))
    assert torch.equal(target.first.weight, source["first.weight"])


def test_a_file_of_several_networks_says_what_it_has(tmp_path):
    state, target = network().state_dict(), network()
    torch.save({"first": state, "second": network().state_dict()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="but under 'first', 'second': give one of these as param_key"):
        load_network(target, tmp_path / "net.pth")
    assert load_network(target, tmp_path / "net.pth", param_key="first") is None
    assert torch.equal(target.last.bias, state["last.bias"])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth does not exist"):
        load_network(network(), tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match=r"cannot be read: File name too long"):
        load_network(network(), tmp_path / f"{'long' * 100}.pth")


EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 4}
SWINIR = {"type": "SwinIR", "img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4}


def refusal(block, content, tmp_path) -> list[str]:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(CheckpointError) as caught:
        load_network(build_network(block), tmp_path / "net.pth")
    return str(caught.value).splitlines()


def test_a_published_layout_is_converted_and_told(tmp_path):
    reference, target = published.edsr(), build_network(EDSR).eval()
    torch.save(reference.state_dict(), tmp_path / "net.pth")
    assert "converted (layout: EDSR-PyTorch)" in str(load_network(target, tmp_path / "net.pth"))
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # A range of 255 costs two of float32's seven digits.
        assert (target(x) - reference(x)).abs().max() < 2e-5


def test_another_mean_colour_than_the_networks_is_refused_with_what_to_set(tmp_path):
    reference = published.edsr(mean=(0.3, 0.5, 0.7))
    lines = refusal(EDSR, reference.state_dict(), tmp_path)
    assert len(lines) == 1 and "img_range to 255 and rgb_mean to [0.3000, 0.5000, 0.7000]" in lines[0]
    target = build_network({**EDSR, "rgb_mean": [0.3, 0.5, 0.7]}).eval()
    load_network(target, tmp_path / "net.pth")
    x = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert (target(x) - reference(x)).abs().max() < 2e-5


def test_hyperparameters_that_differ_are_named(tmp_path):
    wide = build_network({**EDSR, "num_feat": 12, "num_block": 3})
    summary, *table = refusal(EDSR, {"params": wide.state_dict()}, tmp_path)
    assert "for another EDSR: it has 12 channels, 3 blocks, the options say 8 channels, 2 blocks: " in summary
    assert summary.endswith(
        "load what fits by path: strict_load_g: false (or _t, _d; strict: false in a row of networks or a further"
        " teacher)"
    )
    assert len(table) == 1 + 8 + 1 and table[-1].strip() == "and 13 more"


@pytest.mark.parametrize("make", [published.edsr, lambda scale: build_network({**EDSR, "upscale": scale})])
def test_a_wrong_scale_is_named_whatever_the_layout(make, tmp_path):
    summary, *table = refusal(EDSR, make(scale=3).state_dict(), tmp_path)
    assert "has the wrong scale: it is for x3, the options say x4: 2 weights are missing" in summary
    assert any(line.split()[0] == "upsample.0.weight" for line in table)


def test_another_architecture_is_named(tmp_path):
    summary, *_ = refusal(EDSR, published.rcan().state_dict(), tmp_path)
    assert "than this EDSR, it looks like RCAN with 8 channels, 2 groups, 2 blocks, 3 colours, x4" in summary


@pytest.mark.parametrize("img_size", [8, 24, 64])
@pytest.mark.parametrize("stripped", [False, True])
def test_swinir_loads_whatever_img_size_its_masks_are_for(img_size, stripped, tmp_path):
    source = build_network({**SWINIR, "img_size": img_size}).eval()
    state = source.state_dict()
    if stripped:
        state = {k: v for k, v in state.items() if not k.endswith(("attn_mask", "relative_position_index"))}
    torch.save(state, tmp_path / "net.pth")
    target = build_network(SWINIR).eval()
    assert load_network(target, tmp_path / "net.pth") is None
    x = torch.rand(1, 3, 13, 18)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


def test_masks_that_are_missing_beside_indices_are_the_networks_own_and_the_log_says_so(tmp_path):
    source, target = build_network(SWINIR).eval(), build_network(SWINIR).eval()
    torch.save({k: v for k, v in source.state_dict().items() if not k.endswith("attn_mask")}, tmp_path / "net.pth")
    assert "has no attention masks" in load_network(target, tmp_path / "net.pth")
    x = torch.rand(1, 3, 13, 18)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


def test_a_weight_is_never_taken_for_a_buffer_that_follows_from_sizes(tmp_path):
    state = build_network(SWINIR).state_dict()
    table = next(key for key in state if key.endswith("relative_position_bias_table"))
    del state[table]
    summary, *rows = refusal(SWINIR, state, tmp_path)
    assert "1 weight is missing" in summary and rows[1].split()[0] == table


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("net.pth", b"", "it is empty"),
        ("net.pth", b"\n<!DOCTYPE html><html><body>404</body></html>", "it is a web page"),
        ("net.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        ("net.onnx", b"\x08\x07\x12\x07pytorch", "it is an ONNX graph"),
        ("net.pth", b"\x08\x08\x12\x07pytorch\x1a\x05", "it is an ONNX graph"),
        ("net.onnx", b"\x08\x08\x3a\x00", "it is an ONNX graph"),
        ("net.param", b"7767517\n3 3\nInput  data 0 1 data\n", r"it is a graph of ncnn \(\.param\); give the PyTorch"),
        ("net.bin", b"\x47\x6b\x30\x01" + bytes(64), r"as ncnn \(\.bin beside \.param\)"),
        ("net.tflite", b"\x1c\0\0\0TFL3\0\0", "it is a network of TensorFlow Lite"),
        ("net.h5", b"\x89HDF\r\n\x1a\n\0\0", "it is an HDF5 file, as Keras writes them; only PyTorch's weights"),
        ("net.mlmodel", b"\x08\x01\x12\x10\x0a\x0e\x0a\x05input", "it is a network of Core ML"),
        ("net.pb", b"\x0a\x10\x0a\x05input", "it is a graph or checkpoint of TensorFlow"),
        ("model.ckpt.index", b"\0\0\0\x08" + bytes(60), "it is a graph or checkpoint of TensorFlow"),
        ("model.ckpt.data-00000-of-00001", bytes(64), "it is a graph or checkpoint of TensorFlow"),
        ("checkpoint", b'model_checkpoint_path: "model.ckpt-7"\n', "list of a folder of TensorFlow checkpoints"),
        ("net.engine", b"ptrt" + bytes(60), "it is an engine of TensorRT"),
        ("net.trt", bytes(64), "it is an engine of TensorRT"),
        ("net.npy", b"\x93NUMPY\x01\0", "it is an array of NumPy"),
        ("net.gguf", b"GGUF\x03\0\0\0", "it is a GGUF file"),
        ("net.pdparams", bytes(64), "it is a file of Paddle"),
        ("net.ckpt", b"\x0a\x2b\x0a\x0fconv_first.weig\x12\x18", "it is a checkpoint of MindSpore"),
        ("net.mat", b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "it is a MAT-file of MATLAB"),
        ("net.xml", b'<?xml version="1.0"?>\n<net name="sr" version="11">', "it is a network of OpenVINO"),
        ("net.pth", b"\x89PNG\r\n\x1a\n" + bytes(64), "it is an image; give a file of weights"),
        ("5000.state", b"PK", r"it is what else a training needs to go on; give the weights, models/net_g_\*\.pth"),
        ("net.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "damaged or no safetensors file"),
        ("net.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "holds no tensors"),
    ],
)
def test_files_that_are_no_weights_end_in_one_line_that_says_what_they_are(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_network(network(), tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"img_range": 1.0}, "img_range 255.0, the options say img_range 1.0"),
        ({"rgb_mean": [0.5, 0.5, 0.5]}, "rgb_mean .*, the options say rgb_mean .0.5, 0.5, 0.5."),
        ({"res_scale": 0.1}, "res_scale 1.*, the options say res_scale 0.1"),
    ],
)
def test_options_that_contradict_what_the_file_says_of_its_network_are_refused(change, said, tmp_path):
    """No shape shows them; the figures would be wrong without a word."""
    block = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
    path = tmp_path / "net.pth"
    torch.save({"params": build_network(block).state_dict(), "network": {**block, "scale": 2}}, path)
    same = {**block, "img_range": 255, "rgb_mean": (0.4488, 0.4371, 0.4040)}
    assert network_for(block, path)[1] is network_for(same, path)[1] is None
    other = {**block, **change}
    with pytest.raises(CheckpointError, match=f"was trained with {said}: take") as caught:
        network_for(other, path)
    assert "\n" not in str(caught.value)
    remark = network_for(other, path, strict=False)[1]
    assert remark is not None and "was trained with" in remark


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_programs_and_other_archives_are_refused_without_running_them(tmp_path):
    torch.jit.trace(network(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "script.pt")
    exported = torch.export.export(network(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(exported, tmp_path / "program.pt2")
    with zipfile.ZipFile(tmp_path / "pictures.pth", "w") as archive:
        archive.writestr("a.png", "x")
    for name, reason in (
        ("script.pt", "TorchScript"),
        ("program.pt2", "torch.export"),
        ("pictures.pth", "ZIP archive"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            load_network(network(), tmp_path / name)


class Harm:
    def __reduce__(self):
        return eval, ("1/0",)


def test_objects_in_a_file_are_not_unpickled(tmp_path):
    torch.save({"params": network().state_dict(), "hyper_parameters": Harm()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        load_network(network(), tmp_path / "net.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_off_or_overwritten_anywhere_is_refused_or_loads_but_never_breaks(kind, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "net.pth"
    if kind == "safetensors":
        save_file(network().state_dict(), path)
    else:
        torch.save(network().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    choose = random.Random(7)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(choose.choice((1, 3, 30))):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        (tmp_path / "cut").write_bytes(content[: choose.randrange(len(content))])
        (tmp_path / "overwritten").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_network(network(), tmp_path / "cut")
        with contextlib.suppress(CheckpointError):
            load_network(network(), tmp_path / "overwritten")


def test_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        load_network(network(), tmp_path)


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as content:
        for name in names:
            content.writestr(name, b"-")
    return path


def test_archives_and_folders_that_are_networks_are_named(tmp_path):
    (tmp_path / "net.mlpackage" / "Data").mkdir(parents=True)
    (tmp_path / "saved" / "variables").mkdir(parents=True)
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    (tmp_path / "tf").mkdir()
    (tmp_path / "tf" / "checkpoint").write_text("model_checkpoint_path: 'x'")
    for path, kind in (
        (
            archive(tmp_path / "net.keras", "metadata.json", "config.json", "model.weights.h5"),
            "it is a network of Keras",
        ),
        (archive(tmp_path / "net.npz", "a.npy", "b.npy"), "it is an archive of NumPy's arrays"),
        (archive(tmp_path / "net.pt", "net/code/__torch__.py", "net/data.pkl"), "it is a TorchScript program"),
        (tmp_path / "net.mlpackage", "it is a network of Core ML"),
        (tmp_path / "saved", "it is a SavedModel of TensorFlow"),
        (tmp_path / "tf", "it is a folder of TensorFlow checkpoints"),
    ):
        with pytest.raises(CheckpointError, match=f"was not loaded: {kind}") as caught:
            load_tensors(path)
        assert "\n" not in str(caught.value)


def test_pickled_objects_are_named_with_what_to_do(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(1, 1, 1)), tmp_path / "whole.pth")
    torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace(lr=1)}, tmp_path / "lightning.ckpt")
    (tmp_path / "net.pdparams").write_bytes(pickle.dumps({"conv.weight": np.ones(3, np.float32)}, protocol=4))
    for name, advice in (
        ("whole.pth", "a whole network seems to be pickled; load it with its authors' code, and save"),
        ("lightning.ckpt", "hyperparameters, as of a Lightning checkpoint; save its `state_dict` alone"),
        ("net.pdparams", "arrays of NumPy or Paddle; save them as tensors"),
    ):
        with pytest.raises(CheckpointError, match=rf"Python objects other than tensors \(.*\), .*{advice}"):
            load_tensors(tmp_path / name)
