"""Networks of spandrel's, exported: against spandrel itself, by runtimes that know nothing of either."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from support.exports import images, onnx_output, output_of
from support.published import spandrel_architecture
from support.spandrels import spandrels

from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.export.safetensors_format import spandrel_runner
from basicsr.utils.errors import CheckpointError
from basicsr.weights.recognise import load_pretrained

PLKSR = {"dim": 16, "n_blocks": 1, "upscaling_factor": 2}


def saved(network, tmp_path):
    torch.save({"params_ema": network.state_dict()}, tmp_path / "published.pth")
    return load_student(tmp_path / "published.pth")


def test_all_formats_at_any_size(tmp_path):
    reference = spandrel_architecture("PLKSR").PLKSR(**PLKSR).eval().requires_grad_(False)
    exported = export(saved(reference, tmp_path), tmp_path, name="plksr")
    assert [path.name for path in exported.files] == ["plksr.safetensors", "plksr.onnx", "plksr.pt2"]
    assert exported.remarks == () and len(exported.checks) == 18
    program = torch.export.load(tmp_path / "plksr.pt2").module()
    for image in images(((1, 9, 40), (3, 19, 23))):
        expected = reference(image.clone()).clamp(0, 1)
        for output in (onnx_output(tmp_path / "plksr.onnx", image), program(image)):
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    properties = {entry.key: entry.value for entry in onnx.load(tmp_path / "plksr.onnx").metadata_props}
    assert properties["architecture"] == "PLKSR" and properties["range"].endswith("and clipped")
    assert json.loads(properties["network"]) == {"scale": 2}


def test_safetensors_are_recognised_here_and_loaded_by_spandrel(tmp_path):
    reference = spandrels("HAT")
    (path,) = export(saved(reference, tmp_path), tmp_path, formats=["safetensors"], name="hat").files
    again, image = load_pretrained(path), images(((1, 19, 31),))[0]
    assert (again.architecture, again.layout, again.scale) == ("HAT", "spandrel", 2)
    assert torch.equal(output_of(again.network, image), output_of(reference, image).clamp(0, 1))
    assert torch.equal(spandrel_runner(path, "HAT")(image.clone()), output_of(reference, image))
    with pytest.raises(CheckpointError, match="spandrel loads HAT as --layout ours writes it; give that"):
        export(saved(reference, tmp_path), tmp_path, formats=["safetensors"], layout="spandrel")


def test_what_spandrel_extends_and_gives_a_map_of_noise_is_one_graph(tmp_path):
    network = spandrel_architecture("DRUNet").DRUNet(in_nc=4, out_nc=3, nc=[8] * 4, nb=2)
    student = saved(network, tmp_path)
    (path,) = export(student, tmp_path, formats=["onnx"], name="drunet").files
    for image in images(((1, 3, 13), (2, 8, 21))):
        expected = output_of(student.pretrained.network, image)
        torch.testing.assert_close(onnx_output(path, image), expected, rtol=0, atol=1e-5)
    student.pretrained.network.sizes.square = True  # as Uformer's
    with pytest.raises(CheckpointError, match=r"^DRUNet cannot be traced for .* \(it takes square .*give --size H W"):
        export(student, tmp_path / "out", formats=["onnx"])
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_windows_in_a_graph_for_one_size(tmp_path):
    student = saved(spandrels("Swin2SR"), tmp_path)
    exported = export(student, tmp_path, formats=["onnx"], size=(20, 13), name="swin2sr")
    assert len(exported.checks) == 2 and {check.shape for check in exported.checks} == {(1, 3, 20, 13)}
