"""scripts/upscale.py by other runtimes than PyTorch: the same pictures, and what is said of it."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.graphs import write_graph

from basicsr.archs import build_network
from basicsr.engine.process.command import run_command
from basicsr.runtimes.base import runtimes

BLOCK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint whose graph is in the cache, exported files, and pictures: colours, gray, with alpha."""
    upscale = importlib.import_module("upscale")
    folder = tmp_path_factory.mktemp("backends")
    torch.manual_seed(0)
    torch.save({"params": build_network(BLOCK).state_dict(), "network": BLOCK}, folder / "net.pth")
    write_graph(folder / "any.onnx")
    write_graph(folder / "fixed.onnx", size=(24, 24))
    (folder / "damaged.onnx").write_bytes(b"no graph")
    generator = np.random.default_rng(0)
    for name, channels in (("rgb", 3), ("gray", 1), ("alpha", 4)):
        pixels = generator.integers(0, 256, (40, 56, channels), dtype=np.uint8)
        Image.fromarray(pixels.squeeze()).save(folder / f"{name}.png")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run_command(lambda: upscale.main(["rgb.png", "--model", "net.pth", "--output", "o", *OPENVINO])) == 0
    finally:
        os.chdir(before)
    return folder


OPENVINO = ["--backend", "openvino", "--device", "cpu"]


@pytest.fixture
def run(folder, monkeypatch, capsys, tmp_path):
    """Runs the command on pictures of the folder; returns exit code, pixels by name, lines printed and of errors."""
    upscale = importlib.import_module("upscale")
    monkeypatch.chdir(folder)

    def call(*arguments: object, model: str = "net.pth", pictures: tuple[str, ...] = ("rgb.png",)):
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        command = [*pictures, *map(str, arguments), "--model", model, "--output", str(output)]
        code = run_command(lambda: upscale.main(command))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        found = {path.name: np.asarray(Image.open(path)).astype(int) for path in output.glob("*.png")}
        return code, found, printed.out.splitlines(), printed.err.splitlines()

    return call


@pytest.mark.parametrize("more", [(), ("--tile", 16), ("--self_ensemble", "--tile", 24), ("--tile", 0)])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_pictures_are_those_of_pytorch(run, backend, more):
    pictures = ("rgb.png", "gray.png", "alpha.png")
    code, found, lines, _ = run("--backend", backend, *more, pictures=pictures)
    _, expected, by_pytorch, _ = run("--backend", "pytorch", *more, pictures=pictures)
    assert code == 0 and len(found) == 3
    for name, pixels in expected.items():
        assert np.abs(found[name] - pixels).max() <= 1, "rounding, where a value lies between two steps"
        assert np.mean(found[name] != pixels) < 0.01
    assert f"by {backend} {runtimes()[backend].version()}, float32" in lines[0]
    assert "by pytorch" in by_pytorch[0]
    assert not any("making the graph" in line for line in lines)


def test_bf16_is_offered_by_name(run):
    _, exact, _, _ = run("--backend", "openvino")
    code, found, lines, _ = run("--backend", "openvino", "--precision", "bf16")
    assert code == 0 and "openvino" in lines[0] and lines[0].endswith("bf16")
    assert np.abs(found["rgb_x2.png"] - exact["rgb_x2.png"]).mean() < 3


def test_auto_measures_once_and_says_what_it_took(run, folder, monkeypatch):
    _, _, lines, _ = run()
    chosen = lines[0].split(" by ")[1].split()[0]
    for name in {"openvino", "onnxruntime"} - {chosen}:  # another one is not even loaded any more
        monkeypatch.delattr(type(runtimes()[name]), "load")
    code, _, again, _ = run()
    assert code == 0
    assert " s a megapixel here (" in lines[0] and lines[0] == again[0], "the same figures: they are kept"


def test_a_graph_is_made_where_it_pays_only(run, folder):
    (folder / "other.pth").write_bytes((folder / "net.pth").read_bytes() + b" ")
    torch.save({"params": build_network(BLOCK).state_dict(), "network": BLOCK}, folder / "other.pth")
    code, _, lines, _ = run(model="other.pth")
    assert code == 0 and "by pytorch" in lines[0] and "a graph for a faster one pays from 30 s on" in lines[0]


def test_tiles_of_a_network_that_averages_run_in_pytorch_and_whole_pictures_do_not(run, folder):
    (about,) = Path(os.environ["BASICSR_CACHE"]).glob("graphs/*/about.json")
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, "pools": True}))
    try:
        _, _, tiles, _ = run("--backend", "openvino")
        _, _, whole, _ = run("--backend", "openvino", "--tile", 0)
    finally:
        about.write_text(json.dumps(content))
    assert "by pytorch" in tiles[0] and "averages over the whole image" in tiles[0]
    assert "by openvino" in whole[0]


@pytest.mark.parametrize("model", ["any.onnx", "fixed.onnx"])
def test_an_exported_file_is_a_model(run, folder, model):
    pixels = np.asarray(Image.open(folder / "rgb.png")).astype(np.float32).transpose(2, 0, 1)[None] / 255
    whole = runtimes()["onnxruntime"].load(folder / "any.onnx", threads=1)(pixels)[0].clip(0, 1).transpose(1, 2, 0)
    for backend in ("auto", "onnxruntime", "openvino"):
        code, found, lines, _ = run("--backend", backend, "--tile_overlap", 4, model=model)
        assert code == 0 and "an exported file, x2; by " in lines[0]
        assert np.abs(found["rgb_x2.png"] - whole * 255).max() <= 0.501


@pytest.mark.parametrize(
    ("model", "arguments", "told"),
    [
        ("net.pth", ("--backend", "ncnn"), "--target ncnn"),
        ("net.pth", ("--backend", "pytorch", "--device", "cuda"), "--device cuda"),
        ("net.pth", ("--backend", "openvino", "--device", "cuda"), "--device cuda|runs on the CPU"),
        ("net.pth", ("--backend", "onnxruntime", "--precision", "bf16"), "--precision bf16: onnxruntime"),
        ("any.onnx", ("--backend", "pytorch"), "pytorch does not run any.onnx"),
        ("any.onnx", ("--param_key", "params"), "any.onnx is an exported file: leave it out"),
        ("any.onnx", ("--scale", "3"), "--scale 3: any.onnx is for x2"),
        ("any.onnx", ("--backend", "onnxruntime", "--precision", "bf16"), "--precision bf16: onnxruntime"),
        ("any.onnx", ("--device", "cuda"), "--device cuda"),
        ("fixed.onnx", ("--tile_overlap", "12"), "takes images of 24 pixels a side only"),
        ("damaged.onnx", (), "does not load damaged.onnx"),
        ("missing.onnx", (), "there is no file missing.onnx"),
    ],
)
def test_what_does_not_fit_is_one_line_before_any_work(run, folder, model, arguments, told):
    code, found, _, errors = run(*arguments, model=model)
    assert code in (2, 4, 6) and not found
    (line,) = [line for line in errors if line.startswith("error")]
    assert any(part in line for part in told.split("|"))
