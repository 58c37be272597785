"""LiteRT files: own operators of four axes, channels first or last, any size, nothing printed, nothing fetched."""

from __future__ import annotations

import socket
from collections import Counter

import numpy as np
import pytest
import torch
from support.quantized import BLOCKS, image_8_bits
from support.students import save_student, student

from basicsr.archs import build_network
from basicsr.config.quantization import QuantizationSettings
from basicsr.export.base import ExportJob, Student, load_student
from basicsr.export.exporting import export
from basicsr.export.litert_format import litert_content, operators
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.network import quantize_network
from basicsr.runtimes.base import runtime_for
from basicsr.runtimes.litert_runtime import LiteRT, metadata_of
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.weights.recognise import Pretrained


@pytest.fixture(scope="module")
def channels_last(tmp_path_factory):
    """A Compact of PReLUs and a nearest residual, for any size, made without a connection; and what was printed."""
    folder = tmp_path_factory.mktemp("litert")
    torch.manual_seed(0)
    network = build_network(BLOCKS["Compact"]).eval()
    source = save_student(folder / "net.pth", network, BLOCKS["Compact"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", None)
        exported = export(load_student(source), folder / "out", targets=["litert"], nhwc=True)
    return network, exported


def test_the_file_has_own_operators_of_four_axes_and_no_transposes(channels_last):
    content = channels_last[1].files[0].read_bytes()
    found = operators(content)
    assert max(one.rank for one in found) == 4
    names = [one.name for one in found]
    assert set(names) == {"CONV_2D", "PRELU", "CONCATENATION", "DEPTH_TO_SPACE", "ADD"}
    assert names.count("DEPTH_TO_SPACE") == 2 and names.count("CONV_2D") == 4
    about = metadata_of(content)
    assert (about["axes"], about["sizes"], about["scale"]) == ("batch, height, width, channel", "any", "2")


def test_it_takes_any_size_with_and_without_xnnpack(channels_last):
    network, exported = channels_last
    assert len({check.kind for check in exported.checks}) == 2 and len({check.shape for check in exported.checks}) == 6
    assert all(check.difference < 1e-5 for check in exported.checks)
    loaded = runtime_for(exported.files[0]).load(exported.files[0], threads=2)
    assert (loaded.facts.size, loaded.facts.channels, loaded.facts.batches) == (None, 3, False)
    images = torch.rand(2, 3, 9, 13)
    first = loaded(images[:1].numpy())
    before = first.copy()
    loaded(images[1:, :, :5].numpy())
    np.testing.assert_array_equal(first, before)  # a result is the caller's
    with torch.no_grad():
        np.testing.assert_allclose(first, network(images[:1]).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="one image at a time"):
        loaded(images.numpy())


def test_programs_find_input_and_output_by_name(channels_last):
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(model_path=str(channels_last[1].files[0])).get_signature_runner()
    image = torch.rand(1, 3, 128, 128)
    (output,) = run(input=image.permute(0, 2, 3, 1).numpy()).values()
    with torch.no_grad():
        expected = channels_last[0](image).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_a_network_whose_sizes_are_computed_needs_a_size(tmp_path):
    network, block = student("SwinIR", 2)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    with pytest.raises(OptionsError, match=r"^litert: SwinIR has .*; give --size H W, for a file of one size$"):
        export(loaded, tmp_path / "out", targets=["litert"])
    assert not (tmp_path / "out").exists()


def test_channels_last_are_for_targets_that_know_them(tmp_path):
    network, block = student("EDSR", 2)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    with pytest.raises(OptionsError, match=r"^--nhwc .* give --target litert, or leave it out$"):
        export(loaded, tmp_path / "out", formats=["onnx"], nhwc=True)


@pytest.mark.parametrize("content", [b"", b"TFL3" * 100, "cut"], ids=["empty", "noise", "cut"])
def test_damaged_files_are_refused_in_one_line(tmp_path, channels_last, content):
    whole = channels_last[1].files[0].read_bytes()
    path = tmp_path / "damaged.tflite"
    path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(CheckpointError, match=r"^litert does not load damaged\.tflite \(.+\)$"):
        LiteRT().load(path, threads=1)


def test_unknown_settings_are_refused(channels_last):
    with pytest.raises(OptionsError, match=r"^litert has no setting gpu: give xnnpack$"):
        LiteRT().load(channels_last[1].files[0], threads=1, settings={"gpu": True})


@pytest.fixture(scope="module")
def quantized():
    """An EDSR, whose colour is subtracted before the first layer, with fake quantisation."""
    torch.manual_seed(0)
    network = build_network(BLOCKS["EDSR"]).eval()
    quantize_network(network, QuantizationSettings())
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    return network


def test_int8_is_between_integers_and_as_fake_quantisation_computed(tmp_path, quantized):
    given = Student(Pretrained(quantized, BLOCKS["EDSR"], "EDSR", "ours", 2, 3, 3), tmp_path / "net.pth", "0" * 64)
    content = litert_content(ExportJob(given, "int8", 18, "ours", nhwc=True))
    kinds = Counter((one.name, one.type) for one in operators(content))
    assert kinds["CONV_2D", "INT8"] == 8 and kinds["CONV_2D", "FLOAT32"] == 0
    assert kinds["DEPTH_TO_SPACE", "INT8"] == 1 and not any(name == "TRANSPOSE" for name, _ in kinds)
    path = tmp_path / "net.tflite"
    path.write_bytes(content)
    for xnnpack in (True, False):
        loaded = LiteRT().load(path, threads=1, settings={"xnnpack": xnnpack})
        assert (loaded.facts.precision, loaded.facts.size) == ("int8", None)
        for size in ((24, 40), (17, 31)):
            image = image_8_bits(1, 3, *size)
            with torch.no_grad():
                steps = (torch.from_numpy(loaded(image.numpy())) - quantized(image)).abs() * 255
            assert steps.max() < 2.5 and (steps > 1.5).double().mean() < 0.01
            assert (steps > 0.5).double().mean() < 0.3  # of kernels that round in integers
