from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from basicsr.archs.vgg_arch import VGG_TYPES, VGGFeatureExtractor, layer_names
from basicsr.losses import PerceptualLoss
from basicsr.utils.errors import CheckpointError, OptionsError
from basicsr.utils.torchvision_import import import_torchvision

LAYERS = {"conv1_2": 0.5, "relu2_1": 2.0}


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def random_loss(**options) -> PerceptualLoss:
    return PerceptualLoss(**{"layer_weights": LAYERS, "vgg_weights": "random", **options}).double()


@pytest.fixture(scope="module")
def vgg11_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torchvision's VGG-11, untrained and without its large classifier, saved as torchvision's files are."""
    torch.manual_seed(0)
    vgg = import_torchvision().models.vgg11(weights=None, init_weights=False)
    state = {key: value for key, value in vgg.state_dict().items() if key.startswith("features.")}
    path = tmp_path_factory.mktemp("weights") / "vgg11.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("vgg_type", VGG_TYPES)
def test_layers_are_those_of_torchvision(vgg_type: str) -> None:
    """Same kinds in the same order, and hence the same meaning of torchvision's weights."""
    with torch.device("meta"):
        theirs = getattr(import_torchvision().models, vgg_type)(weights=None, init_weights=False).features
    kinds = {"Conv2d": "conv", "BatchNorm2d": "bn", "ReLU": "relu", "MaxPool2d": "pool"}
    names = layer_names(vgg_type)
    assert [name.rstrip("_0123456789") for name in names] == [kinds[type(layer).__name__] for layer in theirs]
    ours = VGGFeatureExtractor(layer_name_list=[names[-1]], vgg_type=vgg_type, vgg_weights="random")
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]


def test_features_are_those_of_torchvision_with_its_weights(vgg11_file: Path) -> None:
    wanted = ["conv1_1", "relu1_1", "conv3_2", "pool4"]
    ours = VGGFeatureExtractor(layer_name_list=wanted, vgg_type="vgg11", vgg_weights=str(vgg11_file)).double()
    vgg = import_torchvision().models.vgg11(weights=None, init_weights=False)
    vgg.load_state_dict(torch.load(vgg11_file, weights_only=True), strict=False)
    (image,) = images(1, size=32)
    found = ours(image)
    assert list(found) == wanted
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    value = (image - mean.float().double()) / std.float().double()
    with torch.no_grad():
        for name, layer in zip(layer_names("vgg11"), vgg.features.double(), strict=True):
            value = layer(value.clone())
            if name in wanted:
                assert torch.allclose(found[name], value, rtol=1e-12, atol=1e-12), name


