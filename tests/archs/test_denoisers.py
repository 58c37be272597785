"""DnCNN, FDnCNN and FFDNet against other implementations with the same weights, and their published layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs import build_network
from basicsr.archs.arch_util import StagedNetwork
from basicsr.utils.torchvision_import import import_torchvision
from basicsr.weights.layouts import recognise


def denoiser(name: str, **options: Any) -> StagedNetwork:
    torch.manual_seed(0)
    network = build_network({"type": name, "num_feat": 8, "num_layer": 10, **options}).eval()
    assert isinstance(network, StagedNetwork)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # biases too
    return network


def images(colours: int, height: int = 9, width: int = 7) -> Tensor:
    return torch.rand(2, colours, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("name", ["DnCNN", "FDnCNN"])
@torch.no_grad()
def test_dncnn_is_spandrels(name: str, colours: int) -> None:
    import_torchvision()
    import spandrel

    noise = {} if name == "DnCNN" else {"noise_level": 15}  # spandrel's
    network, x = denoiser(name, img_channel=colours, **noise), images(colours)
    theirs = spandrel.ModelLoader().load_from_state_dict(dict(network.state_dict()))
    # spandrel makes the noise map of one image; it clips.
    expected = torch.cat([theirs(image[None]) for image in x])
    assert torch.allclose(network(x).clamp(0, 1), expected, atol=1e-6)
    assert expected.std() > 0.05


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("size", [(8, 6), (9, 7), (1, 1)])
@torch.no_grad()
def test_ffdnet_by_its_definition(colours: int, size: tuple[int, int]) -> None:
    network, x = denoiser("FFDNet", img_channel=colours, noise_level=50), images(colours, *size).double()
    state = {key: value.double() for key, value in network.state_dict().items()}
    height, width = (side + side % 2 for side in size)
    even = torch.zeros(2, colours, height, width, dtype=torch.float64)
    even[...] = x[..., -1:, -1:]
    even[..., : size[0], : size[1]] = x
    even[..., size[0] :, : size[1]] = x[..., -1:, :]
    even[..., : size[0], size[1] :] = x[..., -1:]
    y = torch.stack([even[:, c, i::2, j::2] for c in range(colours) for i in (0, 1) for j in (0, 1)], 1)
    y = torch.cat([y, torch.full_like(y[:, :1], 50 / 255)], 1)
    for layer in range(10):
        y = F.conv2d(y, state[f"model.{2 * layer}.weight"], state[f"model.{2 * layer}.bias"], padding=1)
        y = y.relu() if layer < 9 else y
    expected = torch.zeros_like(even)
    for number in range(4 * colours):
        expected[:, number // 4, number % 4 // 2 :: 2, number % 2 :: 2] = y[:, number]
    assert torch.allclose(network(x.float()).double(), expected[..., : size[0], : size[1]], atol=1e-5)


class WithBatchNorm(nn.Module):
    """The layout that was trained with batch norm: `model.N` and biases as KAIR has it, or `dncnn.N` without."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        biased, epsilon = prefix == "model", 1e-4 if prefix == "model" else 1e-5
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 1, 1, bias=biased), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(8, 8, 3, 1, 1, bias=biased), nn.BatchNorm2d(8, eps=epsilon), nn.ReLU()]
        self.stack = nn.Sequential(*layers, nn.Conv2d(8, 3, 3, 1, 1, bias=biased))
        self.prefix = prefix
        for module in self.stack:
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    nn.init.normal_(tensor)
                module.running_var.uniform_(1e-4, 1)  # where an epsilon matters

    def published(self) -> dict[str, Tensor]:
        return {key.replace("stack", self.prefix): value for key, value in self.state_dict().items()}

    def forward(self, x: Tensor) -> Tensor:
        return x - self.stack(x)


@pytest.mark.parametrize("prefix", ["model", "dncnn"])
@torch.no_grad()
def test_batch_norm_is_folded(prefix: str) -> None:
    torch.manual_seed(0)
    reference = WithBatchNorm(prefix).double().eval()
    found = recognise(reference.published())
    assert found is not None and found.options == {
        "type": "DnCNN", "img_channel": 3, "num_feat": 8, "num_layer": 5
    }  # fmt: skip
    assert "epsilon" in found.assumed[0]
    network = build_network(found.options).double().eval()
    network.load_state_dict(found.state)
    x = images(3).double()
    assert torch.allclose(network(x), reference(x), atol=1e-10)


def test_a_stack_says_which_denoiser_it_is() -> None:
    for name, colours in (("DnCNN", 1), ("DnCNN", 3), ("FDnCNN", 1), ("FDnCNN", 3), ("FFDNet", 1), ("FFDNet", 3)):
        network = denoiser(name, img_channel=colours)
        found = recognise(network.state_dict())
        assert found is not None and found.scale == 1
        assert (found.architecture, found.options["img_channel"]) == (name, colours)
        assert (found.options["num_feat"], found.options["num_layer"]) == (8, 10)
        assert any("noise_level 25" in words for words in found.assumed) == (name != "DnCNN")


def test_other_stacks_are_no_denoisers() -> None:
    state = dict(denoiser("DnCNN").state_dict())
    assert recognise({**state, "model.4.weight": torch.zeros(8, 8, 5, 5)}) is None
    assert recognise({key: value for key, value in state.items() if not key.startswith("model.4.")}) is None
    assert recognise({**state, "tail.0.weight": torch.zeros(1)}) is None
