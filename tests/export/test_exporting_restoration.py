"""Exported networks of scale 1 against PyTorch, also at sizes that their halvings do not divide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.exports import exporter, images, onnx_output, output_of
from torch import Tensor, nn

from basicsr.archs import build_network
from basicsr.archs.arch_util import pad_to_multiple
from basicsr.archs.nafnet_arch import NAFNet
from basicsr.archs.restormer_arch import Restormer
from basicsr.export.base import load_student
from basicsr.export.checks import TOLERANCES
from basicsr.export.exporting import export
from basicsr.export.safetensors_format import spandrel_runner
from basicsr.export.tracing import AnySize, Named, smallest_side, traceable
from basicsr.utils.errors import CheckpointError
from basicsr.weights.recognise import load_pretrained

# Few blocks, as tracing takes its time for each; Restormer's norms without a mean are the ones of its own making.
BLOCKS: dict[str, dict[str, Any]] = {
    "NAFNet": {"type": "NAFNet", "width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 0]},
    "Restormer": {
        "type": "Restormer",
        "dim": 8,
        "num_blocks": [0, 0, 0, 1],
        "num_refinement_blocks": 0,
        "LayerNorm_type": "BiasFree",
    },
}
DENOISERS: dict[str, dict[str, Any]] = {
    name: {"type": name, "num_feat": 8, "num_layer": 3} for name in ("DnCNN", "FFDNet")
}
MULTIPLES = {"NAFNet": 4, "Restormer": 8}
# None of them among the sizes that the export itself tries.
SIZES = ((1, 16, 40), (3, 19, 23), (2, 9, 49), (1, 41, 10))
SMALLER = ((1, 1, 1), (1, 2, 13), (1, 8, 8), (2, 5, 3))


def built(block: dict[str, Any]) -> nn.Module:
    """With random weights under which no branch is idle."""
    torch.manual_seed(0)
    network = build_network(block)
    for key, parameter in network.named_parameters():
        if key.endswith((".beta", ".gamma")):
            nn.init.normal_(parameter, std=0.3)
    return network.eval()


def save(path: Path, network: nn.Module, block: dict[str, Any]) -> Path:
    torch.save({"params": network.state_dict(), "network": {**block, "scale": 1}}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that exports a network once to all formats."""
    blocks = BLOCKS | DENOISERS
    return exporter(tmp_path_factory.mktemp, lambda name: (built(blocks[name]), blocks[name]), save)


@pytest.mark.parametrize("name", ["NAFNet", pytest.param("Restormer", marks=pytest.mark.long)])
def test_all_files_give_pytorchs_outputs_at_other_sizes(made, name):
    result = made(name)
    program = torch.export.load(result.file[".pt2"]).module()
    loaded = load_pretrained(result.file[".safetensors"])
    for image in images((*SIZES, *SMALLER)):
        expected = output_of(result.network, image)
        assert expected.shape == image.shape and (expected - image).abs().max() > 0.01
        torch.testing.assert_close(onnx_output(result.file[".onnx"], image), expected, rtol=0, atol=1e-5)
        assert torch.equal(output_of(loaded.network, image), expected)
        if min(image.shape[-2:]) > MULTIPLES[name]:
            torch.testing.assert_close(output_of(program, image), expected, rtol=0, atol=1e-5)
    assert (loaded.architecture, loaded.scale, loaded.layout, loaded.remark) == (name, 1, "ours", None)


@pytest.mark.parametrize("name", DENOISERS)
def test_graphs_of_denoisers_give_pytorchs_outputs_at_odd_and_even_sizes(made, name):
    result = made(name)
    program = torch.export.load(result.file[".pt2"]).module()
    for image in images((*SIZES, *SMALLER[1:])):
        expected = output_of(result.network, image)
        assert expected.shape == image.shape and (expected - image).abs().max() > 0.01
        torch.testing.assert_close(onnx_output(result.file[".onnx"], image), expected, rtol=0, atol=1e-5)
        if min(image.shape[-2:]) >= 3:
            torch.testing.assert_close(output_of(program, image), expected, rtol=0, atol=1e-5)
    assert ("of at least 3x3 pixels" in "".join(result.exported.remarks)) == (name == "FFDNet")


