"""Files in int8: what runs in integers, what is refused, and what their loss is measured against."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from support.exports import images, int8_of
from support.quantized import BLOCKS
from support.students import save_student

from basicsr.archs import build_network
from basicsr.engine.process.command import run_command
from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.export.image_sources import settings_of
from basicsr.export.int8 import Judge
from basicsr.files.images import imwrite
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.quantization.layers import quantized_layers
from basicsr.runtimes.base import runtimes
from basicsr.utils.errors import CheckpointError, DataError, NonFiniteError, OptionsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    torch.manual_seed(0)
    block = BLOCKS["Compact"]
    network = build_network(block).eval()
    return load_student(save_student(tmp_path_factory.mktemp("compact") / "net.pth", network, block))


@pytest.fixture(scope="module")
def written(compact, tmp_path_factory):
    """The files of all targets here, in int8, of one call."""
    folder = tmp_path_factory.mktemp("int8")
    targets = ["onnxruntime", "openvino", "tensorrt"]
    return export(compact, folder, targets=targets, precision=["int8"], name="net", int8=int8_of(compact))


def test_one_call_writes_several_targets_and_precisions(compact, tmp_path):
    exported = export(
        compact,
        tmp_path,
        formats=["safetensors"],
        targets=["onnxruntime"],
        precision=["float32", "fp16"],
        name="net",
    )
    expected = ["net.safetensors", "net_onnxruntime.onnx", "net_fp16.safetensors", "net_onnxruntime_fp16.onnx"]
    assert [path.name for path in exported.files] == expected


def test_onnxruntime_computes_all_convolutions_in_integers(written, tmp_path):
    path = next(path for path in written.files if "onnxruntime" in path.name)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 4 and "Conv" not in kinds
    graph = onnx.load(path).graph
    kernels = [
        entry for entry in graph.initializer if entry.data_type == onnx.TensorProto.INT8 and len(entry.dims) == 4
    ]
    weights = list(map(onnx.numpy_helper.to_array, kernels))
    assert len(weights) == 4
    for weight in weights:  # no sum of two products of them with 255 leaves 16 bits
        assert weight.dtype == np.int8 and np.abs(weight.astype(int)).max() == 63
    assert sum(entry.data_type == onnx.TensorProto.INT32 for entry in graph.initializer) >= 4  # biases


def test_openvino_computes_all_convolutions_in_integers(written):
    path = next(path for path in written.files if path.name.endswith("openvino_int8.xml"))
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    told = [(info["layerType"].astype(str), info["primitiveType"].astype(str)) for info in nodes]
    kinds = [primitive for layer, primitive in told if layer == "Convolution"]
    assert len(kinds) == 4 and all(kind.endswith("_I8") for kind in kinds)


def test_tensorrt_gets_symmetric_int8_and_floats_at_the_image(written):
    graph = onnx.load(next(path for path in written.files if "tensorrt" in path.name)).graph
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    constants |= {
        n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"
    }
    made = {output: node for node in graph.node for output in node.output}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any() and (constants[node.input[1]] > 0).all()
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    integers = [
        [name in made and made[name].op_type == "DequantizeLinear" for name in n.input[:2]] for n in convolutions
    ]
    assert integers == [[False, False], [True, True], [True, True], [False, False]]
    assert any("not by TensorRT" in remark for remark in written.remarks)


def test_the_loss_is_that_of_the_files_own_outputs(written, compact):
    """PSNR computed here, by the runtime alone."""
    int8 = int8_of(compact)
    loss = next(loss for loss in written.losses if loss.kind == "onnxruntime, int8")
    session = onnxruntime.InferenceSession(str(next(p for p in written.files if "onnxruntime" in p.name)))
    figures = []
    for pair in int8.validation:
        output = session.run(None, {"input": pair["lq"][None].numpy()})[0][0]
        levels = [np.round(np.clip(image, 0, 1) * 255)[::-1] for image in (output, pair["gt"].numpy())]
        figures.append(calculate_psnr(*levels, 2, input_order="CHW", test_y_channel=True))
    assert loss.psnr == pytest.approx(np.mean(figures), abs=1e-6)


def test_a_file_that_loses_too_much_is_not_written_and_the_worst_layers_are_named(compact, tmp_path):
    int8 = int8_of(compact, max_drop=-1.0)
    with pytest.raises(CheckpointError, match=r"net_openvino_int8\.xml was not written: .* --quantize layers\.body\."):
        export(compact, tmp_path / "a" / "b", targets=["openvino"], precision="int8", name="net", int8=int8)
    assert list(tmp_path.iterdir()) == [], "neither a file nor a folder made for it"


def test_ranges_of_a_quantised_network_are_taken_as_they_are(compact, tmp_path):
    int8 = int8_of(compact)
    quantized = int8.quantized(compact)
    scales = {
        name: float(layer.input_quantizer.scale)
        for name, layer in quantized_layers(quantized.pretrained.network).items()
    }
    again = dataclasses.replace(int8, calibration=None).quantized(quantized)
    assert again is quantized
    exported = export(quantized, tmp_path, targets=["onnxruntime"], precision="int8", int8=int8)
    graph = onnx.load(exported.files[0]).graph
    told = [
        float(onnx.numpy_helper.to_array(entry))
        for entry in graph.initializer
        if not entry.dims and entry.data_type == 1
    ]
    assert [scale for scale in scales.values() if not any(scale == pytest.approx(value) for value in told)] == [], told
    for wrong in ({"targets": ["onnxruntime"], "precision": "float32"}, {"formats": None}, {"targets": ["ncnn"]}):
        with pytest.raises(OptionsError, match="is quantised, so its files are in int8: give --target with some of"):
            export(quantized, tmp_path / "none", **{"precision": "int8", **wrong})
    assert not (tmp_path / "none").exists()


def test_images_that_do_not_do_are_told(compact):
    int8 = int8_of(compact)
    with pytest.raises(DataError, match="no validation image has 99x99 LR pixels"):
        Judge(int8, compact, (99, 99)).psnr(compact.pretrained.network)
    with pytest.raises(DataError, match="no HR images"):
        Judge(dataclasses.replace(int8, validation=[{"lq": torch.rand(3, 9, 9)}]), compact, None).psnr(lambda lq: lq)
    with pytest.raises(NonFiniteError, match="not finite"):
        Judge(int8, compact, None).psnr(lambda lq: torch.full((1, 3, 72, 82), torch.nan))
    broken = copy.deepcopy(compact)
    with torch.no_grad():
        broken.pretrained.network.body[0].weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        int8.quantized(broken)


def test_of_images_larger_than_a_file_takes_the_middle_is_measured(compact):
    gt = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    pairs = [{"lq": gt[:, ::2, ::2], "gt": gt}, {"lq": gt[:, :20:2, :20:2], "gt": gt[:, :20, :20]}]
    seen = []

    def repeated(lq):
        seen.append(lq)
        return lq.repeat_interleave(2, 2).repeat_interleave(2, 3)

    judge = Judge(dataclasses.replace(int8_of(compact), validation=pairs), compact, None)
    judge.psnr(repeated, most=(12, 16))
    assert torch.equal(seen[0][0], gt[:, 8:32:2, 14:46:2]) and torch.equal(seen[1][0], pairs[1]["lq"])
    assert judge.float_psnr() != judge.float_psnr((12, 16))


def test_int16_needs_a_newer_opset(compact, tmp_path):
    int8 = int8_of(compact, last="int16")
    with pytest.raises(CheckpointError, match="give --opset 21"):
        export(compact, tmp_path, targets=["onnxruntime"], precision="int8", int8=int8)
    assert export(compact, tmp_path, targets=["onnxruntime"], precision="int8", opset=21, int8=int8).losses


def test_one_size(compact, tmp_path):
    exported = export(compact, tmp_path, targets=["openvino"], precision="int8", size=(24, 32), int8=int8_of(compact))
    facts = runtimes()["openvino"].load(exported.files[0], threads=1).facts
    assert facts.size == (24, 32) and facts.precision == "int8" and not facts.batches


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("bits", "--quantize bits: give KEY=VALUE"),
        ("bits=8", "--quantize bits: unknown key"),
        ("weight_bits=4", "--quantize weight_bits"),
        ("layers.body.0=half", "--quantize layers"),
    ],
)
def test_settings_of_the_command_line(text, line):
    with pytest.raises(OptionsError, match=line):
        settings_of([text])
    settings = settings_of(["weight_bits=8", "last=float", "layers.body.0=int16"])
    assert (settings.weight_bits, settings.last, dict(settings.layers)) == (8, "float", {"body.0": "int16"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, size in (("HR", 48), ("LR", 24)):
        (folder / name).mkdir()
        for number, image in enumerate(images([(1, size, size)] * 2)):
            imwrite((image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8), folder / name / f"{number}.png")
    (folder / "named").mkdir()
    for number in range(2):
        (folder / "named" / f"{number}x2.png").write_bytes((folder / "LR" / f"{number}.png").read_bytes())
    (folder / "partly").mkdir()
    (folder / "partly" / "0.png").write_bytes((folder / "LR" / "0.png").read_bytes())
    (folder / "partly" / "1.png").write_bytes((folder / "LR" / "1.png").read_bytes()[:100])
    return folder


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 3, "int8 needs LR images to calibrate with: give -opt"),
        (["--calibration", "LR"], 3, "int8 needs HR and LR images to measure its loss on: give -opt"),
        (["--validation", "HR"], 3, "int8 needs LR images to calibrate with: give -opt"),
        (["--calibration", "nowhere", "--validation", "HR"], 3, "nowhere"),
        (["--calibration", "partly", "--validation", "HR", "LR"], 3, "cannot read image partly/1.png"),
        (["--calibration", "LR", "--validation", "HR", "LR", "LR"], 2, "--validation"),
        (["--calibration", "LR", "--validation", "LR", "HR"], 3, "LR"),
        (["--calibration", "LR", "--validation", "HR", "--max-drop", "-1"], 2, "--max-drop -1"),
        (
            ["--calibration", "LR", "--validation", "HR", "--precision", "int8", "--target", "ncnn"],
            2,
            "--precision int8: ncnn",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    compact, folders, tmp_path, capsys, monkeypatch, words, code, line
):
    monkeypatch.chdir(folders)
    main = importlib.import_module("export").main
    given = [
        "--model",
        str(compact.source),
        "--output",
        str(tmp_path / "out"),
        "--target",
        "openvino",
        "--precision",
        "int8",
    ]
    assert run_command(lambda: main([*given, *words])) == code
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: ") and line in told
    assert not (tmp_path / "out").exists()


def test_the_command_exports_int8_from_folders(compact, folders, tmp_path, capsys):
    main = importlib.import_module("export").main
    words = ["--target", "onnxruntime", "--precision", "int8", "--calibration", str(folders / "LR"), "--max-drop", "3"]
    pairs = ["--validation", str(folders / "HR"), str(folders / "named"), "--filename_tmpl", "{}x2"]
    given = ["--model", str(compact.source), "--output", str(tmp_path), *words, *pairs]
    assert run_command(lambda: main(given)) == 0
    assert "onnxruntime, int8: PSNR" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["distilled_x2_onnxruntime_int8.onnx"]


def test_files_run_without_pytorch(written):
    """By our runtimes and by the runtimes alone, where torch cannot be imported."""
    files = [str(path) for path in written.files if path.suffix in (".onnx", ".xml")]
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\nfrom pathlib import Path\n"
        "from basicsr.runtimes.base import runtime_for\n"
        f"for name in {files!r}:\n"
        "    loaded = runtime_for(Path(name)).load(Path(name), threads=1)\n"
        "    output = loaded(np.full((1, 3, 9, 8), 0.5, np.float32))\n"
        "    assert output.shape == (1, 3, 18, 16) and np.isfinite(output).all() and loaded.computes_in == 'int8'\n"
        "import onnxruntime\n"
        f"onnxruntime.InferenceSession({files[0]!r}).run(None, {{'input': np.zeros((1, 3, 9, 8), np.float32)}})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
