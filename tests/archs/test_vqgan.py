"""VQGAN's encoder against another implementation of it (spandrel's, in RestoreFormer), and its categories by hand."""

from __future__ import annotations

import collections
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from basicsr.archs.vqgan_arch import VQGANEncoder, VQGANSizes, _Encoder, category_log_probabilities
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.torchvision_import import import_torchvision

# ch, ch_mult, num_res_blocks, z_channels; attention where an image of 64 pixels a side has so many.
SMALL = {"ch": 32, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "z_channels": 8, "attn_resolutions": (4,)}
OTHER = {"ch": 64, "ch_mult": (1, 2, 1), "num_res_blocks": 1, "z_channels": 12, "attn_resolutions": (64, 16)}


def reference(config: dict[str, Any], resolution: int = 64) -> nn.Module:
    import_torchvision()
    from spandrel.architectures.RestoreFormer.__arch.restoreformer_arch import MultiHeadEncoder

    torch.manual_seed(0)
    encoder = MultiHeadEncoder(**config, out_ch=3, resolution=resolution, double_z=False, head_size=1)
    for name, parameter in encoder.named_parameters():
        if ".norm" in name and not parameter.is_meta:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return encoder


def encoder_state(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Its weights under the names of taming-transformers: attention has one normalisation there."""
    renamed = {}
    for key, value in encoder.state_dict().items():
        if "attn" in key and ".norm2." in key:
            continue
        renamed["encoder." + (key.replace(".norm1.", ".norm.") if "attn" in key else key)] = value
    return renamed


def whole_state(config: dict[str, Any], embed_dim: int = 10, entries: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "quant_conv.weight": (embed_dim, config["z_channels"], 1, 1),
        "quant_conv.bias": (embed_dim,),
        "quantize.embedding.weight": (entries, embed_dim),
        "post_quant_conv.weight": (config["z_channels"], embed_dim, 1, 1),
        "decoder.conv_in.weight": (4, config["z_channels"], 3, 3),
        "loss.discriminator.main.0.weight": (4, 3, 4, 4),
    }
    rest = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return {**encoder_state(reference(config)), **rest}


def write(path: Path, state: dict[str, torch.Tensor]) -> str:
    """A checkpoint as Lightning writes it, with what `weights_only` refuses."""
    torch.save({"epoch": 1, "callbacks": {collections.deque: {}}, "state_dict": state}, path)
    return str(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("vqgan")
    return {name: write(folder / f"{name}.ckpt", whole_state(config)) for name, config in CONFIGS.items()}


CONFIGS = {"small": SMALL, "other": OTHER}


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (16, 16)])
@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_latent_are_those_of_another_implementation(checkpoints, name, size):
    ours = VQGANEncoder(vqgan_weights=checkpoints[name]).double()
    theirs = reference(CONFIGS[name]).double().eval()
    image = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    wanted = []
    for level in theirs.down:
        level.block[0].register_forward_hook(lambda module, inputs, output: wanted.append(output.clone()))
    with torch.no_grad():
        output = theirs(2 * image - 1)["out"]
        features, latent = ours(image)
    assert len(features) == len(wanted) == len(CONFIGS[name]["ch_mult"])
    for found, expected in zip(features, wanted, strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)
    state = whole_state(CONFIGS[name])
    weight, bias = (state[f"quant_conv.{part}"].double() for part in ("weight", "bias"))
    expected = torch.einsum("bchw,dc->bdhw", output, weight[:, :, 0, 0]) + bias[:, None, None]
    assert torch.allclose(latent, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(ours.codebook, state["quantize.embedding.weight"].double())
    assert latent.shape[-2:] == (size[0] // ours.factor, size[1] // ours.factor)


def test_sizes_are_read_off_the_weights(checkpoints):
    small = VQGANEncoder(vqgan_weights=checkpoints["small"])
    attention = (False, False, False, False, True)
    assert small.sizes == VQGANSizes(10, 7, 32, (1, 1, 2, 2, 4), 2, attention, 8)
    other = VQGANEncoder(vqgan_weights=checkpoints["other"])
    assert other.sizes == VQGANSizes(10, 7, 64, (1, 2, 1), 1, (True, False, True), 12)
    assert (small.factor, other.factor) == (16, 4)


def test_the_default_sizes_have_the_keys_and_shapes_of_the_published_model():
    published = {"ch": 128, "ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2, "attn_resolutions": [16]}
    with torch.device("meta"):
        theirs = encoder_state(reference({**published, "z_channels": 256}, resolution=256))
        ours = {f"encoder.{key}": value for key, value in _Encoder(VQGANSizes()).state_dict().items()}
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    for key in ("down.4.attn.1.proj_out.bias", "down.2.block.0.nin_shortcut.weight", "down.3.downsample.conv.weight"):
        assert f"encoder.{key}" in ours


def test_images_are_brought_to_the_range_asked_for(checkpoints):
    image = torch.rand(1, 3, 16, 16)
    usual = VQGANEncoder(vqgan_weights=checkpoints["other"])
    unit = VQGANEncoder(vqgan_weights=checkpoints["other"], input_range=(0.0, 1.0))
    assert torch.allclose(unit(2 * image - 1)[1], usual(image)[1], atol=1e-4)
    assert not torch.allclose(unit(image)[1], usual(image)[1], atol=1e-2)


def test_without_the_latent_the_features_are_the_same_and_the_rest_is_not_run(checkpoints):
    encoder = VQGANEncoder(vqgan_weights=checkpoints["small"])
    image = torch.rand(1, 3, 32, 32)
    features = encoder(image)[0]
    runs: list[str] = []
    last = encoder.encoder.down[-1]
    for name, module in (("block", last.block[1]), ("attention", last.attn[0]), ("middle", encoder.encoder.mid)):
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
    fewer, latent = encoder(image, with_latent=False)
    assert latent is None and runs == []
    assert all(torch.equal(one, other) for one, other in zip(features, fewer, strict=True))


def test_the_image_gets_gradients_and_the_weights_none():
    encoder = VQGANEncoder(vqgan_weights="random")
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    features, latent = encoder(image)
    (sum(feature.square().mean() for feature in features) + latent.square().mean()).backward()
    assert image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_random_one_is_always_the_same_and_leaves_the_global_generator_alone():
    image = torch.rand(1, 3, 24, 40)
    state = torch.get_rng_state()
    first = VQGANEncoder(vqgan_weights="random")
    assert torch.equal(torch.get_rng_state(), state)
    features, latent = first(image)
    assert torch.equal(latent, VQGANEncoder(vqgan_weights="random")(image)[1])
    assert [tuple(feature.shape[1:]) for feature in features] == [
        *((32, 24, 40), (32, 12, 20), (64, 6, 10), (64, 3, 5), (128, 1, 2))
    ]
    assert (latent.shape, first.codebook.shape) == ((1, 16, 1, 2), (32, 16))
    chances = category_log_probabilities(first(torch.rand(4, 3, 64, 64))[1], first.codebook).exp()
    assert 0.01 < chances.max(1).values.mean() < 0.99, "neither one category for all, nor all alike"


def test_log_probabilities_are_the_softmax_of_the_distances():
    generator = np.random.default_rng(0)
    latent, codebook = generator.normal(size=(2, 5, 3, 4)), generator.normal(size=(6, 5))
    found = category_log_probabilities(torch.from_numpy(latent), torch.from_numpy(codebook))
    assert found.shape == (2, 6, 3, 4)
    for image in range(2):
        for row in range(3):
            for column in range(4):
                point = latent[image, :, row, column]
                chances = [math.exp(-sum((point - entry) ** 2)) for entry in codebook]
                expected = [math.log(chance / sum(chances)) for chance in chances]
                assert found[image, :, row, column].numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_log_probabilities_are_exact_in_float32_far_from_the_origin(scale):
    generator = np.random.default_rng(0)
    latent, codebook = 100 + scale * generator.normal(size=(1, 16, 4, 4)), 100 + scale * generator.normal(size=(40, 16))
    latent, codebook = latent.astype(np.float32), codebook.astype(np.float32)
    found = category_log_probabilities(torch.from_numpy(latent), torch.from_numpy(codebook)).numpy()
    points = latent[0].reshape(16, -1).T.astype(np.float64)
    scores = -((points[:, None] - codebook[None].astype(np.float64)) ** 2).sum(-1)
    scores -= scores.max(1, keepdims=True)
    expected = (scores - np.log(np.exp(scores).sum(1, keepdims=True))).T.reshape(1, 40, 4, 4)
    assert np.abs(found - expected).max() < 1e-6 * 16 * 4 * scale**2
    with torch.autocast("cpu", torch.bfloat16):
        under = category_log_probabilities(torch.from_numpy(latent), torch.from_numpy(codebook)).numpy()
    assert np.array_equal(under, found)


def test_half_precision_weights_become_float32(tmp_path):
    state = {key: value.half() for key, value in whole_state(OTHER).items()}
    encoder = VQGANEncoder(vqgan_weights=write(tmp_path / "x.ckpt", state))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert torch.equal(encoder.codebook, state["quantize.embedding.weight"].float())


def test_the_file_is_found_in_the_folder_of_pretrained_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"not in experiments/pretrained_models: download last\.ckpt.*vqgan_weights$"
    ):
        VQGANEncoder()
    folder = Path("experiments/pretrained_models")
    folder.mkdir(parents=True)
    (folder / "vqgan_imagenet_f16_1024.yaml").write_text("model: x")
    write(folder / "vqgan_imagenet_f16_1024.ckpt", whole_state(OTHER))
    assert VQGANEncoder().sizes.ch == 64


def without(state: dict[str, torch.Tensor], *beginnings: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(beginnings)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "quantize."), r"it has no quantize\.embedding\.weight of 2 dimensions"),
        (lambda state: without(state, "encoder.down."), "its encoder has no channels at its resolutions and 64 before"),
        (
            lambda state: without(state, "encoder.mid.attn_1"),
            r"encoder\.mid\.attn_1\.norm\.weight is nothing, .* want \(64,\)",
        ),
        (
            lambda state: {**state, "encoder.mid.attn_2.q.weight": torch.zeros(3)},
            r"encoder\.mid\.attn_2\.q\.weight is \(3,\), its other weights want nothing",
        ),
        (
            lambda state: {**state, "encoder.down.1.block.0.conv1.bias": torch.zeros(96)},
            "its encoder has 64, 96, 64 channels at its resolutions and 64 before",
        ),
        (
            lambda state: {**state, "quantize.embedding.weight": torch.zeros(7, 11)},
            r"quantize\.embedding\.weight is \(7, 11\), .* \(7, 10\)|quant_conv",
        ),
        (
            lambda state: {key: torch.zeros_like(value) for key, value in state.items()},
            "all its weights are 0; fetch or copy it again",
        ),
        (lambda state: {"params": torch.zeros(3)}, r"holds no tensors that begin with encoder\. or quant_conv\. or"),
    ],
)
def test_other_files_are_refused_in_one_line(change, message, tmp_path):
    path = write(tmp_path / "x.ckpt", change(whole_state(OTHER)))
    with pytest.raises(CheckpointError, match=message) as error:
        VQGANEncoder(vqgan_weights=path)
    assert "x.ckpt" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_holds_one_row_of_numbers_for_all_weights_is_refused(tmp_path):
    pool = torch.zeros(128 * 128 * 9)
    state = {key: pool[: value.numel()].view(value.shape) for key, value in whole_state(OTHER).items()}
    with pytest.raises(CheckpointError, match="it has fewer bytes than its weights have numbers"):
        VQGANEncoder(vqgan_weights=write(tmp_path / "x.ckpt", state))


def test_wrong_options_are_named():
    with pytest.raises(OptionsError, match=r"input_range is \[1, -1\]; allowed: the lower and the upper end"):
        VQGANEncoder(vqgan_weights="random", input_range=(1, -1))
    with pytest.raises(OptionsError, match=r"images of 15x64 are too small.*raise gt_size to 16"):
        VQGANEncoder(vqgan_weights="random")(torch.rand(1, 3, 15, 64))
    with pytest.raises(CheckpointError, match=r"absent/x\.ckpt does not exist"):
        VQGANEncoder(vqgan_weights="absent/x.ckpt")
