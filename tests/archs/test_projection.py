from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from basicsr.archs.projection_arch import ImageProjectionHead, PatchProjectionHead
from basicsr.utils.errors import OptionsError


def parameters(head: nn.Module, kind: type) -> list[tuple[Tensor, Tensor]]:
    return [(module.weight, module.bias) for module in head.modules() if isinstance(module, kind)]


def embed_by_definition(head: nn.Module, x: Tensor) -> Tensor:
    """conv 3x3, ReLU (once or twice), mean over pixels, linear, division by the norm."""
    for weight, bias in parameters(head, nn.Conv2d):
        x = F.conv2d(x, weight, bias, padding=1).clamp_min(0)
    ((weight, bias),) = parameters(head, nn.Linear)
    embedding = x.mean(dim=(2, 3)) @ weight.T + bias
    return embedding / embedding.square().sum(dim=1, keepdim=True).sqrt()


@pytest.mark.parametrize("head", [ImageProjectionHead, PatchProjectionHead])
def test_embedding_is_that_of_the_definition(head: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = head(embed_dim=16).double()
    x = torch.rand(3, 3, 12, 10, dtype=torch.float64)
    embedding = network(x)
    assert embedding.dtype == torch.float64
    torch.testing.assert_close(embedding, embed_by_definition(network, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("head", [ImageProjectionHead, PatchProjectionHead])
def test_gradients_are_those_of_the_definition(head: type[nn.Module], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = head(embed_dim=16).double().to(memory_format=layout)
    x = torch.rand(3, 3, 12, 10, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    seed = torch.randn(3, 16, dtype=torch.float64)
    wanted = [x, *network.parameters()]
    found = torch.autograd.grad(network(x), wanted, seed)
    expected = torch.autograd.grad(embed_by_definition(network, x), wanted, seed)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_averages_of_large_images_do_not_overflow(dtype: torch.dtype) -> None:
    """fp16 ends at 65504: less than the sum of 4 over 256 x 256 pixels."""
    head = ImageProjectionHead(embed_dim=8)
    average = head.encoder[2](torch.full((2, 4, 256, 256), 4.0, dtype=dtype))
    assert average.shape == (2, 4, 1, 1)
    assert (average == 4).all()


@pytest.mark.parametrize(
    ("head", "convolutions"),
    [
        (ImageProjectionHead, [(128, 3, 3, 3)]),
        (PatchProjectionHead, [(64, 3, 3, 3), (128, 64, 3, 3)]),
    ],
)
def test_default_layers_are_those_of_the_paper(head: type[nn.Module], convolutions: list[tuple[int, ...]]) -> None:
    network = head()
    assert [tuple(weight.shape) for weight, _ in parameters(network, nn.Conv2d)] == convolutions
    assert [tuple(weight.shape) for weight, _ in parameters(network, nn.Linear)] == [(256, 128)]


@pytest.mark.parametrize("head", [ImageProjectionHead, PatchProjectionHead])
def test_embeddings_have_norm_one_in_float32_under_autocast(head: type[nn.Module]) -> None:
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = head()(torch.rand(4, 3, 16, 16))
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "embed_dim", "multiple"),
    [(ImageProjectionHead, 7, 2), (PatchProjectionHead, 6, 4), (PatchProjectionHead, 2, 4)],
)
def test_lengths_that_do_not_divide_are_refused(head: type[nn.Module], embed_dim: int, multiple: int) -> None:
    with pytest.raises(OptionsError, match=f"embed_dim: {embed_dim} is not supported: give a multiple of {multiple}"):
        head(embed_dim=embed_dim)