@pytest.mark.long
@pytest.mark.parametrize("name", BLOCKS)
def test_fp16_stays_within_one_and_a_half_steps_of_8_bits(made, name):
    result = made(name, precision="fp16")
    program = torch.export.load(result.file[".pt2"]).module()
    loaded = load_pretrained(result.file[".safetensors"]).network
    for image in images(SIZES)[1:]:
        expected = output_of(result.network, image)
        for output in (onnx_output(result.file[".onnx"], image), program(image), output_of(loaded, image)):
            assert output.dtype == torch.float32
            assert 0 < (output - expected).abs().max().item() <= TOLERANCES["fp16"]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_files_say_that_sizes_are_free_and_stay(made, name):
    result = made(name)
    model = onnx.load(result.file[".onnx"])
    for value in (model.graph.input[0], model.graph.output[0]):
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        assert dims == ["batch", 3, "height", "width"]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["scale"] == "1"
    assert json.loads(properties["network"]) == {**BLOCKS[name], "scale": 1}
    least = MULTIPLES[name] + 1
    assert result.exported.remarks == (f"the torch-export file takes images of at least {least}x{least} pixels",)
    checked = {check.shape for check in result.exported.checks if check.kind == "torch-export"}
    assert {(2, 3, 17, 31), (1, 3, 33, 80)} <= checked
    assert ((1, 3, 5, 7) in checked) == (name == "NAFNet")


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 3), (17, 24), (40, 5)])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_is_traced_sees_the_extension_by_reflection(name, size):
    class Extended(nn.Module):
        padder_size = MULTIPLES[name]

        def forward(self, x: Tensor) -> Tensor:
            return pad_to_multiple(x, self.padder_size)

    seen: list[Tensor] = []
    wrapped = AnySize(Extended())
    wrapped.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = images(((2, *size),))[0]
    assert torch.equal(wrapped(image), image)
    assert torch.equal(seen[0], pad_to_multiple(image, MULTIPLES[name]))


def test_a_network_that_extends_nothing_is_traced_as_it_is():
    flat = build_network({"type": "NAFNet", "width": 4})  # without a level there is nothing to halve
    assert type(traceable(flat, "float32")) is Named and smallest_side(flat) == 1
    assert isinstance(flat, NAFNet)
    restormer = build_network(BLOCKS["Restormer"])
    assert isinstance(restormer, Restormer) and smallest_side(restormer) == 9
    assert type(traceable(restormer, "fp16")) is AnySize


def test_the_network_itself_is_left_as_it_is():
    network = built(BLOCKS["Restormer"])
    before = [type(module) for module in network.modules()]
    traceable(network, "fp16")
    assert [type(module) for module in network.modules()] == before
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NAFNet", "spandrel loads NAFNet as --layout ours writes it; give that"),
        ("Restormer", "Restormer has no layout that spandrel loads; give --layout ours"),
    ],
)
def test_spandrels_layout_is_refused_with_what_there_is(tmp_path, name, message):
    source = save(tmp_path / "net.pth", built(BLOCKS[name]), BLOCKS[name])
    with pytest.raises(CheckpointError, match=message):
        export(load_student(source), tmp_path / "out", formats=["safetensors"], layout="spandrel")


def test_spandrel_loads_the_file_of_a_nafnet(tmp_path):
    block = {**BLOCKS["NAFNet"], "dec_blk_nums": [1, 1]}  # spandrel counts levels by their blocks
    network = built(block)
    source = save(tmp_path / "net.pth", network, block)
    path = export(load_student(source), tmp_path, formats=["safetensors"]).files[0]
    for file in (source, path):
        image = images(((1, 16, 40),))[0]
        theirs = output_of(spandrel_runner(file, "NAFNet"), image)
        torch.testing.assert_close(theirs, output_of(network, image), rtol=0, atol=1e-5)
