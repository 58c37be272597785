"""scripts/measure_latency.py: from files to the table and the JSON, and what it refuses."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from support.graphs import write_graph
from support.quantized import BLOCKS, image_8_bits

from basicsr.archs import build_network
from basicsr.config.quantization import QuantizationSettings
from basicsr.engine.process.command import run_command
from basicsr.latency.figures import read_figures
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.network import quantize_network
from basicsr.quantization.records import to_record

PHONE = {"candidate": "net", "device": "Pixel 8", "runtime": "litert", "precision": "int8", "size": [16, 16]}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    script = importlib.import_module("measure_latency")
    monkeypatch.chdir(tmp_path)
    write_graph(tmp_path / "a.onnx")

    def call(*arguments: object):
        code = run_command(lambda: script.main([*map(str, arguments)]))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out.splitlines(), printed.err.splitlines()

    return call


def test_figures_are_kept_beside_those_of_other_devices(run, tmp_path):
    entry = {**PHONE, "median_ms": 3.5, "source": "by hand"}
    (tmp_path / "all.json").write_text(json.dumps({"version": 1, "figures": [entry]}))
    sizes = ("--size", 16, 16, 8, 12, "--threads", 1, "--rounds", 2)
    code, lines, errors = run("a.onnx", *sizes, "--runtime", "onnxruntime", "litert", "--json", "all.json")
    assert code == 3, "one of the runtimes does not take the file"
    assert [line.split(":")[0] for line in errors if line.startswith("error")] == ["error"] * 2
    assert all("litert does not run a.onnx" in line for line in errors if line.startswith("error"))
    assert lines[-1] == "wrote all.json"
    phone, first, second = read_figures(tmp_path / "all.json")
    assert phone.device == "Pixel 8" and (first.size, second.size) == ((16, 16), (8, 12))
    assert {figure.candidate for figure in (first, second)} == {"a.onnx"}
    run("a.onnx", *sizes, "--runtime", "onnxruntime", "--json", "all.json")
    assert len(read_figures(tmp_path / "all.json")) == 3, "newer figures replace older ones"
    code, lines, _ = run("--show", "all.json")
    assert code == 0 and lines[1].startswith("net") and lines[2].split()[0] == lines[3].split()[0] == "a.onnx"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "give files or networks to measure, or --show"),
        (("a.onnx", "--show", "b.json"), 2, "give files or networks to measure, or --show"),
        (("a.onnx", "--size", "16"), 2, "--size 16: give heights and widths"),
        (("a.onnx", "--threads", "0"), 2, "--threads 0: give 1 or more"),
        (("a.onnx", "--seconds", "nan"), 2, "--seconds nan: give a number above 0"),
        (("a.onnx", "--json", "a.txt/x.json"), 4, "cannot write a.txt"),
        (("none.onnx",), 3, "there is no file none.onnx"),
        (("a.onnx", "--json", "damaged.json"), 3, "damaged.json is no JSON file of latencies"),
        (("a.txt",), 2, "no runtime here takes files of this name"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, arguments, code, told):
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "a.txt").write_text("")
    found, lines, errors = run(*arguments)
    assert found == code and not lines
    assert told in errors[-1]


def test_a_quantised_checkpoint_is_measured_as_its_graph_in_int8(run, tmp_path, monkeypatch):
    monkeypatch.setenv("BASICSR_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    network = build_network(BLOCKS["Compact"]).eval()
    quantize_network(network, QuantizationSettings())
    calibrate(network, [("a", image_8_bits(3, 16, 16))])
    block = {**BLOCKS["Compact"], "scale": 2}
    content = {"params": network.state_dict(), "network": block, "quantization": to_record(network)}
    torch.save(content, tmp_path / "int8.pth")
    sizes = ("--size", 16, 16, "--threads", 1, "--rounds", 2)
    code, _, errors = run("int8.pth", *sizes, "--runtime", "onnxruntime", "--json", "a.json")
    assert code == 0, errors
    (figure,) = read_figures(tmp_path / "a.json")
    assert figure.precision == "int8"