def test_perceptual_and_style_parts_by_their_definitions() -> None:
    loss = random_loss(criterion="l2", perceptual_weight=0.3, style_weight=7.0)
    x, gt = images(2)
    features, targets = loss.vgg(x), loss.vgg(gt)
    perceptual = sum(w * (features[k] - targets[k]).square().mean() for k, w in LAYERS.items())

    def gram(value: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,bdhw->bcd", value, value) / value[0].numel()

    style = sum(w * (gram(features[k]) - gram(targets[k])).square().mean() for k, w in LAYERS.items())
    found = loss(x, gt)
    assert found[0].item() == pytest.approx(0.3 * perceptual.item(), rel=1e-12)
    assert found[1].item() == pytest.approx(7 * style.item(), rel=1e-12)


# PerceptualLoss of basicsr 1.4.2 agrees to the last digit: scripts/reference/losses_metrics.py
def test_the_frobenius_criterion_takes_the_norm_over_the_batch() -> None:
    loss = random_loss(criterion="fro", layer_weights={"relu1_2": 1.0})
    x, gt = images(2)
    difference = loss.vgg(x)["relu1_2"] - loss.vgg(gt)["relu1_2"]
    assert loss(x, gt)[0].item() == pytest.approx(difference.square().sum().sqrt().item(), rel=1e-12)


def test_range_norm_takes_images_from_minus_one_to_one() -> None:
    x, gt = images(2)
    shifted = random_loss(range_norm=True)(2 * x - 1, 2 * gt - 1)[0]
    assert shifted.item() == pytest.approx(random_loss()(x, gt)[0].item(), rel=1e-12)


def test_a_part_of_weight_zero_is_left_out() -> None:
    x, gt = images(2)
    assert random_loss()(x, gt)[1] is None
    assert random_loss(perceptual_weight=0.0, style_weight=1.0)(x, gt)[0] is None
    assert random_loss(perceptual_weight=0.0)(x, gt) == (None, None)


def test_the_network_is_frozen_and_out_of_checkpoints() -> None:
    loss = random_loss(vgg_type="vgg11_bn", layer_weights={"bn1_1": 1.0}).train()
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    assert not any(module.training for module in loss.vgg.modules())
    assert not any(parameter.requires_grad for parameter in loss.vgg.parameters())


def test_the_network_follows_the_loss_to_its_precision() -> None:
    assert {parameter.dtype for parameter in random_loss().vgg.parameters()} == {torch.float64}


def test_no_gradient_flows_to_the_target() -> None:
    x, gt = images(2)
    x.requires_grad_()
    gt.requires_grad_()
    random_loss()(x, gt)[0].backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert gt.grad is None


def test_gram_matrices_keep_float32_under_autocast() -> None:
    loss = PerceptualLoss(layer_weights={"conv1_1": 1.0}, vgg_weights="random", style_weight=1.0)
    x, gt = images(2).float()
    with torch.autocast("cpu", torch.bfloat16):
        parts = loss(x, gt)
    assert [part.dtype for part in parts] == [torch.float32, torch.float32]
    with torch.autocast("cpu", torch.bfloat16):
        features, targets = (loss.vgg(image)["conv1_1"].double() for image in (x, gt))
    grams = [torch.einsum("bchw,bdhw->bcd", value, value) / value[0].numel() for value in (features, targets)]
    assert parts[1].item() == pytest.approx((grams[0] - grams[1]).abs().mean().item(), rel=1e-5)


def test_building_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    random_loss()
    assert torch.equal(torch.get_rng_state(), state)


def test_pooling_may_be_left_out() -> None:
    names = ["conv2_1"]
    kept = VGGFeatureExtractor(layer_name_list=names, vgg_weights="random")
    removed = VGGFeatureExtractor(layer_name_list=names, vgg_weights="random", remove_pooling=True)
    strided = VGGFeatureExtractor(layer_name_list=names, vgg_weights="random", pooling_stride=1)
    image = images(1)[0].float()
    assert [net(image)["conv2_1"].shape[-1] for net in (kept, removed, strided)] == [8, 16, 15]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layer_weights": {"conv6_1": 1.0}},
            r"layer_weights\.conv6_1: unknown key \(did you mean 'conv._1'\?\); allowed: conv1_1",
        ),
        ({"layer_weights": {}}, "layer_weights: names no layer with a weight above 0"),
        (
            {"vgg_type": "vgg20"},
            r"vgg_type: no VGG is called 'vgg20' \(did you mean 'vgg1.'\?\); there are: vgg11, vgg11_bn",
        ),
        ({"criterion": "huber"}, "criterion: input should be 'l1', 'l2' or 'fro', got 'huber'"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        random_loss(**options)


def test_weights_of_another_vgg_are_refused(vgg11_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"features.2.weight is nothing, not \(64, 64, 3, 3\)"):
        random_loss(vgg_weights=str(vgg11_file))


def test_weights_of_zeros_are_refused(vgg11_file: Path, tmp_path: Path) -> None:
    state = torch.load(vgg11_file, weights_only=True)
    torch.save({key: torch.zeros_like(value) for key, value in state.items()}, tmp_path / "vgg11.pth")
    with pytest.raises(CheckpointError, match="all its weights are 0"):
        PerceptualLoss(layer_weights={"conv1_1": 1.0}, vgg_type="vgg11", vgg_weights=str(tmp_path / "vgg11.pth"))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"absent/vgg19\.pth does not exist"):
        random_loss(vgg_weights="absent/vgg19.pth")


def test_a_file_is_found_in_the_folder_of_pretrained_models_and_checked_against_its_name(
    vgg11_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "experiments/pretrained_models"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    content = vgg11_file.read_bytes()
    intact = folder / f"vgg11-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    intact.write_bytes(content)
    VGGFeatureExtractor(layer_name_list=["pool5"], vgg_type="vgg11")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    intact.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256 does not begin with"):
        VGGFeatureExtractor(layer_name_list=["pool5"], vgg_type="vgg11")


def test_weights_that_cannot_be_fetched_are_explained_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy where nobody listens stands for a machine without network."""
    monkeypatch.chdir(tmp_path)
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CheckpointError, match=r"could not be fetched.*vgg19-dcbb9e9d\.pth elsewhere") as caught:
        VGGFeatureExtractor(layer_name_list=["conv5_4"])
    assert "experiments/pretrained_models" in str(caught.value)
    assert "\n" not in str(caught.value)
