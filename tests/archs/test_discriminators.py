from __future__ import annotations

import pytest
import torch
from torch import nn

from basicsr.archs import build_network
from basicsr.archs.discriminator_arch import PatchGANDiscriminator, UNetDiscriminatorSN, VGGStyleDiscriminator
from basicsr.utils.errors import DataError, OptionsError


@pytest.mark.parametrize(("n_layers", "field"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_patchgan_logit_sees_the_patch_it_should(n_layers: int, field: int) -> None:
    torch.manual_seed(0)
    network = PatchGANDiscriminator(num_feat=4, n_layers=n_layers, norm="none")
    x = torch.rand(1, 3, 256, 256, requires_grad=True)
    logits = network(x)
    side = 256 // 2**n_layers - 2
    assert logits.shape == (1, 1, side, side)
    (gradient,) = torch.autograd.grad(logits[0, 0, side // 2, side // 2], x)
    for other_axis in (2, 3):
        seen = gradient.abs().sum(dim=(0, 1, other_axis)).nonzero().flatten()
        assert seen[-1] - seen[0] + 1 == field


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_patchgan_gives_one_logit_at_its_smallest_size(n_layers: int) -> None:
    network = PatchGANDiscriminator(num_feat=4, n_layers=n_layers)
    smallest = 3 * 2**n_layers
    assert network(torch.rand(2, 3, smallest, smallest)).shape == (2, 1, 1, 1)
    with pytest.raises(DataError, match=f"at least {smallest}x{smallest}, got {smallest - 1}x{smallest}"):
        network(torch.rand(2, 3, smallest - 1, smallest))


def test_patchgan_has_the_layers_of_pix2pix() -> None:
    """Names and sizes as in the published pix2pix discriminators with batch norm."""
    state = PatchGANDiscriminator().state_dict()
    convolutions = {name: tuple(tensor.shape) for name, tensor in state.items() if tensor.ndim == 4}
    assert convolutions == {
        "model.0.weight": (64, 3, 4, 4),
        "model.2.weight": (128, 64, 4, 4),
        "model.5.weight": (256, 128, 4, 4),
        "model.8.weight": (512, 256, 4, 4),
        "model.11.weight": (1, 512, 4, 4),
    }
    assert {name for name in state if name.startswith(("model.0.", "model.11."))} == {
        "model.0.weight",
        "model.0.bias",
        "model.11.weight",
        "model.11.bias",
    }
    assert "model.2.bias" not in state
    assert state["model.9.running_mean"].shape == (512,)
    assert "model.2.bias" in PatchGANDiscriminator(norm="instance").state_dict()


def test_patchgan_spectral_norm_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    network = PatchGANDiscriminator(num_feat=4, norm="spectral")
    for _ in range(200):
        network(torch.rand(1, 3, 24, 24))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 5
    for convolution in convolutions:
        largest = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2).item()
        assert largest == pytest.approx(1, abs=1e-2)


def test_patchgan_instance_norm_ignores_contrast() -> None:
    torch.manual_seed(0)
    network = PatchGANDiscriminator(num_feat=4, norm="instance").double()
    nn.init.zeros_(network.model[0].bias)
    x = torch.rand(1, 3, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(network(3 * x), network(x), rtol=1e-3, atol=1e-3)


def test_unet_gives_a_logit_per_pixel_and_uses_its_skips() -> None:
    torch.manual_seed(0)
    network = UNetDiscriminatorSN(num_in_ch=3, num_feat=4)
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        network(x)
        output = network.eval()(x)
        network.skip_connection = False
        without = network(x)
    assert output.shape == (1, 1, 16, 24)
    assert not torch.allclose(output, without)


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (UNetDiscriminatorSN(num_in_ch=3, num_feat=2), (16, 12), "multiples of 8, got 16x12: change gt_size"),
        (VGGStyleDiscriminator(num_in_ch=3, num_feat=2), (96, 96), "takes 128x128 images, got 96x96"),
    ],
)
def test_images_of_a_wrong_size_are_refused(network: nn.Module, size: tuple[int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        network(torch.rand(2, 3, *size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"type": "VGGStyleDiscriminator", "num_in_ch": 3, "num_feat": 4, "input_size": 64},
            "input should be 128 or 256",
        ),
        (
            {"type": "PatchGANDiscriminator", "n_layers": 0},
            "n_layers: input should be greater than or",
        ),
        ({"type": "PatchGANDiscriminator", "norm": "layer"}, "norm: input should be 'batch', 'instance', 'none'"),
    ],
)
def test_unsupported_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        build_network(options)


def test_an_unknown_norm_is_refused_without_the_registry_too() -> None:
    with pytest.raises(OptionsError, match=r"norm: input should be 'batch', .*'spectral', got 'layer'"):
        PatchGANDiscriminator(norm="layer")  # type: ignore[arg-type]


def test_the_last_layer_of_the_u_net_is_a_convolution_to_one_channel() -> None:
    """Computed with more channels for speed; output and gradients are those of the layer by itself."""
    torch.manual_seed(0)
    network = UNetDiscriminatorSN(num_in_ch=3, num_feat=8).double()
    seen = []
    network.conv8.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    logits = network(torch.rand(2, 3, 16, 24, dtype=torch.float64))
    features = nn.functional.leaky_relu(seen[0], 0.2)
    expected = network.conv9(features)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(logits)
    wanted = [network.conv9.weight, network.conv9.bias]
    for one, other in zip(
        torch.autograd.grad(logits, wanted, seed), torch.autograd.grad(expected, wanted, seed), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
