"""What every runtime promises, on a file of the target that it runs; a new one is covered without an edit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.graphs import write_graph

from basicsr.archs import build_network
from basicsr.export.base import export_formats, load_student
from basicsr.export.exporting import export
from basicsr.runtimes.base import runtime_for, runtimes
from basicsr.utils.errors import CheckpointError, OptionsError, UserError
from basicsr.utils.process_settings import num_processors

BLOCK = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
SIZE = (24, 28)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "net.pth"
    torch.manual_seed(0)
    torch.save({"params": build_network(BLOCK).state_dict(), "network": BLOCK}, path)
    return path


@pytest.fixture(scope="module", params=list(runtimes()))
def made(request, checkpoint):
    """A runtime, a file of one size for it, and what PyTorch makes of an image."""
    runtime = runtimes()[request.param]
    if not runtime.installed():
        pytest.skip(f"needs {runtime.name}")
    targets = [name for name, entry in export_formats().items() if entry.runtime == runtime.name]
    formats = [] if targets else ["torch-export"]
    student = load_student(checkpoint)
    folder = checkpoint.parent / runtime.name
    written = export(student, folder, formats=formats, targets=targets[:1], size=SIZE, name="file")
    image = np.random.default_rng(0).random((1, 3, *SIZE), dtype=np.float32)
    with torch.no_grad():
        expected = student.pretrained.network(torch.from_numpy(image)).numpy()
    return runtime, written.files[0], image, expected


def test_it_says_what_the_file_takes_and_makes_the_network_s_output(made):
    runtime, path, image, expected = made
    loaded = runtime.load(path, threads=1)
    assert (loaded.facts.scale, loaded.facts.channels, loaded.facts.size) == (2, 3, SIZE)
    assert loaded.facts.precision == loaded.computes_in == "float32"
    output = loaded(image)
    assert output.dtype == np.float32 and output.shape == expected.shape
    assert np.abs(output - expected).max() < 1e-4


def test_results_are_the_caller_s_and_images_stay(made):
    runtime, path, image, _ = made
    loaded = runtime.load(path, threads=1)
    given = image.copy()
    first = loaded(given)
    kept = first.copy()
    second = loaded(1 - image)
    assert np.array_equal(first, kept) and not np.array_equal(first, second)
    assert np.array_equal(given, image)
    first[:] = 0  # may be written to
    assert np.array_equal(loaded(image), kept)


def test_images_need_not_be_contiguous(made):
    runtime, path, image, _ = made
    loaded = runtime.load(path, threads=1)
    expected = loaded(image)
    by_rows = np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    wide = np.repeat(image, 2, axis=3)[..., ::2]
    backwards = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    for other in (by_rows, wide, backwards):
        assert not other.flags["C_CONTIGUOUS"]
        assert np.array_equal(loaded(other), expected)


def test_other_channels_and_sizes_raise_and_later_images_run(made):
    runtime, path, image, _ = made
    loaded = runtime.load(path, threads=1)
    expected = loaded(image)
    height, width = SIZE
    for shape in ((1, 1, height, width), (1, 4, height, width), (1, 3, height + 1, width)):
        with pytest.raises(Exception):  # noqa: B017
            loaded(np.zeros(shape, np.float32))
    assert np.array_equal(loaded(image), expected)


def test_unknown_settings_are_refused_in_a_line(made):
    runtime, path, _, _ = made
    with pytest.raises(OptionsError, match=f"{runtime.name}.* no setting speed"):
        runtime.load(path, threads=1, settings={"speed": "high"})


def test_missing_damaged_and_empty_files_are_refused_in_a_line(made, tmp_path):
    runtime, path, _, _ = made
    content = path.read_bytes()
    contents = {"empty": b"", "text": b"no file of this kind\n" * 40, "cut": content[: len(content) // 2]}
    for name, damaged in contents.items():
        file = tmp_path / f"{name}{path.suffix}"
        file.write_bytes(damaged)
        for companion in runtime.companions(path):
            file.with_suffix(companion.suffix).write_bytes(companion.read_bytes())
        with pytest.raises(CheckpointError) as caught:
            runtime.load(file, threads=1)
        assert "\n" not in str(caught.value) and file.name in str(caught.value)
    with pytest.raises(UserError):
        runtime.load(tmp_path / f"none{path.suffix}", threads=1)


THREADS = """
import os, sys
from pathlib import Path
import numpy as np
from basicsr.runtimes.base import runtimes
runtime, path, threads = runtimes()[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3])
loaded = runtime.load(path, threads=threads)
for _ in range(3):
    loaded(np.zeros((1, 3, 24, 28), np.float32))
print(sum(1 for _ in os.listdir("/proc/self/task")), "torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_are_as_asked_for_without_pytorch(made):
    runtime, path, _, _ = made
    if "torch" in runtime.packages:
        pytest.skip("imports PyTorch, whose threads are the process's")
    counts = {}
    for threads in (1, 4):
        command = [sys.executable, "-c", THREADS, runtime.name, str(path), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        count, has_torch = done.stdout.split()[-2:]
        counts[threads] = int(count)
        assert has_torch == "False"
    assert counts[4] > counts[1] or num_processors() == 1, "more where more are asked for, up to the cores in OpenVINO"


def test_the_registry_is_one_whole():
    known = runtimes()
    targets = {entry.runtime for entry in export_formats().values() if entry.runtime}
    assert {name for name in targets if name not in known} <= {"coreml", "tensorrt"}, "not run here"
    for name, entry in known.items():
        assert name == entry.name and entry.endings and all(ending.startswith(".") for ending in entry.endings)
        for ending in entry.endings:
            assert runtime_for(Path(f"folder/FILE{ending.upper()}"), name).name == name


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_files_of_others_are_tried_for_what_they_do_not_say(tmp_path, name):
    path = write_graph(tmp_path / "a.onnx", scale=3)
    model = onnx.load(str(path))
    del model.metadata_props[:]
    onnx.save(model, str(path))
    loaded = runtimes()[name].load(path, threads=1)
    assert (loaded.facts.scale, loaded.facts.size) == (3, None)
    del model.graph.node[1:]
    model.graph.node[0].output[0] = "output"
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("strides", [2, 2]))
    onnx.save(model, str(path))
    with pytest.raises(CheckpointError, match=r"a\.onnx .*no images, enlarged"):
        runtimes()[name].load(path, threads=1)
