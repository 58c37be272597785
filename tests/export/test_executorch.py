"""ExecuTorch programs: bounds, threads, files that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.quantized import BLOCKS, image_8_bits
from support.students import save_student, student

from basicsr.archs import build_network
from basicsr.config.quantization import QuantizationSettings
from basicsr.export.base import ExportJob, Student, load_student
from basicsr.export.executorch_format import write_executorch
from basicsr.export.exporting import export
from basicsr.quantization.calibration import calibrate
from basicsr.quantization.network import quantize_network
from basicsr.runtimes.base import runtime_for
from basicsr.runtimes.executorch_runtime import ExecuTorch
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.weights.recognise import Pretrained


@pytest.fixture(scope="module")
def of_one_size(tmp_path_factory):
    folder = tmp_path_factory.mktemp("executorch")
    network, block = student("EDSR", 2)
    student_ = load_student(save_student(folder / "net.pth", network, block))
    return network, export(student_, folder / "out", targets=["executorch"], size=(20, 28)).files[0]


def test_programs_on_other_numbers_of_threads_run_in_turn(of_one_size):
    network, path = of_one_size
    one, two = (runtime_for(path).load(path, threads=threads) for threads in (1, 2))
    image = torch.rand(1, 3, 20, 28)
    with torch.no_grad():
        expected = network(image).numpy()
    first = one(image.numpy())
    for loaded in (two, one, two):
        np.testing.assert_allclose(loaded(image.numpy()), expected, atol=1e-5)
        del loaded
    two(torch.zeros(1, 3, 20, 28).numpy())
    np.testing.assert_allclose(first, expected, atol=1e-5)  # a result is the caller's


def test_it_says_what_it_takes(of_one_size):
    loaded = ExecuTorch().load(of_one_size[1], threads=1)
    facts = loaded.facts
    assert (facts.scale, facts.channels, facts.size, facts.batches) == (2, 3, (20, 28), False)
    assert facts.most == (20, 28)
    with pytest.raises(ValueError, match="images of 20x28 only"):
        loaded(np.zeros((1, 3, 20, 20), np.float32))
    with pytest.raises(ValueError, match="one image at a time"):
        loaded(np.zeros((2, 3, 20, 28), np.float32))


@pytest.mark.parametrize("content", [b"", b"ET12" * 100, "cut"], ids=["empty", "noise", "cut"])
def test_damaged_files_are_refused_in_one_line(tmp_path, of_one_size, content):
    whole = of_one_size[1].read_bytes()
    path = tmp_path / "damaged.pte"
    path.write_bytes(whole[: len(whole) // 2] if content == "cut" else content)
    with pytest.raises(CheckpointError, match=r"^executorch does not load damaged\.pte \(.+\)$"):
        ExecuTorch().load(path, threads=1)


def test_unknown_settings_are_refused(of_one_size):
    with pytest.raises(OptionsError, match=r"^executorch has no setting gpu$"):
        ExecuTorch().load(of_one_size[1], threads=1, settings={"gpu": True})


def test_int8_is_between_integers_and_as_fake_quantisation_computed(tmp_path):
    torch.manual_seed(0)
    network = build_network(BLOCKS["EDSR"]).eval()
    quantize_network(network, QuantizationSettings())
    calibrate(network, [("a", image_8_bits(3, 32, 48))])
    given = Student(Pretrained(network, BLOCKS["EDSR"], "EDSR", "ours", 2, 3, 3), tmp_path / "net.pth", "0" * 64)
    job, path = ExportJob(given, "int8", 18, "ours", (24, 40)), tmp_path / "net.pte"
    write_executorch(job, path)
    assert job.remarks == ["XNNPACK does 55 of 55 operators; 8 of 8 convolutions in int8"]
    loaded, image = ExecuTorch().load(path, threads=1), image_8_bits(1, 3, 24, 40)
    assert (loaded.facts.precision, loaded.facts.scale) == ("int8", 2)
    with torch.no_grad():
        steps = (torch.from_numpy(loaded(image.numpy())) - network(image)).abs() * 255
    assert steps.max() < 2.5 and (steps > 1.5).double().mean() < 0.01
    assert (steps > 0.5).double().mean() < 0.2


def test_windows_are_moved_without_the_copies_that_executorch_refuses(tmp_path):
    torch.manual_seed(0)
    block = {"type": "SwinIR", "in_chans": 3, "embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4}
    block |= {"img_size": 16, "upscale": 2, "upsampler": "pixelshuffledirect"}
    network = build_network(block).eval()
    given = Student(Pretrained(network, block, "SwinIR", "ours", 2, 3, 3), tmp_path / "net.pth", "0" * 64)
    path, image = tmp_path / "net.pte", torch.rand(1, 3, 16, 24)
    write_executorch(ExportJob(given, "float32", 18, "ours", (16, 24)), path)
    with torch.no_grad():
        expected = network(image)
    found = torch.from_numpy(ExecuTorch().load(path, threads=1)(image.numpy()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
