"""Students in spandrel 0.4.2: as training saves them, and as they are exported for it."""

from __future__ import annotations

import pytest
import torch
from support.students import save_student, student

from basicsr.archs import build_network
from basicsr.export.base import load_student
from basicsr.export.exporting import export
from basicsr.export.safetensors_format import for_spandrel
from basicsr.export.spandrel_edsr import register
from basicsr.utils.errors import CheckpointError
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise
from basicsr.weights.recognise import load_pretrained

import_torchvision()
spandrel = pytest.importorskip("spandrel")

IMAGES = [torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3)) for size in ((20, 27), (17, 40))]


def in_spandrel(path, registry=None):
    """spandrel's own network, and its output before clipping."""
    loader = spandrel.ModelLoader(device="cpu", registry=registry or spandrel.MAIN_REGISTRY)
    descriptor = loader.load_from_file(path)
    descriptor.model.eval()
    return descriptor


def assert_same_outputs(descriptor, network) -> None:
    for image in IMAGES:
        with torch.no_grad():
            # 1e-5: sums in another order, and factors multiplied into weights.
            torch.testing.assert_close(descriptor.model(image.clone()), network(image), rtol=0, atol=1e-5)
            clipped = descriptor(image.clone())
            torch.testing.assert_close(clipped, network(image).clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_spandrel_loads_swinir_as_training_saves_it(tmp_path, scale):
    network, block = student("SwinIR", scale)
    descriptor = in_spandrel(save_student(tmp_path / "net_g_latest.pth", network, block))
    assert (descriptor.architecture.id, descriptor.scale) == ("SwinIR", scale)
    assert_same_outputs(descriptor, network)


@pytest.mark.parametrize("changes", [{}, {"img_range": 255.0}, {"upsampler": "pixelshuffledirect", "img_range": 2.0}])
def test_spandrel_loads_exported_swinir_whatever_its_range(tmp_path, changes):
    network, block = student("SwinIR", 2, **changes)
    source = save_student(tmp_path / "net.pth", network, block)
    path = export(load_student(source), tmp_path, formats=["safetensors"], layout="spandrel").files[0]
    assert_same_outputs(in_spandrel(path), network)
    assert load_pretrained(path).block["img_range"] == 1


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("changes", [{}, {"res_scale": 0.3, "img_range": 1.0, "rgb_mean": [0.5, 0.4, 0.3]}])
def test_spandrel_loads_exported_rcan(tmp_path, scale, changes):
    network, block = student("RCAN", scale, **changes)
    source = save_student(tmp_path / "net.pth", network, block)
    exported = export(load_student(source), tmp_path, formats=["safetensors"], layout="spandrel")
    assert exported.remarks == ()
    descriptor = in_spandrel(exported.files[0])
    assert (descriptor.architecture.id, descriptor.scale, descriptor.input_channels) == ("RCAN", scale, 3)
    assert_same_outputs(descriptor, network)
    loaded = load_pretrained(exported.files[0])
    assert (loaded.layout, loaded.block["res_scale"]) == ("RCAN's original", 1)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("layout", ["ours", "spandrel"])
def test_spandrel_has_no_edsr_but_loads_it_after_registration(tmp_path, scale, layout):
    changes = {"res_scale": 0.3, "img_range": 1.0, "rgb_mean": [0.5, 0.4, 0.3]} if layout == "spandrel" else {}
    network, block = student("EDSR", scale, **changes)
    source = save_student(tmp_path / "net.pth", network, block)
    exported = export(load_student(source), tmp_path, formats=["safetensors"], layout=layout)
    registry = spandrel.MAIN_REGISTRY.copy()
    with pytest.raises(spandrel.UnsupportedModelError):
        in_spandrel(exported.files[0], registry)
    register(registry)
    register(registry)  # a second call does nothing
    descriptor = in_spandrel(exported.files[0], registry)
    assert (descriptor.architecture.id, descriptor.scale) == ("EDSR", scale)
    assert_same_outputs(descriptor, network)
    assert "EDSR" not in spandrel.MAIN_REGISTRY
    assert [("no EDSR" in remark) for remark in exported.remarks] == ([True] if layout == "spandrel" else [])


def test_registration_changes_nothing_for_other_networks(tmp_path):
    registry = spandrel.MAIN_REGISTRY.copy()
    register(registry)
    for architecture in ("SwinIR", "RCAN"):
        network, block = student(architecture, 2)
        source = save_student(tmp_path / "net.pth", network, block)
        path = export(load_student(source), tmp_path, formats=["safetensors"], layout="spandrel").files[0]
        assert in_spandrel(path, registry).architecture.id == architecture


def test_wide_edsr_gets_the_factor_that_its_width_is_taken_for():
    network, _ = student("EDSR", 2, num_feat=256, num_block=1, res_scale=0.5)
    found = recognise(for_spandrel(network, "EDSR")[0])
    assert found.options["res_scale"] == 0.1
    again = build_network(found.options).eval()
    again.load_state_dict(found.state)
    image = IMAGES[0][..., :6, :7]
    with torch.no_grad():
        torch.testing.assert_close(again(image), network(image), rtol=0, atol=1e-5)


def test_what_spandrel_cannot_know_is_refused(tmp_path):
    network, block = student("SwinIR", 2, qk_scale=0.9)
    with torch.no_grad():  # so that the attention's scores matter
        for parameter in network.layers.parameters():
            parameter.mul_(8)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    with pytest.raises(CheckpointError, match=r"safetensors \(spandrel\) differs from PyTorch by"):
        export(loaded, tmp_path / "out", formats=["safetensors"], layout="spandrel")
    assert not (tmp_path / "out").exists()
    export(loaded, tmp_path / "out", formats=["safetensors"])


def test_swinir_with_one_window_is_refused_by_the_files_name(tmp_path):
    network, block = student("SwinIR", 4, upsampler="nearest+conv", img_size=8)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    message = r"spandrel does not load distilled_x4.safetensors \(.* Missing key.*attn_mask.*\); give --layout ours"
    with pytest.raises(CheckpointError, match=message):
        export(loaded, tmp_path / "out", formats=["safetensors"], layout="spandrel")
    assert not (tmp_path / "out").exists()


def test_spandrel_gets_images_that_its_padding_can_extend_to_a_large_window(tmp_path):
    changes = {"window_size": 34, "img_size": 68, "embed_dim": 4, "num_heads": [1]}
    network, block = student("SwinIR", 2, **changes)
    loaded = load_student(save_student(tmp_path / "net.pth", network, block))
    checks = export(loaded, tmp_path, formats=["safetensors"], layout="spandrel").checks
    shapes = [check.shape[2:] for check in checks if check.kind == "safetensors (spandrel)"]
    assert shapes == [(24, 24), (64, 40), (33, 80), (48, 48), (35, 44), (71, 35)]


def test_architectures_without_a_layout_for_spandrel_are_refused(tmp_path):
    block = {"type": "MSRResNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 1, "upscale": 2}
    loaded = load_student(save_student(tmp_path / "net.pth", build_network(block), block))
    with pytest.raises(CheckpointError, match="--layout spandrel: MSRResNet has no layout that spandrel loads"):
        export(loaded, tmp_path / "out", formats=["safetensors"], layout="spandrel")
    export(loaded, tmp_path / "out")


@pytest.mark.parametrize("changes", [{}, {"img_range": 1.0, "rgb_mean": [0.0, 0.0, 0.0]}])
def test_spandrel_gets_a_span_with_its_branches(tmp_path, changes):
    block = {"type": "SPAN", "num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "upscale": 2, **changes}
    torch.manual_seed(0)
    network = build_network(block).eval()
    source = save_student(tmp_path / "net.pth", network, block)
    (path,) = export(load_student(source), tmp_path, formats=["safetensors"], layout="spandrel").files
    assert_same_outputs(in_spandrel(path), network)
    assert load_pretrained(path).block == block


def test_a_span_of_a_range_that_spandrel_has_not_is_refused():
    network = build_network({"type": "SPAN", "num_in_ch": 3, "num_out_ch": 3, "img_range": 2.0})
    with pytest.raises(CheckpointError, match="img_range to be 255 and its rgb_mean to be DIV2K's, or 1 and 0"):
        for_spandrel(network, "SPAN")
